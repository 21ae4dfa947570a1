"""`amsa train` as a user runs it: one process, two processes, and wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from amsa.model import load_checkpoint

from ..conftest import Run

RECIPE = """
variant = "small"
steps = 3
batch = 4
crop = 64
ref = 64
warmup = 1
save_every = 1
extra_scale = 0.5
[weights]
contrastive = 0.03
flow = 0.03
[mix]
views = 0.0
"""


def amsa(*arguments: object, processes: int = 0) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes else []
    command = [sys.executable, *launcher, "-m", "amsa", "train", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_a_run_ends_with_weights_that_load(tmp_path: Path, photo_folder: Path, recipe: Path) -> None:
    (photo_folder / "broken.png").write_bytes(b"no picture")
    done = amsa(recipe, "-o", tmp_path / "run", "--photos", photo_folder, "--validation", _pairs(tmp_path), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"weights: {tmp_path}/run/restoration/best.safetensors"
    assert "skipped" in done.stderr
    assert "broken.png" in done.stderr
    assert "3 photos, 0 overlapping pairs of 0 scenes, 0 given pairs, 12 pairs to validate on, 2 skipped" in done.stderr
    assert "restoration 3/3, 0:00 h left loss" in done.stderr
    _, metadata = load_checkpoint(tmp_path / "run" / "restoration" / "best.safetensors")
    assert metadata["recipe"]["crop"] == 64
    again = amsa(recipe, "-o", tmp_path / "run", "--photos", photo_folder, "--device", "cpu")
    assert "from step 3 of 3" in again.stderr


@pytest.mark.slow
def test_two_processes_train_as_one_with_their_batches_together(tmp_path: Path, photo_folder: Path, recipe: Path) -> None:
    for processes in (0, 2):
        done = amsa(recipe, "-o", tmp_path / str(processes), "--photos", photo_folder, "--device", "cpu", processes=processes)
        assert done.returncode == 0, done.stderr
    # Not the weights: Adam moves one whose gradient is all rounding by as much as any other. Its moments are means of gradients;
    # here they differ by at most 0.4 % of a tensor's largest, and by more than 2 % where processes do not average theirs.
    one, two = (load_file(tmp_path / n / "restoration" / "state.safetensors") for n in ("0", "2"))
    moments = [name for name in one if name.endswith(".exp_avg")]
    assert len(moments) > 100
    for name in moments:
        torch.testing.assert_close(two[name], one[name], atol=0.02 * float(one[name].abs().max()), rtol=0, msg=name)
    logs = [(tmp_path / n / "restoration" / "log.jsonl").read_text().splitlines() for n in ("0", "2")]
    assert len(logs[0]) == len(logs[1]) == 3  # one process writes
    for mine, theirs in zip(*logs, strict=True):
        assert json.loads(theirs)["loss"] == pytest.approx(json.loads(mine)["loss"], rel=1e-3)


def test_given_pairs_train(tmp_path: Path, recipe: Path) -> None:
    done = amsa(recipe, "-o", tmp_path / "run", "--pairs", _pairs(tmp_path), "--device", "cpu", "--until", 1)
    assert done.returncode == 0, done.stderr
    assert "0 photos, 0 overlapping pairs of 0 scenes, 2 given pairs" in done.stderr
    assert "unpaired" in done.stderr


def test_wrong_input_is_one_line(run: Run, tmp_path: Path, photo_folder: Path, recipe: Path) -> None:
    def error(*arguments: object) -> str:
        code, _, err = run("train", *arguments)
        assert code == 2, err
        assert "Traceback" not in err
        return str(err.strip().splitlines()[-1])

    (tmp_path / "empty").mkdir()
    to = ("-o", tmp_path / "run")
    assert "nothing to train on: give --photos or --pairs" in error(recipe, *to)
    assert "no usable photo in" in error(recipe, *to, "--photos", tmp_path / "empty")
    assert "no such folder of training photos" in error(recipe, *to, "--photos", tmp_path / "absent")
    assert "no two photos in it show the same place" in error(recipe, *to, "--photos", photo_folder, "--views", photo_folder)
    assert "stage teacher learns from known correspondences" in error("paper", *to, "--pairs", _pairs(tmp_path))
    assert "--device tpu does not exist" in error(recipe, *to, "--photos", photo_folder, "--device", "tpu")
    assert "cannot be made a folder" in error(recipe, "-o", recipe / "x", "--photos", photo_folder)
    assert "one of paper, published, small" in error("huge", *to, "--photos", photo_folder)
    assert "no such file" in error(recipe, *to, "--photos", photo_folder, "--init", tmp_path / "absent.safetensors")


def _pairs(tmp_path: Path) -> Path:
    """CUFED's layout with two pairs and a picture without a reference."""
    folder = tmp_path / "cufed"
    for name in ("input", "ref"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed, stem in enumerate(("a", "b", "unpaired")):
        picture = cv2.resize(np.random.default_rng(seed).random((20, 20, 3)), (96, 96), interpolation=cv2.INTER_CUBIC)
        image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
        image.save(folder / "input" / f"{stem}.png")
        if stem != "unpaired":
            image.save(folder / "ref" / f"{stem}.png")
    return folder
