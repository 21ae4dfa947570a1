"""Checkpoints: one safetensors file with weights and config, and the conversion of the published `.pth` files."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import AMSAConfig
from ..errors import AmsaError
from .network import AMSA

# The shared key net of the compact encoder appears under both encoders; a file holds it once.
_ALIAS = "encode_lr.keys."
_METADATA = "amsa"


def _canonical(model: AMSA) -> dict[str, Tensor]:
    state = model.state_dict()
    if model.encode_lr.keys is model.encode_ref.keys:
        state = {k: v for k, v in state.items() if not k.startswith(_ALIAS)}
    return state


def save_checkpoint(path: str | Path, model: AMSA, metadata: Mapping[str, Any], fp16: bool = False) -> None:
    """Write weights, config and metadata (e.g. {"trained": True}) beside, then rename: never half a file.

    `fp16`: weights rounded to float16, in half the space; they are read as float32 again. AmsaError where one is too large.
    """
    from safetensors.torch import save_file

    path = Path(path)
    state = {k: (v.half() if fp16 else v).contiguous() for k, v in _canonical(model).items()}
    if large := [k for k, v in state.items() if not v.isfinite().all()]:
        raise AmsaError(f"{path}: {large[0]} holds values that are no numbers{' in float16' if fp16 else ''}; not written")
    header = {_METADATA: json.dumps({"config": model.config.to_dict(), **metadata})}
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as f:
            temporary = Path(f.name)
    except OSError as e:
        raise AmsaError(f"cannot write {path}: {e.strerror}; choose a folder that exists and can be written") from e
    try:
        save_file(state, temporary, metadata=header)
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException as e:
        temporary.unlink(missing_ok=True)
        if isinstance(e, OSError):
            raise AmsaError(f"cannot write {path}: {e.strerror or e}; free some space or choose another folder") from e
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load_checkpoint(path: str | Path) -> tuple[AMSA, dict[str, Any]]:
    """Read a checkpoint written by `save_checkpoint`: the network in evaluation mode, and the metadata.

    Raises:
        AmsaError: not there, not a checkpoint of this project, or weights missing, unknown or of another shape.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise AmsaError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as f:
            header = (f.metadata() or {}).get(_METADATA)
            state = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as e:
        raise AmsaError(f"{path}: not a whole safetensors file ({e}); convert published .pth files with `amsa convert`") from e
    if header is None:
        raise AmsaError(f"{path}: a safetensors file, but not a checkpoint of amsa (it names no config)")
    try:
        metadata = json.loads(header)
        config = AMSAConfig.from_dict(metadata.pop("config"))
        with torch.device("meta"):  # costs no memory, whatever sizes the config claims
            _require_weights(AMSA(config), state, str(path))
    except AmsaError as e:
        raise AmsaError(str(e) if str(e).startswith(str(path)) else f"{path}: its {e}") from e
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as e:
        raise AmsaError(f"{path}: its config cannot be read ({str(e).splitlines()[0]})") from e
    model = AMSA(config)
    load_weights(model, state, str(path))
    return model.eval(), metadata


def load_weights(model: AMSA, state: Mapping[str, Tensor], source: str) -> None:
    """Fill a network from a state, which must name exactly its weights; AmsaError lists what does not fit."""
    _require_weights(model, state, source)
    with torch.no_grad():
        for name, tensor in _canonical(model).items():
            tensor.copy_(state[name])


def _require_weights(model: AMSA, state: Mapping[str, Tensor], source: str) -> None:
    own = _canonical(model)
    _require_keys(source, set(own), set(state))
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise AmsaError(f"{source}: {name} is {tuple(state[name].shape)}; this config needs {tuple(tensor.shape)}")


def _require_keys(source: str, expected: set[str], found: set[str]) -> None:
    for what, names in (("lacks", expected - found), ("has unknown", found - expected)):
        if names:
            first = ", ".join(sorted(names)[:4])
            raise AmsaError(
                f"{source}: {what} {len(names)} of {len(expected)} weights: {first}{', ...' if len(names) > 4 else ''}"
            )


