"""The protocol: scores by hand, published scores, references, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from amsa import AmsaError, Upscaler
from amsa.config import AMSAConfig
from amsa.engine.demo import load_pair, shrink
from amsa.engine.images import Photo, to_array
from amsa.engine.metrics import luma, psnr, ssim
from amsa.training.evaluation.experiments import GAMMAS, paper, settings
from amsa.training.evaluation.protocol import Protocol, Result, Setting, score
from amsa.training.layouts import Case, Layout

GOLDEN = Path(__file__).parents[2] / "golden"


def picture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Three pictures of 70x67 with two references of 64x72 each."""
    folder = tmp_path_factory.mktemp("data")
    for i in range(3):
        Image.fromarray(picture(67, 70, i)).save(folder / f"{i}_0.png")
        for level in (1, 2):
            Image.fromarray(picture(72, 64, 10 * level + i)).save(folder / f"{i}_{level}.png")
    return [Case(str(i), folder / f"{i}_0.png", (folder / f"{i}_1.png", folder / f"{i}_2.png")) for i in range(3)]


class Recorder:
    """Stands for the network: gives the LR's pixels x4, and keeps what it was given."""

    config = AMSAConfig.small()
    value = 0.0

    def upscale_photo(self, lr: Photo, refs: list[Photo], *, seed: int, names: list[str]) -> Photo:
        self.lr, self.refs, self.seed, self.names = lr, refs, seed, names
        return Photo(lr.rgb.repeat(4, 0).repeat(4, 1) + np.float32(self.value))


def run(recorder: Recorder, cases: list[Case], setting: Setting, index: int = 0, seed: int = 0) -> Result:
    return Protocol(recorder, seed).run(cases, index, setting)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.golden
def test_published_scores() -> None:
    golden = np.load(GOLDEN / "metrics.npz")
    a, b = (golden[name][..., ::-1].astype(np.float64) for name in ("a_bgr", "b_bgr"))
    found = score(a, b)
    assert found.psnr == pytest.approx(float(golden["psnr_y"]), abs=1e-6)
    assert found.ssim == pytest.approx(float(golden["ssim_y"]), abs=1e-6)


def test_scores_by_hand(cases: list[Case]) -> None:
    upscaler = Upscaler(threads=1)
    kept: dict[str, Photo] = {}
    result = Protocol(upscaler, seed=3).run(cases, 1, Setting("x", count=2), lambda name, sr: kept.update({name: sr}))
    truth = np.asarray(Image.open(cases[1].hr))[:64, :68]
    # bicubic in float32, channel by channel, then 8 bits
    small = [Image.fromarray(truth[..., c].astype(np.float32)).resize((17, 16), Image.Resampling.BICUBIC) for c in range(3)]
    lr = np.clip(np.stack(small, 2) + 0.5, 0, 255).astype(np.uint8)
    large = [Image.fromarray(lr[..., c].astype(np.float32)).resize((68, 64), Image.Resampling.BICUBIC) for c in range(3)]
    bicubic = np.clip(np.stack(large, 2) + 0.5, 0, 255).astype(np.uint8)
    sr = upscaler.upscale(lr, [np.asarray(Image.open(path)) for path in cases[1].refs], seed=3)
    assert isinstance(sr, np.ndarray)
    for found, hand in ((result.amsa, sr), (result.bicubic, bicubic)):
        assert found.psnr == pytest.approx(psnr(luma(hand), luma(truth), 4), abs=1e-3)
        assert found.ssim == pytest.approx(ssim(luma(hand), luma(truth), 4), abs=1e-5)
    assert result.gain == result.amsa.psnr - result.bicubic.psnr
    assert (result.name, result.width, result.height) == ("1", 68, 64)
    assert (result.reference, result.references) == ("given", ("1_1.png", "1_2.png"))
    assert np.array_equal(np.floor(kept["1"].rgb * 255 + 0.5), sr)


