"""The loop: resuming is exact, accumulation and precision, and failures lose nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from amsa import AmsaError
from amsa.model import AMSA, AMSAConfig, load_checkpoint, save_checkpoint
from amsa.training.data import Mix, ReferencePairs
from amsa.training.loop import Progress, Trainer
from amsa.training.recipe import Recipe, Weights
from amsa.training.synthetic import Warp

Pairs = Callable[..., ReferencePairs]

TINY = Recipe(
    "small", steps=4, batch=2, crop=64, ref=64, save_every=2, extra_scale=0.5, warmup=1, weights=Weights(1, 0, 0, 0.03, 0, 0.03)
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "last.safetensors")[0].state_dict()


def log(folder: Path, name: str) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def test_resuming_is_exact(tmp_path: Path, pairs: Pairs) -> None:
    for name, stops in (("whole", [4]), ("parts", [2, 4])):
        (tmp_path / name).mkdir()
        for stop in stops:
            Trainer(TINY, pairs(), tmp_path / name).run(stop)
        assert load_checkpoint(tmp_path / name / "last.safetensors")[1]["step"] == 4
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert log(tmp_path / "whole", "loss") == log(tmp_path / "parts", "loss")


def test_workers_change_nothing(tmp_path: Path, pairs: Pairs) -> None:
    for workers in (0, 1):
        (tmp_path / str(workers)).mkdir()
        Trainer(TINY, pairs(), tmp_path / str(workers)).run(2, workers=workers)
    assert log(tmp_path / "0", "loss") == log(tmp_path / "1", "loss")


def test_accumulated_parts_equal_the_whole_batch(tmp_path: Path, pairs: Pairs) -> None:
    # Pixel loss alone: the others average over known positions, which parts have different numbers of. And plain gradient
    # descent: Adam makes a step of rounding errors where a gradient is next to nothing.
    results = []
    for parts in (1, 2):
        (tmp_path / str(parts)).mkdir()
        recipe = replace(TINY, steps=2, accumulate=parts, weights=Weights(), ema=0.0, lr=0.5, clip=0.0)
        trainer = Trainer(recipe, pairs(), tmp_path / str(parts))
        start = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        trainer.optimizer = torch.optim.SGD([{"params": list(trainer.model.parameters()), "factor": 1.0}], 1.0)
        trainer.run()
        results.append(weights(tmp_path / str(parts)))
    step, apart = (torch.cat([(x[k] - results[0][k]).flatten() for k in start]).norm() for x in (start, results[1]))
    # Rounding turns a near-tie of the matching here and there: 8e-4 of the step; a wrong weight of the parts would be all of it.
    assert 0 < apart < 5e-3 * step


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains_and_resumes_exactly(tmp_path: Path, pairs: Pairs, precision: str) -> None:
    # as small as it gets: processors without half-precision arithmetic emulate it
    recipe = replace(TINY, steps=2, batch=1, save_every=1, crop=32, ref=32, extra_scale=0.0)
    data = ReferencePairs(pairs()._photos, crop=32, ref=32, length=2, seed=0, mix=Mix(0, 0, 0, 0, 0), warp=Warp())
    for name, stops in (("whole", [2]), ("parts", [1, 2]), ("exact", [2])):
        (tmp_path / name).mkdir()
        for stop in stops:
            trainer = Trainer(replace(recipe, precision="float32" if name == "exact" else precision), data, tmp_path / name)
            trainer.run(stop)
            assert trainer.scaler.is_enabled() == (trainer.recipe.precision == "float16")
    whole, parts, exact = (weights(tmp_path / name) for name in ("whole", "parts", "exact"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert any(not torch.equal(whole[k], exact[k]) for k in whole)  # autocast is on
    assert {v.dtype for v in whole.values()} == {torch.float32}
    assert log(tmp_path / "whole", "pixel")[0] == pytest.approx(log(tmp_path / "exact", "pixel")[0], rel=0.05)


def test_frozen_parts_stay(tmp_path: Path, pairs: Pairs) -> None:
    recipe = replace(TINY, steps=2, freeze=("encode_ref.values", "finish.conv1"))
    trainer = Trainer(recipe, pairs(), tmp_path)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.run()
    for name, after in trainer.model.state_dict().items():
        assert torch.equal(before[name], after) == name.startswith(recipe.freeze), name
    with pytest.raises(AmsaError, match=r"freeze names encode_ref\.vals, which the network does not have; parts are encode_lr"):
        Trainer(replace(TINY, freeze=("encode_ref.vals",)), pairs(), tmp_path / "other")


def test_offset_convolutions_have_their_own_rates(tmp_path: Path, pairs: Pairs) -> None:
    trainer = Trainer(replace(TINY, offset_rates=(0.0, 1.0, 1.0)), pairs(), tmp_path)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.run()
    for name in ("offset_conv1", "offset_conv2", "offset_mask"):
        for i, still in enumerate((True, False, False)):
            key = f"restore.scales.{i}.aggregation.{name}.bias"
            assert torch.equal(before[key], trainer.model.state_dict()[key]) == still, key


@pytest.mark.slow
def test_the_loss_falls_and_the_best_weights_are_kept(tmp_path: Path, pairs: Pairs) -> None:
    scores = iter([1.0, 3.0, 2.0])
    recipe = replace(TINY, steps=45, batch=4, save_every=15, validate_every=15, extra_scale=0.0, lr=2e-3, warmup=5)
    seen: list[Progress] = []
    Trainer(recipe, pairs(200), tmp_path, lambda model: next(scores), report=seen.append).run()
    losses = log(tmp_path, "loss")
    assert len(losses) == 3
    assert losses[-1] < 0.9 * losses[0]
    assert log(tmp_path, "validation_psnr") == [1.0, 3.0, 2.0]
    assert load_checkpoint(tmp_path / "best.safetensors")[1]["step"] == 30
    assert [p.step for p in seen] == list(range(1, 46))
    assert seen[-1].seconds_left == 0 < seen[20].seconds_left


def test_a_run_begins_with_a_checkpoint(tmp_path: Path, pairs: Pairs) -> None:
    model = AMSA(AMSAConfig.small())
    model.reset_parameters(5)
    save_checkpoint(tmp_path / "init.safetensors", model, {"trained": True})
    trainer = Trainer(TINY, pairs(), tmp_path / "run", init=tmp_path / "init.safetensors")
    assert torch.equal(trainer.model.finish.conv1.weight, model.finish.conv1.weight)
    save_checkpoint(tmp_path / "paper.safetensors", AMSA(AMSAConfig.paper(16, 1, 4)), {})
    with pytest.raises(AmsaError, match="a paper network of another config than the recipe's small"):
        Trainer(TINY, pairs(), tmp_path / "run", init=tmp_path / "paper.safetensors")


def test_tensorboard_events_are_written(tmp_path: Path, pairs: Pairs) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Trainer(replace(TINY, steps=2), pairs(), tmp_path, tensorboard=True).run()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Scalars("restoration/loss")
    assert event.step == 2
    assert event.value == pytest.approx(log(tmp_path, "loss")[0], abs=1e-4)


# ------------------------------------------------------------------------------------------------ failures


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_state(tmp_path: Path, pairs: Pairs) -> None:
    Trainer(TINY, pairs(), tmp_path).run(2)
    before = (tmp_path / "state.safetensors").read_bytes()
    trainer = Trainer(TINY, pairs(), tmp_path)
    with torch.no_grad():
        trainer.model.finish.conv1.weight[0] = torch.nan
    with pytest.raises(AmsaError, match=r"the loss is nan at step 2; the last good state is kept in .*state\.safetensors"):
        trainer.run()
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_a_full_disk_keeps_the_state_before(tmp_path: Path, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainer(TINY, pairs(), tmp_path).run(2)
    before = (tmp_path / "state.safetensors").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("amsa.training.state.save_file", full)
    with pytest.raises(AmsaError, match=r"No space left on device.*the state before is kept"):
        Trainer(TINY, pairs(), tmp_path).run(4)
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


_KILLED = """
import os, sys
from pathlib import Path
import amsa.training.state as state
from amsa.training.loop import Trainer
from amsa.training.recipe import read_recipe
from amsa.training.run import Sources, train

