"""`amsa evaluate` from end to end: the report, failures, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amsa import cli
from amsa.config import AMSAConfig
from amsa.model import AMSA, save_checkpoint
from amsa.training.evaluation import run as evaluation
from amsa.training.evaluation.protocol import Protocol
from amsa.training.evaluation.report import finite

Run = Callable[..., tuple[int, str, str]]


def save(path: Path, seed: int, side: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (side // 4, side // 4, 3), np.uint8))
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of random weights, called trained."""
    network = AMSA(replace(AMSAConfig.paper(8, 1, 4), ref_scales=1))
    network.reset_parameters(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(path, network, {"trained": True})
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with CUFED5: two pictures of 64x64 with two references each."""
    for i in range(6):
        save(tmp_path / f"CUFED5/{i // 3:03d}_{i % 3}.png", i)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path) -> Run:
    """Run `amsa evaluate` with the small checkpoint and arguments on one thread; exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["amsa", "evaluate", "-m", str(model), *map(str, arguments), "--threads", "1"])
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            try:
                cli.main()
                code = 0
            except SystemExit as e:
                code = int(e.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


# ------------------------------------------------------------------------------------------------ the report


def test_relevance(run: Run, place: Path) -> None:
    code, out, err = run("CUFED5", "-o", "out", "--experiment", "relevance", "--save-pictures")
    assert code == 0, err
    report = json.loads((place / "out/report.json").read_text())
    markdown = (place / "out/report.md").read_text()
    assert markdown in out
    assert "tiny.safetensors (paper, trained), torch, seed 0." in markdown
    assert [row["setting"] for row in report["rows"]] == ["L1", "L2", "LR"]
    table = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| CUFED5")]
    for row, cells in zip(report["rows"], table, strict=True):
        results = row["results"]
        assert [r["name"] for r in results] == ["000", "001"]
        means = {k: [np.mean([r[k][m] for r in results]) for m in ("psnr", "ssim")] for k in ("bicubic", "amsa")}
        worst = min(results, key=lambda r: r["gain"])
        assert cells[:3] == ["CUFED5", row["setting"], "2"]
        assert cells[3:5] == [f"{p:.2f} / {s:.3f}" for p, s in (means["bicubic"], means["amsa"])]
        assert cells[5] == f"{np.mean([r['gain'] for r in results]):+.2f}"
        assert cells[6] == f"{worst['gain']:+.2f} ({worst['name']})"
        assert cells[7] == str(sum(r["gain"] < 0 for r in results))
    assert [cells[8] for cells in table] == ["28.58 / 0.849", "27.52 / 0.816", "26.63 / 0.789"]
    pictures = sorted(str(p.relative_to(place / "out/pictures")) for p in (place / "out/pictures").rglob("*.png"))
    assert pictures == [f"CUFED5/{s}/{n}.png" for s in ("L1", "L2", "LR") for n in ("000", "001")]
    assert sorted(p.name for p in (place / "out").iterdir()) == ["pictures", "report.json", "report.md"]


def test_several_datasets_as_json(run: Run, place: Path) -> None:
    save(place / "Manga109/a.png", 7)
    save(place / "Manga109/b.png", 8)
    code, out, err = run("CUFED5", "Manga109", "-o", "out", "--limit", 1, "--refs", 2, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report == json.loads((place / "out/report.json").read_text())
    assert [(r["dataset"], r["setting"], r["pictures"]) for r in report["rows"]] == [
        ("CUFED5", "2 references", 1),
        ("Manga109", "another picture as reference", 1),
    ]
    assert [r["results"][0]["references"] for r in report["rows"]] == [["000_1.png", "000_2.png"], ["b.png"]]
    assert [r["paper"] for r in report["rows"]] == [None, {"psnr": 30.57, "ssim": 0.914}]


def test_a_broken_picture_stops_nothing(run: Run, place: Path) -> None:
    (place / "CUFED5/000_1.png").write_bytes(b"no picture")
    save(place / "CUFED5/002_0.png", 9)
    code, out, _ = run("CUFED5", "-o", "out")
    assert code == 1
    report = json.loads((place / "out/report.json").read_text())
    assert [r["name"] for r in report["rows"][0]["results"]] == ["001"]
    assert report["rows"][0]["failed"] == 1
    assert [(f["name"], f["setting"]) for f in report["failures"]] == [("000", "1 reference")]
    assert "1, 1 failed" in out
    assert "- 002: has no reference 002_1" in out
    assert "000_1.png is damaged or no picture" in out


def test_nothing_but_failures(run: Run, place: Path) -> None:
    for path in (place / "CUFED5").iterdir():
        path.write_bytes(b"no picture")
    code, out, _ = run("CUFED5", "-o", "out")
    assert code == 1
    assert "0, 2 failed | - | - | - | - | 0" in out


def test_a_failing_backend_stops_nothing(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no\nmemory")

    monkeypatch.setattr(Protocol, "run", fails)
    code, out, _ = run("CUFED5", "-o", "out")
    assert code == 1
    assert "- CUFED5, 1 reference, 001: RuntimeError: no memory" in out


def test_an_interrupt_keeps_the_rows_so_far(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored, whole = [], Protocol.run

    def interrupted(self: Protocol, cases: object, index: int, setting: object, keep: object) -> object:
        if scored:
            raise KeyboardInterrupt
        scored.append(index)
        return whole(self, cases, index, setting, keep)  # type: ignore[arg-type]

    monkeypatch.setattr(Protocol, "run", interrupted)
    code, out, _ = run("CUFED5", "-o", "out", "--experiment", "robustness", "--limit", 1)
    assert code == 130
    assert "Interrupted" in out
    report = json.loads((place / "out/report.json").read_text())
    assert [row["setting"] for row in report["rows"]] == ["given"]


def test_progress_tells_the_time_left(place: Path, model: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    evaluation.evaluate([place / "CUFED5"], place / "out", model=model, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(0, 2), (1, 2)]
    assert calls[0][2] == "CUFED5, 1 reference: 000"
    assert calls[1][2].endswith(" left")


def test_plots(run: Run, place: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run("CUFED5", "-o", "out", "--experiment", "robustness", "--limit", 1, "--plots")[0] == 0
    for name in ("gains.png", "curve.png"):
        assert Image.open(place / "out" / name).width > 300


def test_the_runtime_is_enough() -> None:
    """Evaluating an exported model needs neither torch nor matplotlib."""
    program = "import sys, amsa.training.evaluation.run; print({'torch', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_equal_pictures_have_no_finite_psnr() -> None:
    assert finite({"a": [float("inf"), 1.5, float("nan")], "b": "x"}) == {"a": [None, 1.5, None], "b": "x"}


# ------------------------------------------------------------------------------------------------ check


def test_check(run: Run, place: Path) -> None:
    code, out, err = run("CUFED5", "--check")
    assert (code, out) == (0, "CUFED5: cufed5, 2 pictures with 2 references each\n  no problems\n"), err
    (place / "CUFED5/000_2.png").unlink()
    (place / "CUFED5/001_2.png").write_bytes(b"")
    code, out, _ = run("CUFED5", "--check")
    assert code == 1
    assert "2 pictures with 1 to 2 references each" in out
    assert "000: has 1 references, others have 2" in out
    assert "001_2.png is empty" in out
    assert not (place / "out").exists()
    code, out, _ = run("CUFED5", "--check", "--json")
    assert code == 1
    assert len(json.loads(out)["datasets"][0]["problems"]) == 2


# ------------------------------------------------------------------------------------------------ user's errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone: no such file or folder"),
        (["empty"], "empty: no usable picture"),
        (["CUFED5", "--kind", "wrsr"], "no folder input nor ref"),
        (["CUFED5", "--kind", "x"], "--kind x does not exist"),
        (["CUFED5", "--experiment", "x"], "--experiment x does not exist"),
        (["CUFED5", "--backend", "x"], "unknown backend 'x'"),
        (["CUFED5", "--backend", "onnxruntime"], "which the onnxruntime backend cannot run"),
        (["CUFED5", "--model", "x"], "x: no such model"),
        (["CUFED5", "--lpips", "x.pt2"], "x.pt2: no such file"),
        (["CUFED5", "--seed", "-1"], "seed is -1"),
        (["CUFED5", "-o", "file"], "file: files cannot be written there"),
    ],
)
def test_users_errors(run: Run, place: Path, arguments: list[str], message: str) -> None:
    (place / "empty").mkdir()
    (place / "file").write_text("x")
    code, out, err = run("-o", "out", *arguments)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not (place / "out/report.json").exists()


def test_plots_need_matplotlib(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amsa.training.evaluation.report.find_spec", lambda name: None)
    code, _, err = run("CUFED5", "-o", "out", "--plots")
    assert code == 2
    assert "pip install 'amsa[evaluate]'" in err
