"""What `--explain` writes: maps that name the right reference and place, numbers, pictures, and a page that works."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from amsa import AmsaError, Upscaler
from amsa.config import AMSAConfig
from amsa.engine.details import Details, served_line, short_names
from amsa.engine.explain import check_folder, write_explanation
from amsa.engine.explain.maps import Maps, make_maps, matched_picture, regions
from amsa.engine.explain.pictures import colours
from amsa.engine.explain.writing import FILES
from amsa.engine.images import Photo, from_array, read_photo, resize_bicubic

from ..browser import OpenPage
from ..conftest import Run
from ..test_command_line import check_refused
from .test_ranking import scene
from .test_upscaler import PUBLISHED, checkpoint, picture

HOSTILE = ["lr.png", "<script>alert('x')<!--.png", '"quoted" & &amp; <b>bold.png']

SPOT = "document.getElementById('place')"
DRAWN = """() => {
    const [drawn, blank] = [document.getElementById("there"), document.createElement("canvas")];
    [blank.width, blank.height] = [drawn.width, drawn.height];
    return drawn.toDataURL() !== blank.toDataURL();
}"""


class Case:
    """A picture whose left half one reference shows, and whose right half another, each shifted by (8, 12)."""

    def __init__(self, folder: Path) -> None:
        whole = scene(0)[:192, :256]
        shifted = np.roll(whole, (8, 12), (0, 1))
        left, right = shifted.copy(), shifted.copy()
        left[:, 140:], right[:, :140] = scene(5)[:192, 140:256], scene(6)[:192, :140]
        self.lr = Photo(resize_bicubic(from_array(whole).rgb, 48, 64))
        self.refs = [from_array(left), from_array(right)]
        upscaler = Upscaler(threads=1)
        self.config, self.details = upscaler.config, Details()
        self.sr = upscaler.upscale_photo(self.lr, self.refs, details=self.details)
        self.maps = make_maps(self.details, self.refs, self.config)
        self.folder = folder
        check_folder(folder)
        self.write(folder)

    def write(self, folder: Path) -> None:
        write_explanation(
            folder, self.lr, self.refs, self.sr, self.details, self.config, names=HOSTILE, model="small model, onnxruntime"
        )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case") / "deep" / "explained")


# ------------------------------------------------------------------------------------------------ maps


def test_collecting_details_changes_nothing(case: Case) -> None:
    assert np.array_equal(Upscaler(threads=1).upscale_photo(case.lr, case.refs).rgb, case.sr.rgb)
    assert len(case.details.matches) == len(case.details.relevances) == len(case.details.weights) == 10
    used = [weight for weight in case.details.weights if weight is not None]
    np.testing.assert_allclose(np.sum(used, 0), 1, atol=1e-5)
    assert sum(case.details.served()) == pytest.approx(1, abs=1e-5)


def test_each_half_came_from_its_reference_and_place(case: Case) -> None:
    maps = case.maps
    assert maps.reference.shape == (48, 64)
    left, right = np.s_[4:44, 4:28], np.s_[4:44, 38:60]
    assert (maps.reference[left] == 0).mean() > 0.9
    assert (maps.reference[right] == 1).mean() > 0.9
    for part, reference in ((left, 0), (right, 1)):
        i, j = np.indices((48, 64))
        mine = maps.reference[part] == reference
        true = np.stack((4 * i[part] + 2 + 8, 4 * j[part] + 2 + 12), -1)
        off = np.abs(maps.position[part] - true)[mine].max(1)
        assert np.mean(off == 0) > 0.9
    assert maps.relevance[left].mean() > 0.8
    shares = maps.shares
    assert shares.shape == (2, 48, 64)
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)


def test_the_border_continues_the_nearest_patch(case: Case) -> None:
    """Relevance is 0 there and the match stands for nothing; shown is what is next to it."""
    assert (case.details.relevances[0][0] == 0).all()
    maps = case.maps
    np.testing.assert_array_equal(maps.relevance[0], maps.relevance[1])
    np.testing.assert_array_equal(maps.relevance[:, -1], maps.relevance[:, -2])
    np.testing.assert_array_equal(maps.entry[0], maps.entry[1])
    np.testing.assert_array_equal(maps.centre[0, :, 0], maps.centre[1, :, 0] - 1)
    np.testing.assert_array_equal(maps.centre[:, -1, 1], maps.centre[:, -2, 1] + 1)


def test_matched_pixels_are_the_references(case: Case) -> None:
    matched = matched_picture(case.maps)
    assert matched.shape == (192, 256, 3)
    truth = scene(0)[:192, :256]
    for part in (np.s_[16:176, 16:112], np.s_[16:176, 152:240]):
        assert (matched[part] == truth[part]).all(-1).mean() > 0.85


def test_regions_cover_the_result(case: Case) -> None:
    found = regions(case.maps)
    assert sum(region.width * region.height for region in found) == 192 * 256
    assert (found[0].x, found[0].y, found[0].width, found[0].height) == (0, 0, 64, 64)
    assert [found[i].reference for i in (4, 7)] == [0, 1]
    for region in found:
        assert 0.3 < region.share <= 1.0001
        assert 0 <= region.at[0] < 256
        assert 0 <= region.at[1] < 192


def synthetic(shares: tuple[float, ...]) -> Maps:
    """One pixel's weights everywhere: two references at two scales."""
    details = Details(ref_scales=2)
    own = np.stack(np.meshgrid(np.arange(-2, 16), np.arange(-2, 16), indexing="ij")).astype(np.int32)
    for share in shares:
        weight = None if share == 0 else np.full((1, 1, 16, 16), share, np.float32)
        details.add((16, 16), own[None], np.full((1, 1, 16, 16), 0.5, np.float32), weight)
    refs = [from_array(picture(64, 64, seed)) for seed in (1, 2)]
    return make_maps(details, refs, replace(AMSAConfig.small(), ref_scales=2))


