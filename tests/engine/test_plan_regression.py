"""The engines of the shipped model for SM 7.5 stay as good as they were: `plan_facts.json` says how many kernels, transposes and
how much scratch memory they had. After a change for the better, or one that is worth its price, record it anew:

    python -m tests.engine.test_plan_regression
"""

from __future__ import annotations

import json
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from amsa.engine.backends import SHIPPED_ENGINE_MODEL
from amsa.engine.plan_facts import read_plan
from amsa.engine.tensorrt_build import build_engines
from amsa.engine.tensorrt_module import import_tensorrt

RECORD = Path(__file__).with_name("plan_facts.json")
MORE_SCRATCH = 1.05
"""How much scratch memory may grow: TensorRT lays it out a little differently from build to build."""
UPDATE = "record it with: python -m tests.engine.test_plan_regression"

Facts = dict[str, Any]


def collect(folder: Path) -> Facts:
    """Build the engines, and what they contain."""
    stages: Facts = {}
    for engine in build_engines(SHIPPED_ENGINE_MODEL, ["sm75"], output=folder):
        facts = read_plan(engine.path.read_bytes(), engine.path)
        stages[engine.path.stem] = {
            "layers": facts.layers,
            "plugins": len(facts.plugins),
            "convolutions": dict(sorted(facts.convolutions.items())),
            "transposes": facts.transposes,
            "scratch_mb": round(facts.scratch / 1e6, 1),
        }
    return {"tensorrt_rtx": import_tensorrt("rtx").__version__, "target": "sm75", "stages": stages}


def compare(recorded: Facts, found: Facts) -> tuple[list[str], list[str]]:
    """What is worse than recorded, and what is better or only different, a line each."""
    worse, better = [], []
    for stage in sorted(recorded["stages"].keys() | found["stages"].keys()):
        was, now = recorded["stages"].get(stage), found["stages"].get(stage)
        if was is None or now is None:
            worse.append(f"{stage}: is {'new' if was is None else 'gone'}; {UPDATE}")
            continue
        if (was["plugins"], was["convolutions"]) != (now["plugins"], now["convolutions"]):
            better.append(f"{stage}: {now['plugins']} plugins and convolutions {now['convolutions']}, not as recorded; {UPDATE}")
        for what, allowed in (("layers", 1.0), ("transposes", 1.0), ("scratch_mb", MORE_SCRATCH)):
            if now[what] > was[what] * allowed:
                worse.append(f"{stage}: {what} {now[what]}, was {was[what]}")
            elif now[what] < was[what] / allowed:
                better.append(f"{stage}: {what} {now[what]}, was {was[what]}; {UPDATE}")
    return worse, better


def test_engines_are_no_worse_than_recorded(tmp_path: Path) -> None:
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install 'amsa[rtx]'")
    recorded = json.loads(RECORD.read_text())
    version = import_tensorrt("rtx").__version__
    if version != recorded["tensorrt_rtx"]:
        pytest.skip(f"{RECORD.name} was recorded with TensorRT-RTX {recorded['tensorrt_rtx']}, and this is {version}; {UPDATE}")
    worse, better = compare(recorded, collect(tmp_path))
    for line in better:
        warnings.warn(line, stacklevel=1)
    assert not worse, "\n".join(worse)


@pytest.mark.parametrize(
    ("change", "worse", "better"),
    [
        ({}, [], []),
        ({"layers": 73}, ["restore: layers 73, was 72"], []),
        ({"transposes": 4}, ["restore: transposes 4, was 3"], []),
        ({"scratch_mb": 104.9}, [], []),
        ({"scratch_mb": 105.1}, ["restore: scratch_mb 105.1, was 100.0"], []),
        (
            {"layers": 60, "transposes": 0},
            [],
            [f"restore: layers 60, was 72; {UPDATE}", f"restore: transposes 0, was 3; {UPDATE}"],
        ),
        ({"scratch_mb": 50.0}, [], [f"restore: scratch_mb 50.0, was 100.0; {UPDATE}"]),
        ({"plugins": 5}, [], ["restore: 5 plugins and convolutions {'half': 40}, not as recorded; " + UPDATE]),
    ],
)
def test_what_counts_as_worse(change: Facts, worse: list[str], better: list[str]) -> None:
    was = {"layers": 72, "plugins": 6, "convolutions": {"half": 40}, "transposes": 3, "scratch_mb": 100.0}
    assert compare({"stages": {"restore": was}}, {"stages": {"restore": {**was, **change}}}) == (worse, better)
    assert compare({"stages": {"restore": was}}, {"stages": {}}) == ([f"restore: is gone; {UPDATE}"], [])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        RECORD.write_text(json.dumps(collect(Path(scratch)), indent=2) + "\n")
    print(f"recorded {RECORD}")
