"""Conversion of the published .pth files."""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amsa.config import AMSAConfig
from amsa.errors import AmsaError
from amsa.model import AMSA, convert_published

Files = dict[str, dict[str, Tensor]]
# torchvision's numbers of VGG19's first convolutions
TORCHVISION = {"conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7, "conv3_1": 10}


def write(folder: Path, files: dict[str, Any]) -> list[Path]:
    for name, content in files.items():
        torch.save(content, folder / f"{name}.pth")
    return [folder / f"{name}.pth" for name in files]


def assert_same(model: AMSA, expected: AMSA) -> None:
    assert model.config == expected.config == AMSAConfig.published(8, 2, 4)
    assert not model.training
    state, expected_state = model.state_dict(), expected.state_dict()
    assert state.keys() == expected_state.keys()
    assert [k for k, v in state.items() if not torch.equal(v, expected_state[k])] == []


# ------------------------------------------------------------------------------------------------ what is accepted


def test_files_in_any_order(tmp_path: Path, published_files: Files, published_network: AMSA) -> None:
    for paths in itertools.permutations(write(tmp_path, published_files)):
        assert_same(convert_published(paths), published_network)


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "module": lambda s: {f"module.{k}": v for k, v in s.items()},
    "params": lambda s: {"params": s},
    "params_ema": lambda s: {"params_ema": s, "iter": 5},
    "state_dict": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
    "double": lambda s: {k: v.double() for k, v in s.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_files(tmp_path: Path, published_files: Files, published_network: AMSA, wrapper: str) -> None:
    files = {name: WRAPPERS[wrapper](state) for name, state in published_files.items()}
    assert_same(convert_published(map(str, write(tmp_path, files))), published_network)


def test_torchvisions_vgg19(tmp_path: Path, published_files: Files, published_network: AMSA) -> None:
    vgg = published_files.pop("net_map")
    renamed = {
        f"features.{number}.{kind}": vgg[f"vgg.vgg_net.{layer}.{kind}"]
        for layer, number in TORCHVISION.items()
        for kind in ("weight", "bias")
    }
    deeper = {"features.12.weight": torch.zeros(256, 256, 3, 3), "classifier.0.bias": torch.zeros(4096)}
    paths = write(tmp_path, {"vgg19": {**renamed, **deeper}, **published_files})
    assert_same(convert_published(paths), published_network)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("left_out", "what"),
    [("feature_extraction", "feature extractors"), ("net_map", "VGG19 values"), ("restoration", "restoration network")],
)
def test_a_missing_file_is_named(tmp_path: Path, published_files: Files, left_out: str, what: str) -> None:
    del published_files[left_out]
    with pytest.raises(AmsaError, match=f"^missing: the {what}"):
        convert_published(write(tmp_path, published_files))
    with pytest.raises(AmsaError, match=r"^missing: the feature extractors"):
        convert_published([])


def test_a_file_given_twice(tmp_path: Path, published_files: Files) -> None:
    paths = write(tmp_path, published_files)
    with pytest.raises(AmsaError, match=r"restoration\.pth and .*restoration\.pth both hold the restoration network"):
        convert_published([*paths, paths[2]])


def test_two_vggs(tmp_path: Path, published_files: Files) -> None:
    vgg = {f"features.0.{kind}": published_files["net_map"][f"vgg.vgg_net.conv1_1.{kind}"] for kind in ("weight", "bias")}
    with pytest.raises(AmsaError, match=r"vgg19\.pth and .*net_map\.pth both hold the VGG19 values"):
        convert_published(write(tmp_path, {**published_files, "vgg19": vgg}))


@pytest.mark.parametrize(
    ("file", "lost", "message"),
    [
        # the weight by which a file is recognised: the file is named
        (
            "restoration",
            "content_extractor.conv_first.weight",
            r"restoration\.pth: looks like the restoration network .* but lacks content",
        ),
        ("net_map", "vgg.vgg_net.conv1_1.weight", r"net_map\.pth: looks like the VGG19 values"),
        ("feature_extraction", "feature_extraction_image1.model.conv1_1.weight", "looks like the feature extractors"),
        # any other: the weight is named
        ("restoration", "dyn_agg_restore.head_medium.0.bias", r"lacks 1 of \d+ weights: restore\.scales\.1\.head\.bias$"),
        ("restoration", "dyn_agg_restore.small_dyn_agg.conv_offset_mask.weight", "restore.scales.0.aggregation.offset_mask"),
        ("restoration", "content_extractor.body.0.conv1.bias", r"lacks 1 of \d+ weights: encode_lr\.content\.body\.0\.conv1"),
        ("net_map", "vgg.vgg_net.conv2_2.bias", r"lacks 1 of \d+ weights: encode_ref\.values\.vgg\.conv2_2\.bias$"),
        ("feature_extraction", "feature_extraction_image2.model.conv1_1.weight", r"encode_ref\.keys\.vgg\.conv1_1\.weight$"),
    ],
)
def test_lost_weights_are_named(tmp_path: Path, published_files: Files, file: str, lost: str, message: str) -> None:
    del published_files[file][lost]
    with pytest.raises(AmsaError, match=message) as caught:
        convert_published(write(tmp_path, published_files))
    assert "\n" not in str(caught.value)


def test_weights_of_no_known_name_are_named(tmp_path: Path, published_files: Files) -> None:
    published_files["restoration"]["discriminator.weight"] = torch.zeros(3)
    with pytest.raises(AmsaError, match=r"restoration\.pth: has 1 unknown weights: discriminator\.weight"):
        convert_published(write(tmp_path, published_files))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("dyn_agg_restore.large_dyn_agg.weight", (64, 64, 5, 5), r"large_dyn_agg\.weight is \(64, 64, 5, 5\); a 3x3"),
        ("dyn_agg_restore.large_dyn_agg.weight", (64, 3), r"large_dyn_agg\.weight is \(64, 3\)"),
        ("dyn_agg_restore.head_small.0.weight", (9, 264, 3, 3), r"restore\.scales\.0\.head\.weight is \(9, 264, 3, 3\)"),
        ("content_extractor.conv_first.weight", (), r"content|first weights"),
        ("dyn_agg_restore.small_dyn_agg.conv_offset_mask.weight", (81, 256, 3, 3), "must divide into 3 groups"),
    ],
)
def test_weights_of_another_shape_are_named(
    tmp_path: Path, published_files: Files, name: str, shape: tuple[int, ...], message: str
) -> None:
    published_files["restoration"][name] = torch.zeros(shape)
    with pytest.raises(AmsaError, match=message):
        convert_published(write(tmp_path, published_files))