def half(tensors, path, metadata):
    Path(path).write_bytes(b"half a file")
    os._exit(9)

folder, photos, step = sys.argv[1:]
if step == "4":
    state.save_file = half
train(read_recipe(Path(folder) / "r.toml"), Sources([Path(photos)]), Path(folder), until=int(step))
"""


def test_a_run_killed_while_saving_goes_on_from_the_state_before(tmp_path: Path, photo_folder: Path) -> None:
    (tmp_path / "r.toml").write_text("variant='small'\nsteps=6\nbatch=1\ncrop=64\nref=64\nsave_every=2\n")
    place = tmp_path / "restoration"

    def run(step: int) -> int:
        command = [sys.executable, "-c", _KILLED, str(tmp_path), str(photo_folder), str(step)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert run(2) == 0
    before = (place / "state.safetensors").read_bytes()
    assert run(4) == 9
    assert (place / "state.safetensors").read_bytes() == before
    assert (place / "state.safetensors.tmp").read_bytes() == b"half a file"
    assert run(6) == 0  # from step 2
    assert load_checkpoint(place / "last.safetensors")[1]["step"] == 6
    assert not (place / "state.safetensors.tmp").exists()


def test_a_changed_recipe_is_told(tmp_path: Path, pairs: Pairs) -> None:
    Trainer(TINY, pairs(), tmp_path).run(2)
    with pytest.warns(UserWarning, match=r"the recipe has changed since .*: steps 4 -> 6, lr 0.0005 -> 0.001$"):
        Trainer(replace(TINY, steps=6, lr=1e-3), pairs(), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(TINY, pairs(), tmp_path)


def test_the_state_of_another_run_is_refused(tmp_path: Path, pairs: Pairs) -> None:
    Trainer(TINY, pairs(), tmp_path).run(2)
    with pytest.raises(AmsaError, match="was trained with seed 0, the recipe says 1; start in another folder"):
        Trainer(replace(TINY, seed=1), pairs(), tmp_path)
    with pytest.raises(AmsaError, match=r"of another network .*start in another folder"):
        Trainer(replace(TINY, variant="paper"), pairs(), tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises(AmsaError, match="not a training state"):
        Trainer(TINY, pairs(), tmp_path)