def test_a_reference_counts_with_all_its_scales() -> None:
    maps = synthetic((0.28, 0.32, 0.4, 0))
    assert (maps.reference == 0).all()
    assert (maps.entry == 1).all()
    assert maps.details.served() == pytest.approx([0.6, 0.4])
    # element [1 + i, 1 + j] of the match is the corner of the patch around LR pixel (i, j): one position before it
    np.testing.assert_array_equal(maps.centre[5, 7], [5, 7])
    np.testing.assert_allclose(maps.position[5, 7], [5.5 * 4 / 0.8, 7.5 * 4 / 0.8])


def test_published_models_too(tmp_path: Path) -> None:
    upscaler, details = Upscaler(checkpoint(tmp_path, PUBLISHED), threads=1), Details()
    lr, refs = from_array(picture(17, 20)), [from_array(picture(64, 90, 1)), from_array(picture(128, 64, 2))]
    sr = upscaler.upscale_photo(lr, refs, details=details)
    assert details.canvas == (128, 96)
    write_explanation(tmp_path, lr, refs, sr, details, upscaler.config, names=["a", "b", "c"])
    assert Image.open(tmp_path / "matched.png").size == (80, 68)
    assert len(json.loads((tmp_path / "explain.json").read_text())["references"][1]["scales"]) == 2


# ------------------------------------------------------------------------------------------------ files


def test_the_files(case: Case) -> None:
    assert sorted(path.name for path in case.folder.iterdir()) == sorted(FILES)
    assert Image.open(case.folder / "matched.png").size == (256, 192)
    origin, relevance = (read_photo(case.folder / f"{name}.png") for name in ("origin", "relevance"))
    assert (relevance.width, origin.width >= 256) == (256, True)  # a legend is as wide as its names
    assert min(origin.height, relevance.height) > 192  # legend and colour bar
    orange, blue = (np.array(colour) / 255 for colour in colours(2))
    for part, colour in ((np.s_[40:150, 20:110], orange), (np.s_[40:150, 160:236], blue)):
        mean = origin.rgb[part].mean((0, 1))
        assert np.corrcoef(mean, colour)[0, 1] > 0.95