# ------------------------------------------------------------------------------------------- published checkpoints

_SCALES = {"small": 0, "medium": 1, "large": 2}
_VGG_INDEX = {"0": "conv1_1", "2": "conv1_2", "5": "conv2_1", "7": "conv2_2", "10": "conv3_1"}
"""torchvision numbers VGG's layers; these are the convolutions up to conv3_1, the same in VGG16 and VGG19."""

# (published name, our name); {0}.. are the groups of the pattern. The first pattern that matches decides.
_EXTRACTOR = (
    (r"feature_extraction_image1\.model\.(.+)", "encode_lr.keys.vgg.{0}"),
    (r"feature_extraction_image2\.model\.(.+)", "encode_ref.keys.vgg.{0}"),
)
_VALUES = ((r"vgg\.vgg_net\.(.+)", "encode_ref.values.vgg.{0}"),)
_TORCHVISION = ((r"features\.(0|2|5|7|10)\.(.+)", "encode_ref.values.vgg.{0}.{1}"),)
_RESTORATION = (
    (r"content_extractor\.(.+)", "encode_lr.content.{0}"),
    (r"dyn_agg_restore\.(small|medium|large)_deform_conv\.conv_offset_mask\.(.+)", "encode_ref.warp_masks.{0}.{1}"),
    (r"dyn_agg_restore\.(small|medium|large)_deform_conv\.(.+)", "restore.scales.{0}.aggregation.warp.{1}"),
    (r"dyn_agg_restore\.(small|medium|large)_(offset_conv[12])\.(.+)", "restore.scales.{0}.aggregation.{1}.{2}"),
    (
        r"dyn_agg_restore\.(small|medium|large)_dyn_agg\.conv_offset_mask\.(.+)",
        "restore.scales.{0}.aggregation.offset_mask.{1}",
    ),
    (r"dyn_agg_restore\.(small|medium|large)_dyn_agg\.(.+)", "restore.scales.{0}.aggregation.aggregate.{1}"),
    (r"dyn_agg_restore\.head_(small|medium|large)\.0\.(.+)", "restore.scales.{0}.head.{1}"),
    (r"dyn_agg_restore\.body_(small|medium|large)\.(.+)", "restore.scales.{0}.body.{1}"),
    (r"dyn_agg_restore\.tail_large\.0\.(.+)", "finish.conv1.{0}"),
    (r"dyn_agg_restore\.tail_large\.2\.(.+)", "finish.conv2.{0}"),
    (r"dyn_agg_restore\.tail_(small|medium)\.0\.(.+)", "restore.scales.{0}.up.{1}"),
)
# Constants of the published modules, not weights.
_BUFFERS = re.compile(r"(.*\.)?(mean|std)|feature_match_index\..*|PatchMatch\..*")

_KINDS: dict[str, tuple[str, tuple[tuple[str, str], ...], str]] = {
    # kind: (a weight only it has, its renaming, what it is)
    "extractor": (
        "feature_extraction_image1.model.conv1_1.weight",
        _EXTRACTOR,
        "the feature extractors (feature_extraction.pth)",
    ),
    "values": ("vgg.vgg_net.conv1_1.weight", _VALUES, "the VGG19 values (net_map, or torchvision's vgg19 weights)"),
    "torchvision": ("features.0.weight", _TORCHVISION, "the VGG19 values (net_map, or torchvision's vgg19 weights)"),
    "restoration": ("content_extractor.conv_first.weight", _RESTORATION, "the restoration network (restoration.pth)"),
}


