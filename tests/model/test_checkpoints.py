"""Checkpoints: the round trip, and files that are not what they should be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from amsa.config import AMSAConfig
from amsa.errors import AmsaError
from amsa.model import AMSA, load_checkpoint, save_checkpoint

SMALL = replace(AMSAConfig.small(), blocks=(1, 1, 1, 1))


def small(seed: int = 0) -> AMSA:
    model = AMSA(SMALL)
    model.reset_parameters(seed)
    return model


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and metadata as they are in the file."""
    with safetensors.safe_open(path, framework="pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}, json.loads(f.metadata()["amsa"])  # noqa: SIM118


def bits(state: dict[str, Tensor]) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in state.items()}


# ------------------------------------------------------------------------------------------------ the round trip


@pytest.mark.parametrize("variant", ["small", "published"])
def test_round_trip(tmp_path: Path, published_network: AMSA, variant: str) -> None:
    model = published_network if variant == "published" else small()
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, {"trained": True, "step": 12})
    loaded, metadata = load_checkpoint(path)
    assert metadata == {"trained": True, "step": 12}
    assert loaded.config == model.config
    assert bits(loaded.state_dict()) == bits(model.state_dict())
    assert not loaded.training
    save_checkpoint(str(tmp_path / "again"), loaded, metadata)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "model.safetensors"]


def test_the_loaded_network_computes_the_same(tmp_path: Path) -> None:
    model = small().eval()
    save_checkpoint(tmp_path / "m", model, {})
    lr, ref = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(tmp_path / "m")[0](lr, [[ref]]), model(lr, [[ref]]))


def test_shared_keys_are_stored_once(tmp_path: Path) -> None:
    model = small()
    save_checkpoint(tmp_path / "m", model, {})
    stored, metadata = read(tmp_path / "m")
    assert not any(k.startswith("encode_lr.keys.") for k in stored)
    assert any(k.startswith("encode_ref.keys.") for k in stored)
    assert sum(v.numel() for v in stored.values()) == sum(p.numel() for p in model.parameters())
    assert metadata == {"config": json.loads(json.dumps(SMALL.to_dict()))}
    loaded, _ = load_checkpoint(tmp_path / "m")
    assert loaded.encode_lr.keys is loaded.encode_ref.keys


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "m", small(), {})
        assert os.umask(0o027) == 0o027  # the process's mask is as it was
    finally:
        os.umask(before)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o640


# ------------------------------------------------------------------------------------------------ writing fails


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    save_checkpoint(path, small(0), {})
    old = path.read_bytes()

    def full(_tensors: Any, file: Path, **_: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(AmsaError, match=r"cannot write .*m: No space left on device; free some space"):
        save_checkpoint(path, small(1), {})
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert path.read_bytes() == old

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, small(1), {})
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("where", ["nowhere/m", "a_file/m"])
def test_a_folder_that_is_none(tmp_path: Path, where: str) -> None:
    (tmp_path / "a_file").touch()
    with pytest.raises(AmsaError, match=r"cannot write .*choose a folder that exists and can be written"):
        save_checkpoint(tmp_path / where, small(), {})
    assert [p.name for p in tmp_path.iterdir()] == ["a_file"]


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(AmsaError, match="cannot write"):
        save_checkpoint(tmp_path / "m", small(), {})
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert not list((tmp_path / "m").iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:  # root may write everywhere, so no permission bits here
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(AmsaError, match=r"cannot write .*m: Permission denied; choose a folder"):
        save_checkpoint(tmp_path / "m", small(), {})
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ files of something else


@pytest.mark.parametrize("part", [0, 4, 9, 500, 0.5, -1])
def test_truncated_files(tmp_path: Path, part: float) -> None:
    path = tmp_path / "m"
    save_checkpoint(path, small(), {})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole)) if 0 < part < 1 else int(part)])
    with pytest.raises(AmsaError, match=r"m: not a whole safetensors file") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"junk\n" * 99, b"PK\x03\x04" * 9, b"\x80\x02}q\x00.", bytes(64)])
def test_files_of_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(AmsaError, match=r"m: not a whole safetensors file .*`amsa convert`"):
        load_checkpoint(tmp_path / "m")


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "m", tmp_path):
        with pytest.raises(AmsaError, match="no such file"):
            load_checkpoint(path)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_safetensors_of_another_project(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    safetensors.torch.save_file({"conv.weight": torch.zeros(3)}, tmp_path / "m", metadata=metadata)
    with pytest.raises(AmsaError, match=r"m: a safetensors file, but not a checkpoint of amsa"):
        load_checkpoint(tmp_path / "m")


def config_with(**values: Any) -> str:
    return json.dumps({"config": {**SMALL.to_dict(), **values}})


@pytest.mark.parametrize(
    "header",
    [
        *("", "no json", "[]", "3", "null", "{}", '{"config": null}', '{"config": [1]}'),
        *('{"config": {}}', '{"config": "small"}', config_with(groups=0), config_with(new_field=0)),
        config_with(channels=[48, 10**9, 10**9]),  # more than any memory: RuntimeError
    ],
)
def test_configs_that_cannot_be_read(tmp_path: Path, header: str) -> None:
    safetensors.torch.save_file({"conv.weight": torch.zeros(3)}, tmp_path / "m", metadata={"amsa": header})
    with pytest.raises(AmsaError, match=r"^.*/m: .*config") as caught:
        load_checkpoint(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", ['{"config": {}}', config_with(groups=0), config_with(new_field=0)])
def test_configs_that_are_refused(tmp_path: Path, header: str) -> None:
    safetensors.torch.save_file({"conv.weight": torch.zeros(3)}, tmp_path / "m", metadata={"amsa": header})
    with pytest.raises(AmsaError, match=r"config: (missing field|groups is 0|unknown field new_field)"):
        load_checkpoint(tmp_path / "m")


# ------------------------------------------------------------------------------------------------ weights that do not fit

Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("finish.conv2.bias"), r"m: lacks 1 of \d+ weights: finish\.conv2\.bias$"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("restore")], r"m: lacks \d+ of \d+ weights: restore\..*, \.\.\.$"),
        (lambda s: s.update(extra=torch.zeros(1)), r"m: has unknown 1 of \d+ weights: extra$"),
        (
            lambda s: s.update({"finish.conv2.bias": torch.zeros(4)}),
            r"m: finish\.conv2\.bias is \(4,\); this config needs \(3,\)",
        ),
        (lambda s: s.update({"finish.conv2.bias": torch.zeros(1, 3)}), r"finish\.conv2\.bias is \(1, 3\)"),
        (lambda s: s.clear(), r"m: lacks \d+ of \d+ weights"),
        # the shared key net under its other name
        (lambda s: s.update({"encode_lr.keys.conv1.bias": torch.zeros(16)}), r"encode_lr\.keys\.conv1\.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: Change, message: str) -> None:
    save_checkpoint(tmp_path / "m", small(), {})
    state, metadata = read(tmp_path / "m")
    change(state)
    safetensors.torch.save_file(state, tmp_path / "m", metadata={"amsa": json.dumps(metadata)})
    with pytest.raises(AmsaError, match=message):
        load_checkpoint(tmp_path / "m")


def test_a_config_of_other_sizes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m", small(), {})
    state, metadata = read(tmp_path / "m")
    metadata["config"]["key_channels"] = 24
    safetensors.torch.save_file(state, tmp_path / "m", metadata={"amsa": json.dumps(metadata)})
    with pytest.raises(AmsaError, match=r"encode_ref\.keys\.conv3\.\w+ is \(16,.*\); this config needs \(24,"):
        load_checkpoint(tmp_path / "m")