def test_the_numbers(case: Case) -> None:
    report = json.loads((case.folder / "explain.json").read_text())
    assert (report["lr"], report["width"], report["height"]) == ("lr.png", 256, 192)
    assert [ref["file"] for ref in report["references"]] == HOSTILE[1:]
    assert sum(ref["weight"] for ref in report["references"]) == pytest.approx(1, abs=1e-3)
    for ref, served in zip(report["references"], case.details.served(), strict=True):
        assert ref["weight"] == pytest.approx(served, abs=1e-4)
        assert 0.3 < ref["relevance"] < 1
        assert [scale["factor"] for scale in ref["scales"]] == [1, 0.8, 0.64, 0.512, 0.4096]
        assert sum(scale["weight"] for scale in ref["scales"]) == pytest.approx(ref["weight"], abs=1e-3)
        assert max(scale["relevance"] for scale in ref["scales"]) <= ref["relevance"]
        assert all(scale["restored"] or scale["weight"] == 0 for scale in ref["scales"])
    assert len(report["regions"]) == 12


def test_names() -> None:
    assert short_names(["a/x.png", Path("b/y.png")]) == ["x.png", "y.png"]
    assert short_names(["a/x.png", "b/x.png"]) == ["a/x.png", "b/x.png"]
    assert short_names(["a/x.png", "a/x.png"]) == ["x.png", "x.png"]
    assert short_names(["new\nline.png"]) == ["'new\\nline.png'"]
    assert served_line(["a.jpg", "b.jpg", "c.jpg"], [0.29, 0.709, 0.001]) == "references: b.jpg 71 %, a.jpg 29 %; 1 under 0.5 %"
    assert len(set(colours(40))) == 40