def test_pillows_own_rounding_matters_little() -> None:
    """The published code lets Pillow resize bytes, which rounds after columns and after rows."""
    pytest.importorskip("skimage")
    truth, _ = load_pair()
    pixels = to_array(truth)
    size = truth.width, truth.height
    small = Image.fromarray(pixels).resize((size[0] // 4, size[1] // 4), Image.Resampling.BICUBIC)
    theirs = np.asarray(small.resize(size, Image.Resampling.BICUBIC))
    assert abs(score(to_array(shrink(truth)[1]), pixels).psnr - score(theirs, pixels).psnr) < 0.01


def test_published_models_crop_to_32(cases: list[Case]) -> None:
    recorder = Recorder()
    recorder.config = AMSAConfig.published(8, 1, 4)
    assert run(recorder, cases, Setting("x")).width == 64


# ------------------------------------------------------------------------------------------------ references


def test_references_are_used_as_they_are(cases: list[Case]) -> None:
    recorder = Recorder()
    assert run(recorder, cases, Setting("x", first=1)).references == ("0_2.png",)
    assert np.array_equal(recorder.refs[0].rgb * 255, np.asarray(Image.open(cases[0].refs[1])))
    assert recorder.names == ["0_0.png, shrunk", "0_2.png"]


def test_lr_as_reference(cases: list[Case], tmp_path: Path) -> None:
    recorder = Recorder()
    result = run(recorder, cases, Setting("LR", "lr"))
    assert result.reference == "lr x4"
    assert recorder.refs[0].rgb.shape == (64, 68, 3)
    Image.fromarray(picture(256, 260, 5)).save(tmp_path / "large.png")
    assert run(recorder, [Case("large", tmp_path / "large.png")], Setting("LR", "lr")).reference == "lr"
    assert recorder.refs == [recorder.lr]


def test_irrelevant_references(cases: list[Case]) -> None:
    recorder = Recorder()
    drawn = [
        [run(recorder, cases, Setting("x", "irrelevant"), i, seed).references[0] for i in range(3)] for seed in (0, 0, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1]
    assert len({tuple(d) for d in drawn}) > 1
    for names in drawn:
        assert all(name.endswith("_1.png") and not name.startswith(f"{i}_") for i, name in enumerate(names))
    bare = [Case(case.name, case.hr) for case in cases]
    assert run(recorder, bare, Setting("x", "irrelevant")).references[0] in ("1_0.png", "2_0.png")
    with pytest.raises(AmsaError, match="no other picture"):
        run(recorder, bare[:1], Setting("x", "irrelevant"))


def test_misalignment(tmp_path: Path) -> None:
    Image.fromarray(picture(260, 300, 0)).save(tmp_path / "hr.png")
    Image.fromarray(picture(256, 304, 1)).save(tmp_path / "ref.png")
    recorder, cases = Recorder(), [Case("a", tmp_path / "hr.png", (tmp_path / "ref.png",))]
    sizes = {}
    for gamma in (8.0, 4.0, 2.0):
        result = run(recorder, cases, Setting("x", gamma=gamma))
        assert (result.width, result.height) == (148, 128)  # half of 300x260, cropped
        sizes[gamma] = recorder.refs[0].rgb.shape[:2]
    assert sizes == {8.0: (256, 304), 4.0: (128, 152), 2.0: (64, 76)}


# ------------------------------------------------------------------------------------------------ what is refused


def test_refused_pictures(cases: list[Case], tmp_path: Path) -> None:
    recorder = Recorder()
    Image.fromarray(picture(63, 100, 0)).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, message in (("small", "at least 64 pixels"), ("broken", "damaged"), ("gone", "does not exist")):
        with pytest.raises(AmsaError, match=message):
            run(recorder, [Case(name, tmp_path / f"{name}.png", cases[0].refs)], Setting("x"))
    recorder.value = float("nan")
    with pytest.raises(AmsaError, match="no numbers"):
        run(recorder, cases, Setting("x"))


# ------------------------------------------------------------------------------------------------ experiments


def test_settings_of_experiments(cases: list[Case]) -> None:
    cufed5 = Layout("cufed5", [*cases, Case("x", cases[0].hr, cases[0].refs[:1])], [])
    urban = Layout("urban100", [Case(case.name, case.hr) for case in cases], [])
    manga = Layout("manga109", urban.cases, [])
    assert settings("table1", cufed5, refs=5) == [Setting("2 references", count=5)]
    assert [s.reference for layout in (cufed5, urban, manga) for s in settings("table1", layout)] == ["given", "lr", "irrelevant"]
    assert [(s.label, s.first) for s in settings("relevance", cufed5)] == [("L1", 0), ("L2", 1), ("LR", 0)]
    assert [s.gamma for s in settings("misalignment", cufed5)] == list(GAMMAS)
    assert [s.label for s in settings("robustness", cufed5)] == ["given", "irrelevant", "LR"]
    assert [s.label for s in settings("robustness", urban)] == ["irrelevant", "LR"]
    for experiment in ("relevance", "misalignment"):
        with pytest.raises(AmsaError, match="needs references of their own, which urban100 has not"):
            settings(experiment, urban)
    with pytest.raises(AmsaError, match="--experiment table2 does not exist; choose table1"):
        settings("table2", cufed5)


def test_the_papers_numbers() -> None:
    assert paper("table1", "cufed5", Setting("x")) == (28.50, 0.849)
    assert paper("table1", "cufed5", Setting("x", count=5)) is None  # the paper uses one
    assert paper("table1", "wrsr", Setting("x")) is None
    assert paper("relevance", "cufed5", Setting("LR", "lr")) == (26.63, 0.789)
    assert paper("relevance", "sun80", Setting("L1")) is None
