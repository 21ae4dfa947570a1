"""The HTML report: what it embeds, and what a browser shows of profiles of all kinds."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from amsa import AmsaError
from amsa.engine.profiling.estimate import find_gpu, stage_times
from amsa.engine.profiling.files import to_json
from amsa.engine.profiling.html import make_page
from amsa.engine.profiling.results import Estimate, EstimatedLayer, Latency, LayerTime, Profile

from ...browser import OpenPage
from .test_command import Run, run  # noqa: F401  (fixture)
from .test_report import OURS, PROFILE, TORCH

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = "</script><script>document.title='bad'</script><!-- <b>&amp; \u2028 \"' /*script*/ /*profile*/"
BAD = r"NaN|undefined|null|Infinity|\[object"
LONG = "restore_" + 40 * "very_long_name_"

ESTIMATED = [
    EstimatedLayer("encode_ref", "reference to the GPU", "copy", 5, 0, 6e6, "memory", 0.4, 0.5, 0.7),
    EstimatedLayer("restore", "conv", "Conv 3x3 48>48 half", 2, 3e9, 2e7, "compute", 0.06, 0.08, 0.3),
    EstimatedLayer("match", "search", "patch_match_step_int8_1", 5, 1e8, 3e6, "memory", 0.01, 0.02, 0.09),
    EstimatedLayer("finish", LONG, "Resize+Sub", 1, 1e6, 5e6, "memory", 0.01, 0.02, 0.03),
]
ESTIMATE = Estimate(
    gpu="RTX 2080 Ti",
    sm="sm75",
    precision="fp16",
    layers=ESTIMATED,
    launches=13,
    launch_us=2.0,
    scratch_mb=None,
    to_halve=["Copying less: saves 0.3 ms."],
    assumptions=["The card holds its boost clock.", "Kernels run one after the other."],
)
# The peaks and this layer meet in the ridge: 500 GFLOP/s at 50 FLOP per byte.
RIDGE = LayerTime("encode_lr", "at the ridge", "MatMul", 1, 20.0, macs=5e9, bytes=2e8)
FULL = replace(
    PROFILE,
    measured=[
        replace(OURS, layers=[*OURS.layers, RIDGE, *(LayerTime("finish", f"many {i}", "Add", 1, 0.01) for i in range(400))]),
        TORCH,
    ],
    estimates=[ESTIMATE, replace(ESTIMATE, gpu="T4", scratch_mb=123.4)],
)
BARE = replace(OURS, latency=Latency((12.5,)), layers=[], stages=[], peak_gflops=None, peak_gbs=None)
MANY = [replace(TORCH, label=f"contender {i}, {LONG[: 20 * i]}", latency=Latency((10.0 + i, 900.0))) for i in range(7)]
ALL = ["contenders", "stages", "latency", "layers", "roofline", "estimates", "notes", "machine"]
PROFILES: dict[str, tuple[Profile, list[str]]] = {
    "everything": (FULL, ALL),
    "alone, one picture": (replace(PROFILE, measured=[BARE], notes=()), ["contenders", "latency", "machine"]),
    "no layers, no estimates": (replace(PROFILE, measured=[TORCH]), ["contenders", "stages", "latency", "notes", "machine"]),
    "no peaks": (
        replace(PROFILE, measured=[replace(OURS, peak_gflops=None, peak_gbs=None)]),
        [n for n in ALL if n != "estimates"],
    ),
    "only estimates": (replace(FULL, measured=(), notes=()), ["estimates", "machine"]),
    "an empty estimate": (
        replace(FULL, measured=(), estimates=[replace(ESTIMATE, layers=())]),
        ["estimates", "notes", "machine"],
    ),
    "many contenders": (replace(PROFILE, measured=MANY), ["contenders", "stages", "latency", "notes", "machine"]),
}


@pytest.fixture
def show(open_page: OpenPage, tmp_path: Path) -> OpenPage:
    """Open the report of a profile; further arguments are those of `open_page`."""

    def call(profile: Profile, **arguments: object) -> Page:
        (tmp_path / "profile.html").write_text(make_page(profile), encoding="utf-8")
        return open_page((tmp_path / "profile.html").as_uri(), **arguments)

    return call


def hostile() -> Profile:
    layer = replace(RIDGE, name=HOSTILE, op=HOSTILE, stage=HOSTILE, milliseconds=99.0)
    ours = replace(
        OURS, label=HOSTILE, kernels=HOSTILE, device=HOSTILE, layers=[*OURS.layers, layer], sensors={HOSTILE: (1, 2, 3)}
    )
    ours = replace(ours, stages=[replace(stage, name=HOSTILE + stage.name) for stage in ours.stages])
    guess = replace(
        ESTIMATE, layers=[replace(ESTIMATED[1], name=HOSTILE, stage=HOSTILE)], to_halve=[HOSTILE], assumptions=[HOSTILE]
    )
    words = {"model": HOSTILE, "variant": HOSTILE, "version": HOSTILE, "notes": [HOSTILE], "machine": {HOSTILE: HOSTILE}}
    return replace(PROFILE, measured=[ours, TORCH], estimates=[guess], **words)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ the text


@pytest.mark.parametrize("profile", [FULL, hostile()])
def test_the_numbers_are_embedded_as_they_are(profile: Profile) -> None:
    page = make_page(profile)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert [attributes for attributes, _ in scripts] == [
        ' type="application/json" id="profile"',
        ' type="application/json" id="derived"',
        "",
    ]
    assert json.loads(scripts[0][1]) == json.loads(to_json(profile))
    assert page.count("</script") == 3
    assert page.count("<!--") == 1  # the template's own
    assert "\u2028" not in page
    assert len(page) < 400_000


def test_the_page_needs_nothing_else() -> None:
    page = make_page(FULL)
    assert re.findall(r"https?://[^\"]*", page) == ["http://www.w3.org/2000/svg"]  # a name, not an address
    assert not re.search(r"\bsrc=|@import|url\(|\bimport\b", page)
    assert "default-src 'none'" in page
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page)


def test_what_is_derived() -> None:
    def derived(profile: Profile) -> dict[str, list[dict[str, list[list[object]]]]]:
        found = re.search(r'id="derived">(.*?)</script>', make_page(profile))
        assert found
        values: dict[str, list[dict[str, list[list[object]]]]] = json.loads(found[1])
        return values

    values = derived(FULL)
    assert values["ratios"] == [1, 3.3]  # the first rounds alone: 330 and 100 ms
    first, t4 = values["cards"]
    assert {name: tuple(times) for name, times in first["stages"].items()} == stage_times(ESTIMATE)  # type: ignore[attr-defined]
    assert [rate for _, rate in first["arithmetic"]] == [107600, 53800, pytest.approx(find_gpu("rtx2080ti").fp32 / 1e9)]
    assert first["memory"] == [["memory", 616], ["L2 cache, assumed", 3 * 616]]
    assert [name for name, _ in t4["arithmetic"]] == ["FP16 tensor cores", "FP32"]  # one rate for both kinds of sums
    quantized = [replace(ESTIMATED[1], op="Conv 3x3 48>48 int8")]
    (ampere,) = derived(replace(FULL, estimates=[replace(ESTIMATE, gpu="RTX 3060", layers=quantized)]))["cards"]
    assert ampere["arithmetic"][0][0] == "INT8 tensor cores"


def test_a_card_that_is_not_known() -> None:
    with pytest.raises(AmsaError, match="unknown GPU 'Voodoo'"):
        make_page(replace(FULL, estimates=[replace(ESTIMATE, gpu="Voodoo")]))


def test_the_command_writes_it_beside_the_numbers(run: Run, tmp_path: Path) -> None:  # noqa: F811
    code, out, err = run("--lr", "64x48", "--ref", "128x96", "--runs", 0, "--gpu", "t4", "-o", tmp_path)
    assert code == 0, err
    assert f"to look at, {tmp_path / 'profile.html'}" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile.html", "profile.json"]
    found = re.search(r'id="profile">(.*?)</script>', (tmp_path / "profile.html").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    assert json.loads(found[1]) == json.loads((tmp_path / "profile.json").read_text())


# ------------------------------------------------------------------------------------------------ in a browser


@pytest.mark.parametrize("name", PROFILES)
def test_sections(show: OpenPage, name: str) -> None:
    profile, sections = PROFILES[name]
    page = show(profile, width=1280)
    assert page.evaluate("[...document.querySelectorAll('section')].map((one) => one.id)") == sections
    assert page.evaluate("[...document.querySelectorAll('nav a')].map((one) => one.hash)") == [f"#{one}" for one in sections]
    text = page.locator("body").inner_text()
    assert not re.search(BAD, text)
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 800})
        for opened in ("false", "true"):
            page.evaluate(f"for (const one of document.querySelectorAll('details')) one.open = {opened}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        plots = page.evaluate(
            "[...document.querySelectorAll('.plot svg')].map((one) => [one.width.baseVal.value, one.outerHTML])"
        )
        assert all(width / 3 < plot[0] < width and not re.search(BAD, plot[1]) for plot in plots)


def test_dark_and_light(show: OpenPage) -> None:
    page = show(FULL, scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(17, 23, 22)"
    page.emulate_media(color_scheme="light")
    assert page.evaluate(ground) == "rgb(245, 247, 246)"


def test_contenders(show: OpenPage) -> None:
    page = show(FULL)
    assert page.locator("h1").inner_text() == "small"
    rows = page.locator("#contenders tbody tr:not(.group)").all_inner_texts()
    cells = {row.split("\t")[0]: row.split("\t")[1:] for row in rows}
    assert cells["p50, ms"] == ["110", "330"]
    assert cells["p90, ms"] == ["118", "330"]
    assert cells["p99, ms"] == ["120", "330"]
    assert cells["pictures per second"] == ["9.09", "3.03"]
    assert cells["CPU time of all threads, ms"] == ["200", "500"]
    assert cells["time, of the first's"] == ["1", "3.30 ×"]
    assert cells["CPU time, of the first's"] == ["1", "2.50 ×"]
    assert cells["peak on the GPU, MB"] == ["–", "900"]
    assert cells["PSNR to the first's, dB"] == ["", "equal"]
    assert cells["clock MHz"] == ["–", "1,500 (1,000 to 1,600)"]


def test_bars_and_dots_are_to_scale(show: OpenPage) -> None:
    page = show(FULL)
    bars = (
        "[...document.querySelectorAll('#stages rect')].map((one) => [one.getAttribute('aria-label'), one.width.baseVal.value])"
    )
    widths = dict(page.evaluate(bars))
    match = widths["onnxruntime fp32, match: 40 ms, 40 %, 5 calls"]
    other = widths["torch eager fp32, other: 200 ms, 62 %"]
    assert (other + 1) / (match + 1) == pytest.approx(200 / 40, rel=1e-3)  # a pixel between two bars
    dots = page.evaluate(
        "[...document.querySelectorAll('#latency circle.mark')].map((one) => [one.cx.baseVal.value, one.cy.baseVal.value])"
    )
    x = [dot[0] for dot in dots]  # 100, 120, 110 and 330 ms on a log axis
    assert (x[3] - x[0]) / (x[2] - x[0]) == pytest.approx(12.5267, rel=1e-3)
    assert dots[0][1] < dots[1][1] < dots[2][1] < dots[3][1]
    page.get_by_text("Every time in milliseconds").click()
    assert page.locator("#latency tbody tr").all_inner_texts() == ["1\t100\t330", "2\t120\t–", "3\t110\t–"]


def test_roofline_is_to_scale(show: OpenPage) -> None:
    far = LayerTime("encode_lr", "far to the left", "MatMul", 1, 0.1, macs=1e6, bytes=4e5)  # so that the axis holds 10 and 100
    page = show(replace(FULL, measured=[replace(OURS, layers=[*OURS.layers, RIDGE, far])]))
    mark = page.locator("#roofline path[aria-label='at the ridge (encode_lr): 20 ms, 500 GFLOP/s at 50 FLOP per byte']").evaluate(
        "(one) => { const box = one.getBBox(); return [box.x + box.width / 2, box.y + box.height / 2]; }"
    )
    grid = page.locator("#roofline g:has(> .grid)").evaluate_all(
        "(found) => found.map((one) => [one.textContent, one.firstChild.x1.baseVal.value, one.firstChild.y1.baseVal.value])"
    )
    xs = {label: x for label, x, _ in grid if x > 46}  # the others begin at the left edge: powers of ten of GFLOP/s
    ys = {label: y for label, x, y in grid if x == 46}
    five = math.log10(5)
    assert mark == pytest.approx([xs["10"] + five * (xs["100"] - xs["10"]), ys["100"] + five * (ys["100"] - ys["10"])], abs=0.1)
    slope, level = page.locator("#roofline line.roof").evaluate_all(
        "(roofs) => roofs.map(({ x1, x2, y1, y2 }) => [x1, x2, y1, y2].map((one) => one.baseVal.value))"
    )
    assert [slope[1], slope[3]] == pytest.approx(mark, abs=0.1)
    assert [level[0], level[2]] == pytest.approx(mark, abs=0.1)
    assert "FP32 products 500 GFLOP/s; copies 10 GB/s." in page.locator("#roofline").inner_text()
    assert "25.2 GMACs in 110 ms are 458 GFLOP/s, 92 % of its peak." in page.locator("#roofline").inner_text()


def test_plots_are_walked_through_with_keys(show: OpenPage) -> None:
    page = show(FULL)
    for section in ("stages", "latency", "roofline", "estimates"):
        figure = page.locator(f"#{section} figure").first
        marks, readout = figure.locator(".mark"), figure.locator(".readout")
        assert [one.get_attribute("tabindex") for one in marks.all()][:2] == ["0", "-1"]
        marks.first.focus()
        for key, index in (("ArrowRight", 1), ("ArrowLeft", 0), ("End", -1), ("Home", 0), ("ArrowDown", 1)):
            page.keyboard.press(key)
            assert marks.nth(index).evaluate("(one) => one === document.activeElement")
            assert readout.inner_text() == marks.nth(index).get_attribute("aria-label")
        title, description = figure.locator("svg").first.get_attribute("aria-labelledby").split()
        assert page.locator(f"#{title}").evaluate("(one) => one.textContent")
        assert page.locator(f"#{description}").evaluate("(one) => one.textContent")


def test_layers_sort_and_filter(show: OpenPage) -> None:
    page = show(FULL)
    layers = page.locator("#layers")

    def column(index: int) -> list[str]:
        return [row.split("\t")[index] for row in layers.locator("tbody tr").all_inner_texts()]

    assert column(0)[:3] == ["node_patch_match", "at the ridge", "conv_0"]
    assert len(column(0)) == 30
    assert "30 of 423 layers" in layers.locator(".count").inner_text()
    ms = layers.get_by_role("button", name="ms", exact=False).first
    ms.click()
    assert layers.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    assert column(4)[0] == "0.0100"
    layers.get_by_role("button", name="GFLOP/s").click()
    assert [float(rate) for rate in column(8)[:3]] == [500, 247, 244]
    layers.get_by_role("button", name="GFLOP/s").click()
    assert column(8)[0] == "13.3"  # what is not known stays behind
    layers.get_by_role("button", name="layer").click()
    assert column(0)[:3] == ["at the ridge", "cat", "conv_0"]

    layers.get_by_role("button", name="All 423").click()
    assert len(column(0)) == 423
    layers.get_by_label("Stage").select_option("finish")
    assert len(column(0)) == 401
    layers.get_by_label("Name or kind").fill("CONCAT")
    assert column(0) == ["cat"]
    assert layers.locator(".more").is_hidden()
    layers.get_by_label("Name or kind").fill("no such layer")
    assert column(0) == []


def test_layers_of_each_contender(show: OpenPage) -> None:
    other = replace(TORCH, layers=[LayerTime("match", "aten::conv2d", "aten::conv2d", 1, 3.0)])
    page = show(replace(PROFILE, measured=[OURS, other]))
    table = page.locator("#layers .panel")
    assert [one.is_visible() for one in table.all()] == [True, False]
    page.get_by_role("button", name="torch eager fp32").click()
    assert [one.is_visible() for one in table.all()] == [False, True]
    assert table.nth(1).locator("tbody tr").all_inner_texts() == ["aten::conv2d\tmatch\taten::conv2d\t1\t3\t100 %\t–\t–\t–\t–\t–"]


def test_estimates_say_what_they_are(show: OpenPage) -> None:
    page = show(FULL)
    section = page.locator("#estimates")
    assert section.locator("h3").all_inner_texts() == [
        f"{name} estimate, not measured" for name in ("RTX 2080 Ti (sm75), fp16", "T4 (sm75), fp16")
    ]
    titles = section.locator("svg > title").evaluate_all("(found) => found.map((one) => one.textContent)")
    assert len(titles) == 4
    assert all("estimate, not measured" in title for title in titles)
    assert page.locator("header .tile").last.inner_text().endswith("estimate, not measured")
    first = section.locator("article").first
    text = first.inner_text()
    for words in (
        "0.646 to 1.15 ms",
        "scratch memory: no engines were looked into",
        "13\nlaunches",
        *ESTIMATE.to_halve,
        *ESTIMATE.assumptions,
    ):
        assert words in text
    assert "123 MB" in section.locator("article").nth(1).inner_text()
    largest = first.locator(":scope > .scroll tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in largest] == ["reference to the GPU", "conv", "search"]
    first.get_by_text("All 4 estimated layers as a table").click()
    first.get_by_role("combobox").select_option("match")
    assert "1 of 4 layers: 0.0200 to 0.0900 ms" in first.locator(".count").inner_text()


def test_names_stay_text(show: OpenPage) -> None:
    page = show(hostile())
    shown = HOSTILE.split("/")[-2]  # a path's last part, as of every model
    assert page.title() != "bad"
    assert page.locator("script").count() == 3
    assert page.locator("#report b").count() == 2  # the medians
    said = page.evaluate("document.body.textContent")
    for place in ("#layers tbody", "#notes li", "#machine dd", "#contenders thead", "#estimates .assumptions li"):
        assert HOSTILE in page.locator(place).first.evaluate("(one) => one.textContent"), place
    assert shown in said


def test_print(show: OpenPage) -> None:
    page = show(FULL, width=1280)
    width = "document.querySelector('#roofline .plot svg').width.baseVal.value"
    before = page.evaluate(width)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(width) == 700
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(width) == before
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(23, 33, 31)"  # dark ink on paper
    assert not page.locator("nav").is_visible()