def test_folders_that_cannot_hold_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AmsaError, match="cannot hold the explanation"):
        check_folder(tmp_path / "file")
    with pytest.raises(AmsaError, match=r"matched\.png would be replaced"):
        check_folder(tmp_path, [tmp_path / "x" / ".." / "matched.png"])


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_is_one_file(case: Case) -> None:
    text = (case.folder / "explain.html").read_text("utf-8")
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!#)[^"']+|@import|url\(|https?:""", text) == []
    assert text.count("<script") == 2  # its data and its own; none from a name
    pictures = re.findall(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", text)
    sizes = [Image.open(io.BytesIO(base64.b64decode(content))).size for _, content in pictures]
    assert sorted(sizes) == sorted([(256, 192)] * 5 + [(64, 48)] * 2)  # result, bicubic, matched, two references; two maps


def test_large_pictures_are_shrunk_and_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    from amsa.engine.explain import web_page

    for name, side in (("VIEW", 128), ("REFERENCE_SIDE", 100), ("CELLS_SIDE", 16)):
        monkeypatch.setattr(web_page, name, side)
    case.write(tmp_path)
    text = (tmp_path / "explain.html").read_text("utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert data["result"]["shown"] == [128, 96]
    assert data["notes"] == (
        "The result is 256x192 and shown at 128x96. References are shown at 100 pixels at most. "
        "One place in 16x16 pixels of the result can be pointed at."
    )
    assert (data["cells"]["rows"], data["cells"]["cols"]) == (12, 16)
    assert len(base64.b64decode(data["cells"]["x"])) == 4 * 12 * 16


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_shows_where_a_place_came_from(open_page: OpenPage, case: Case, width: int, scheme: str) -> None:
    page = open_page((case.folder / "explain.html").as_uri(), width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("h1").inner_text() == "lr.png, enlarged 64x48 to 256x192"
    assert page.locator("#rows tr td:first-child").all_inner_texts() == HOSTILE[1:]
    box = page.locator("#picture").bounding_box()
    assert box is not None
    for x, name in ((0.2, "<script>alert("), (0.8, '"quoted" & &amp; <b>bold')):
        page.mouse.click(box["x"] + x * box["width"], box["y"] + 0.3 * box["height"])
        text = page.locator("#text").inner_text()
        assert name in text
        left, top = (int(number) for number in re.search(r"at \((\d+), (\d+)\)", text).groups())  # type: ignore[union-attr]
        assert abs(left - (x * 256 + 12)) < 20
        assert abs(top - (0.3 * 192 + 8)) < 20
        marker = page.locator("#marker").bounding_box()
        frame = page.locator("#frame").bounding_box()
        assert marker is not None
        assert frame is not None
        middle = marker["x"] + marker["width"] / 2 - frame["x"]
        assert middle / frame["width"] == pytest.approx(left / 256, abs=0.02)
        page.wait_for_function(DRAWN)
        page.mouse.click(box["x"] + x * box["width"], box["y"] + 0.3 * box["height"])  # lets go


def test_the_slider_and_the_overlays(open_page: OpenPage, case: Case) -> None:
    page = open_page((case.folder / "explain.html").as_uri())
    slider = page.get_by_role("slider", name="Bicubic against result")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    assert page.evaluate("getComputedStyle(document.getElementById('bicubic')).clipPath") == "inset(0px 48% 0px 0px)"
    slider.press("Home")
    shots = {}
    for which in ("result", "origin", "relevance", "matched pixels"):
        page.get_by_role("radio", name=which).check(force=True)
        page.wait_for_function("[...document.images].every((image) => !image.src || image.complete)")
        shots[which] = page.locator("#picture").screenshot()
    assert len(set(shots.values())) == 4
    assert page.locator("#right-tag").inner_text() == "matched pixels"
    page.get_by_role("radio", name="origin").check(force=True)
    key = page.locator("#key").inner_text()
    assert re.search(r"<script>alert\('x'\)<!--\.png \d+ %", key)

    # Dragged by its line in the middle of the picture.
    slider.press("Home")
    box = page.locator("#picture").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 1, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60)
    page.mouse.up()
    assert float(slider.input_value()) == pytest.approx(50, abs=3)


def test_the_keyboard_moves_the_place(open_page: OpenPage, case: Case) -> None:
    page = open_page((case.folder / "explain.html").as_uri())
    picture = page.locator("#picture")
    picture.focus()
    places = []
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowRight", "ArrowUp"):
        picture.press(key)
        places.append(page.evaluate("[spot.style.left, spot.style.top].map(parseFloat)".replace("spot", SPOT)))
    steps = np.diff(np.array(places), axis=0)
    np.testing.assert_allclose(steps, [[100 / 64, 0], [800 / 64, 0], [0, -100 / 48]], atol=1e-3)


# ------------------------------------------------------------------------------------------------ the command


def save(path: Path, pixels: NDArray[Any]) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_the_command(run: Run, tmp_path: Path) -> None:
    lr, ref = save(tmp_path / "lr.png", picture(16, 20)), save(tmp_path / "ref.png", picture(64, 72, 1))
    folder = tmp_path / "what" / "happened"
    code, out, err = run("upscale", lr, ref, "-o", tmp_path / "sr.png", "--explain", folder, "--threads", 1)
    assert code == 0, err
    assert f"what came from which: {folder / 'explain.html'}" in out.splitlines()
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    report = json.loads((folder / "explain.json").read_text())
    assert report["references"][0]["file"] == str(ref)
    assert report["model"].startswith("small model, onnxruntime (CPU")


def test_the_command_refuses_before_it_works(run: Run, tmp_path: Path) -> None:
    lr, ref = save(tmp_path / "lr.png", picture(16, 20)), save(tmp_path / "ref.png", picture(64, 72, 1))
    check_refused(run("upscale", lr, ref, "-o", tmp_path / "sr.png", "--explain", lr), "lr.png", "choose another folder")
    check_refused(run("upscale", lr, ref, "-o", tmp_path / "matched.png", "--explain", tmp_path), "matched.png would be replaced")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lr.png", "ref.png"]
