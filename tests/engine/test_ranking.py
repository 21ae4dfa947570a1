"""Which photos serve best as references: order, what is left out, every variant, and the sizes that engines take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from amsa import AmsaError, Upscaler
from amsa.config import AMSAConfig
from amsa.engine.backends import HostExecution
from amsa.engine.candidates import MAX_REFS, candidates_below, choose
from amsa.engine.engine_shapes import LR_SIZES, REF_SIZES, parse_sizes
from amsa.engine.images import Photo, from_array, read_photo, resize_bicubic
from amsa.engine.ranking import Thumbnails, rank

from ..conftest import Run
from ..cuda.cpu_driver import run_on_driver
from ..test_command_line import check_refused
from .test_upscaler import PUBLISHED, checkpoint, picture

Pixels = NDArray[np.uint8]


def scene(seed: int) -> Pixels:
    """A picture [256, 320, 3] of large and small shapes."""
    coarse, fine = (picture(64, 80, seed), picture(256, 320, 100 + seed))
    large = np.asarray(Image.fromarray(coarse).resize((320, 256), Image.Resampling.BICUBIC), np.float32)
    return np.clip(0.7 * large + 0.3 * fine, 0, 255).astype(np.uint8)


def view(pixels: Pixels) -> Pixels:
    """Another view: turned, a part of it, brighter."""
    turned = Image.fromarray(pixels).rotate(6, Image.Resampling.BICUBIC).crop((30, 25, 300, 235)).resize((300, 233))
    return np.clip(np.asarray(turned, np.float32) * 1.1, 0, 255).astype(np.uint8)


def small(pixels: Pixels, factor: int = 4) -> Photo:
    return Photo(resize_bicubic(from_array(pixels).rgb, pixels.shape[0] // factor, pixels.shape[1] // factor))


@pytest.fixture(scope="module")
def shipped() -> Upscaler:
    return Upscaler(threads=1)


# ------------------------------------------------------------------------------------------------ order


@pytest.mark.parametrize("wanted", range(4))
@pytest.mark.parametrize("part", [np.s_[:], np.s_[40:210, 60:240]])
def test_another_view_comes_first(shipped: Upscaler, wanted: int, part: Any) -> None:
    lr = small(scene(wanted)[part])
    order = rank(shipped.backend_in_use, lr, [from_array(view(scene(seed))) for seed in range(12)])
    assert order[0].candidate == wanted
    assert sorted(ranked.candidate for ranked in order) == list(range(12))
    relevances = [ranked.relevance for ranked in order]
    assert relevances == sorted(relevances, reverse=True)
    assert 0 < relevances[-1] < relevances[1] < relevances[0] - 0.02 < 1


def test_arrays_pictures_and_files(shipped: Upscaler, tmp_path: Path) -> None:
    Image.fromarray(view(scene(1))).save(tmp_path / "b.png")
    refs = [scene(2), Image.fromarray(scene(3)), tmp_path / "b.png", str(tmp_path / "b.png")]
    (first, relevance), second, *_ = shipped.rank_references(np.asarray(Image.fromarray(scene(1)).resize((80, 64))), refs)
    assert (first, second.candidate) == (2, 3)  # among equals the order of the list
    assert relevance == second.relevance


def test_progress_counts_candidates(shipped: Upscaler) -> None:
    calls: list[tuple[int, int, str]] = []
    photos = [from_array(picture(64, 64, seed)) for seed in range(3)]
    rank(shipped.backend_in_use, from_array(picture(16, 16)), photos, progress=lambda *call: calls.append(call))
    assert [(done, total) for done, total, _ in calls] == [(0, 3), (1, 3), (2, 3)]


def test_what_is_left_out_is_told(shipped: Upscaler, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    refs = [tmp_path / "text.png", picture(63, 80), picture(64, 64), tmp_path / "absent.jpg"]
    with pytest.warns(UserWarning, match="left out of the references") as told:
        order = shipped.rank_references(picture(16, 16), refs)
    assert [ranked.candidate for ranked in order] == [2]
    for words, warning in zip(("text.png is damaged", "reference 2 is 80x63", "absent.jpg does not exist"), told, strict=True):
        assert words in str(warning.message)


def test_an_lr_picture_has_sixteen_pixels(shipped: Upscaler) -> None:
    with pytest.raises(AmsaError, match="LR is 20x15"):
        shipped.rank_references(picture(15, 20), [picture(64, 64)])


# ------------------------------------------------------------------------------------------------ variants and backends


@pytest.mark.parametrize("config", [PUBLISHED, replace(AMSAConfig.paper(8, 1, 4), ref_scales=2)], ids=["published", "paper"])
def test_other_variants(tmp_path: Path, config: AMSAConfig) -> None:
    """Random features are features too: a picture's own thumbnail is nearer than others."""
    upscaler = Upscaler(checkpoint(tmp_path, config), threads=1)
    refs = [from_array(pixels) for pixels in (scene(1), scene(0), picture(64, 200, 2))]
    assert rank(upscaler.backend_in_use, small(scene(0)), refs)[0].candidate == 1