class Attack:
    """Makes a folder as soon as it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("how", ["pickle", "torch", "legacy torch", "beside tensors"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, how: str) -> None:
    attack, path = Attack(tmp_path / "attacked"), tmp_path / "restoration.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps(attack, protocol=2))
    elif how == "beside tensors":
        torch.save({"content_extractor.conv_first.weight": torch.zeros(8, 3, 3, 3), "x": attack}, path)
    else:
        torch.save(attack, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(AmsaError, match=r"restoration\.pth: cannot be read as a PyTorch state dict: it holds more than tensors"):
        convert_published([path])
    assert not attack.folder.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert attack.folder.exists()  # the attack is one


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x80\x02", bytes(range(256)) * 40, b"{}", b"junk\n" * 9]
)
def test_files_of_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "restoration.pth"
    path.write_bytes(content)
    with pytest.raises(AmsaError, match=r"restoration\.pth: ") as caught:
        convert_published([path])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files(tmp_path: Path, published_files: Files, part: float) -> None:
    paths = write(tmp_path, published_files)
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(AmsaError, match=r"restoration\.pth: cannot be read as a PyTorch state dict"):
        convert_published(paths)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "not a state dict"),
        (torch.zeros(3), "not a state dict"),
        ({"weight": 3}, "not a state dict"),
        ({5: torch.zeros(3)}, "not a state dict"),
        ({}, "not one of the published AMSA files .*none"),
        ({"conv.weight": torch.zeros(3)}, r"not one of the published AMSA files .*conv\.weight"),
    ],
)
def test_tensors_of_something_else(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(AmsaError, match=message):
        convert_published(write(tmp_path, {"other": content}))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(AmsaError, match=r"nowhere\.pth: no such file"):
        convert_published([tmp_path / "nowhere.pth"])
    with pytest.raises(AmsaError, match="no such file"):
        convert_published([tmp_path])