def convert_published(paths: Iterable[str | Path]) -> AMSA:
    """Build the published network from its files, given in any order and recognised by their weights.

    The files are the feature extractors, the restoration network, and VGG19 (the `net_map` checkpoint or torchvision's).
    Nothing in a file is executed.

    Raises:
        AmsaError: a file that is not a plain state dict, is not one of the three, or lacks weights (which are named).
    """
    state: dict[str, Tensor] = {}
    seen: dict[str, str] = {}
    for path in paths:
        published = _load_pth(Path(path))
        kind = _kind_of(path, published)
        part = "values" if kind == "torchvision" else kind
        if part in seen:
            raise AmsaError(f"{path} and {seen[part]} both hold {_KINDS[part][2]}; give each file once")
        seen[part] = str(path)
        state.update(rename_published(published, kind, str(path)))
    for part in ("extractor", "restoration", "values"):
        if part not in seen:
            raise AmsaError(f"missing: {_KINDS[part][2]}; three files are needed")
    return published_from_state(state, ", ".join(seen.values()))


def published_from_state(state: Mapping[str, Tensor], source: str) -> AMSA:
    """The published network from renamed weights; its width, depth and groups are read off them."""
    try:
        channels = state["encode_lr.content.conv_first.weight"].shape[0]
        groups = state["restore.scales.0.aggregation.offset_mask.weight"].shape[0] // 27
        blocks = 1 + max(int(m[1]) for k in state if (m := re.fullmatch(r"encode_lr\.content\.body\.(\d+)\..*", k)))
    except (KeyError, IndexError, ValueError) as e:
        raise AmsaError(f"{source}: the restoration network's first weights are missing ({e})") from e
    model = AMSA(AMSAConfig.published(channels, blocks, max(groups, 1)))
    load_weights(model, state, source)
    return model.eval()


def rename_published(published: Mapping[str, Tensor], kind: str, source: str) -> dict[str, Tensor]:
    """Published names -> ours; deformable convolutions become 1x1 convolutions over nine taps' channels."""
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in published.items():
        if _BUFFERS.fullmatch(name):
            continue
        for pattern, target in _KINDS[kind][1]:
            if match := re.fullmatch(pattern, name):
                groups = [str(_SCALES.get(g, _VGG_INDEX.get(g, g))) for g in match.groups()]
                ours = target.format(*groups)
                if re.search(r"\.(warp|aggregate)\.weight$", ours):
                    if tensor.ndim != 4 or tuple(tensor.shape[2:]) != (3, 3):
                        raise AmsaError(f"{source}: {name} is {tuple(tensor.shape)}; a 3x3 convolution was expected")
                    # [Cout, C, 3, 3] -> [Cout, 9 * C, 1, 1], channel = tap * C + c
                    tensor = tensor.permute(0, 2, 3, 1).reshape(tensor.shape[0], -1, 1, 1)
                renamed[ours] = tensor.float()
                break
        else:
            if kind != "torchvision":  # the full VGG19 has deeper layers and a classifier that are not used
                unknown.append(name)
    if unknown:
        raise AmsaError(f"{source}: has {len(unknown)} unknown weights: {', '.join(sorted(unknown)[:4])}")
    return renamed


def _kind_of(path: str | Path, state: Mapping[str, Tensor]) -> str:
    for kind, (marker, _, _) in _KINDS.items():
        if marker in state:
            return kind
    # A damaged file of a known kind: say what it is and what it lacks.
    for marker, renaming, what in _KINDS.values():
        if any(re.fullmatch(pattern, name) for name in state for pattern, _ in renaming):
            raise AmsaError(f"{path}: looks like {what} but lacks {marker} and perhaps more")
    some = ", ".join(sorted(state)[:3])
    raise AmsaError(f"{path}: not one of the published AMSA files (its first weights: {some or 'none'})")


def _load_pth(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise AmsaError(f"{path}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises a dozen kinds here, depending on how the file is broken
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        if "weights_only" in str(e) or "Unsupported" in str(e):
            reason = "it holds more than tensors, and nothing in it is executed"
        raise AmsaError(f"{path}: cannot be read as a PyTorch state dict: {reason}") from e
    for key in ("params", "params_ema", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise AmsaError(f"{path}: not a state dict (names with tensors)")
    return {k.removeprefix("module."): v for k, v in state.items()}