class Recorder(HostExecution):
    """A backend that keeps the shapes of what it is given; every relevance is 0.5."""

    def __init__(self, config: AMSAConfig) -> None:
        self.config = config
        self.pictures: dict[str, list[tuple[int, ...]]] = {"lr": [], "ref": []}

    @contextmanager
    def call(self) -> Iterator[Recorder]:
        yield self

    def run(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        if stage == "match":
            grid, (rows, cols) = inputs["key_1"].shape[2:], inputs["valid"][0]
            assert 1 <= rows <= grid[0]
            assert 1 <= cols <= grid[1]
            return {"relevance": np.full((1, 1, *inputs["query_1"].shape[2:]), 0.5, np.float32)}
        ((name, tensor),) = inputs.items()
        assert tensor.dtype == np.float32
        self.pictures[name].append(tensor.shape[2:])
        prefix, divisor = {"lr": ("query", 1), "ref": ("key", 4)}[name]
        return {f"{prefix}_1": np.zeros((1, 1, *(side // divisor for side in tensor.shape[2:])), np.float32)}


@pytest.mark.parametrize("lr", [(16, 16), (17, 20), (40, 512), (512, 512), (384, 16), (300, 200)])
@pytest.mark.parametrize("config", [AMSAConfig.small(), AMSAConfig.published()], ids=["small", "published"])
def test_pictures_fit_the_engines(lr: tuple[int, int], config: AMSAConfig) -> None:
    backend: Any = Recorder(config)
    refs = [(64, 64), (64, 1000), (900, 70), (200, 300), (65, 127)]
    order = rank(backend, Photo(np.zeros((*lr, 3), np.float32)), [Photo(np.zeros((*ref, 3), np.float32)) for ref in refs])
    assert [tuple(ranked) for ranked in order] == [(i, 0.5) for i in range(len(refs))]
    limits = {"lr": parse_sizes(LR_SIZES, "", 16), "ref": [(4 * h, 4 * w) for h, w in parse_sizes(REF_SIZES, "", 8)]}
    for name, multiple in (("lr", 8), ("ref", 32)):
        for size in backend.pictures[name]:
            for side, low, high in zip(size, limits[name][0], limits[name][2], strict=True):
                assert low <= side <= high
                assert side % multiple == 0
    assert len(backend.pictures["lr"]) <= 2 * len(set(backend.pictures["ref"]))  # LR is not encoded for every candidate


def test_on_the_cpu_driver() -> None:
    run_on_driver(Path(__file__).parent / "on_driver" / "check_ranking.py")


# ------------------------------------------------------------------------------------------------ files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """refs/ with two pictures, one in a folder of its own, and what is no candidate; lr.png beside it."""
    refs = tmp_path / "refs"
    (refs / "deep").mkdir(parents=True)
    (refs / ".cache").mkdir()
    for name, seed in (("b.png", 1), ("deep/a.JPG", 2), (".cache/c.png", 3), (".d.png", 4)):
        Image.fromarray(view(scene(seed))).save(refs / name)
    (refs / "notes.txt").write_text("hello")
    Image.fromarray(scene(1)).resize((80, 64), Image.Resampling.BICUBIC).save(tmp_path / "lr.png")
    return tmp_path


def test_candidates_below_a_folder(folder: Path) -> None:
    refs = folder / "refs"
    (refs / "link.png").symlink_to(refs / "b.png")
    (refs / "lr.png").symlink_to(folder / "lr.png")
    with pytest.warns(UserWarning, match="references|pictures") as told:
        found = candidates_below(refs, [refs / "deep" / "a.JPG"], leave_out=[folder / "lr.png", folder / "absent.png"])
    assert found == [refs / "deep" / "a.JPG", refs / "b.png"]  # each once, those given first
    with pytest.warns(UserWarning, match="no pictures"):
        assert refs / "deep" / "a.JPG" not in candidates_below(refs, leave_out=[refs / "deep" / ".." / "deep"])
    assert "lr.png is the LR photo or the result" in str(told[0].message)
    assert "1 .txt" in str(told[1].message)
    with pytest.raises(AmsaError, match="is not a folder"):
        candidates_below(folder / "absent")


def test_the_best_are_read_and_a_broken_one_makes_room(folder: Path, shipped: Upscaler) -> None:
    files = []
    for seed in range(4):
        files.append(folder / f"{seed}.png")
        Image.fromarray(view(scene(seed))).save(files[-1])
    backend, lr = shipped.backend_in_use, small(scene(2))
    (first,), (photo,) = choose(backend, lr, files, 1, read_photo)
    assert first == 2
    np.testing.assert_array_equal(photo.rgb, from_array(view(scene(2))).rgb)

    def broken(path: Path) -> Photo:
        if path == files[2]:
            raise AmsaError(f"{path} is cut short")
        return read_photo(path)

    with pytest.warns(UserWarning, match="is cut short"):
        places, _ = choose(backend, lr, files, 2, broken)
    assert len(places) == 2
    assert 2 not in places
    with pytest.warns(UserWarning, match="is cut short"), pytest.raises(AmsaError, match="none of 1 files can be a reference"):
        choose(backend, lr, [files[2]], 1, broken)


def test_thumbnails_are_encoded_once_for_many_pictures(folder: Path, shipped: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [folder / f"{seed}.png" for seed in range(4)]
    for seed, path in enumerate(files):
        Image.fromarray(view(scene(seed))).save(path)
    backend, first, second = shipped.backend_in_use, small(scene(2)), small(scene(3), 5)
    expected = [rank(backend, lr, files) for lr in (first, second)]
    encoded: list[str] = []
    run_stage = backend.run
    monkeypatch.setattr(backend, "run", lambda stage, inputs: encoded.append(stage) or run_stage(stage, inputs))
    kept = Thumbnails(10**9)
    assert [rank(backend, lr, files, kept=kept) for lr in (first, second)] == expected
    assert encoded.count("encode_ref") == 4
    Image.fromarray(view(scene(3))[:200]).save(files[0])  # another picture under a known name
    assert rank(backend, second, files, kept=kept) == rank(backend, second, files)
    one = next(iter(kept._kept.values()))
    few = Thumbnails(2 * sum(values.nbytes for values in one.values()))
    encoded.clear()
    assert [rank(backend, first, files[1:], kept=few) for _ in range(2)] == [rank(backend, first, files[1:])] * 2
    assert encoded.count("encode_ref") == 3 + 1 + 3


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_chooses_from_a_folder(run: Run, folder: Path) -> None:
    for seed in range(5, 9):
        Image.fromarray(view(scene(seed))).save(folder / "refs" / f"{seed}.png")
    (folder / "refs" / "broken.png").write_bytes((folder / "refs" / "b.png").read_bytes()[:500])
    arguments = "upscale", folder / "lr.png", "--refs", folder / "refs", "-o", folder / "sr.png", "--threads", 1
    code, out, err = run(*arguments, "--max-refs", 1)
    assert code == 0, err
    assert "references: b.png 100 %; of 7 candidates" in out.splitlines()
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert ["1 .txt" in notes[0], "broken.png" in notes[1]] == [True, True]

    code, out, _ = run(*arguments, "--json")
    report = json.loads(out)
    assert (code, report["candidates"], len(report["references"])) == (0, 7, MAX_REFS)
    assert sum(ref["weight"] for ref in report["references"]) == pytest.approx(1, abs=1e-4)
    assert report["references"][0]["file"] == str(folder / "refs" / "b.png")
    assert report["seconds"]["rank"] > 0


def test_the_command_says_which_references_served(run: Run, folder: Path) -> None:
    refs = [folder / "refs" / "b.png", folder / "refs" / "deep" / "a.JPG"]
    code, out, err = run("upscale", folder / "lr.png", *refs, "-o", folder / "sr.png", "--threads", 1)
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("references: ")]
    name, share = line.removeprefix("references: ").split(",")[0].split(" ")[:2]
    assert (name, int(share) > 50) == ("b.png", True)
    one = run("upscale", folder / "lr.png", refs[0], "-o", folder / "sr.png", "--threads", 1)[1]
    assert "references: " not in one


def test_the_command_refuses(run: Run, folder: Path) -> None:
    lr, sr = folder / "lr.png", folder / "sr.png"
    check_refused(run("upscale", lr, "-o", sr), "no reference photo", "--refs")
    check_refused(run("upscale", lr, "--refs", folder / "absent", "-o", sr), "absent is not a folder")
    (folder / "empty").mkdir()
    check_refused(run("upscale", lr, "--refs", folder / "empty", "-o", sr), "empty", "no picture")
    same = run("upscale", folder / "refs", "--refs", folder / "refs", "-o", folder / "out")
    check_refused(same, "no picture to upscale", "they are references")
    assert not sr.exists()
