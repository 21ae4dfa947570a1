"""The page in a headless browser, against `amsa serve` in a process of its own."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from amsa.engine.upscaler import Upscaler

from .conftest import Picture, Serve, Served

pytest.importorskip("playwright", reason="playwright is not installed: pip install 'amsa[dev]'")
from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE = 15_000
"""Milliseconds that anything on the page may take."""
expect.set_options(timeout=PATIENCE)
Visit = Callable[..., "Page"]


@pytest.fixture(scope="module")
def served(serve: Serve) -> Served:
    return serve("--queue", 1, "--max-upload", "2MB", "--max-pixels", 4_000_000)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """visit(url, width=.., scheme=..): the page in a window of its own. At the end a script's error, a message of the policy
    against foreign content, or a request to elsewhere fails the test; that a refusal is an HTTP error does not."""
    contexts, complaints = [], []

    def visit_(url: str, width: int = 1280, height: int = 800, scheme: Any = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)

        def console(text: str) -> None:
            if not text.startswith("Failed to load resource"):
                complaints.append(f"console: {text}")

        def request(address: str) -> None:
            if not address.startswith((url, "blob:", "data:")):
                complaints.append(f"request: {address}")

        page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
        page.on("console", lambda message: console(message.text))
        context.on("request", lambda r: request(r.url))
        page.goto(url)
        expect(page.locator("#server")).to_contain_text("onnxruntime on CPU")
        return page

    yield visit_
    for context in contexts:
        context.close()
    assert not complaints, "\n".join(complaints)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, picture: Picture) -> Path:
    """A folder with small.png and middle.png to enlarge, sharp.png and other.jpg to refer to, wrong.png and large.png."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "small.png").write_bytes(picture(40, 30))
    (folder / "middle.png").write_bytes(picture(300, 300))
    (folder / "sharp.png").write_bytes(picture(160, 128, 1))
    (folder / "other.jpg").write_bytes(picture(96, 80, 2, "JPEG"))
    (folder / "wrong.png").write_bytes(b"hello")
    (folder / "large.png").write_bytes(bytes(2_000_001))
    return folder


def choose(page: Page, folder: Path, lr: str, *refs: str) -> None:
    page.locator("#lr").set_input_files(folder / lr)
    page.locator("#refs").set_input_files([folder / ref for ref in refs])


def upscale(page: Page) -> None:
    page.get_by_role("button", name="Upscale").click()


def share_of_bicubic(page: Page) -> float:
    """Where the divider stands, in percent of the picture's width."""
    frame, divider = page.locator(".frame").bounding_box(), page.locator(".divider").bounding_box()
    assert frame is not None
    assert divider is not None
    return 100 * (divider["x"] + divider["width"] / 2 - frame["x"]) / frame["width"]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_from_photos_to_the_download(visit: Visit, served: Served, files: Path, width: int, scheme: str) -> None:
    page = visit(served.url, width=width, scheme=scheme)
    choose(page, files, "small.png", "sharp.png", "other.jpg")
    expect(page.locator("#lr-zone li")).to_contain_text("40 × 30")
    expect(page.locator("#refs-zone li")).to_have_count(2)
    page.locator("#seed").fill("5")
    upscale(page)
    expect(page.get_by_role("heading", name="Result")).to_be_focused()
    expect(page.locator("#facts")).to_have_text(re.compile(r"160 × 120, 0\.\d\d MB, made in \d+\.\d s"))
    expect(page.locator("#work")).to_be_hidden()
    for name in ("result", "bicubic"):
        assert page.locator(f"#{name}").evaluate("image => image.naturalWidth") == 160

    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "small_x4.png"
    refs = [np.asarray(Image.open(files / name)) for name in ("sharp.png", "other.jpg")]
    expected = Upscaler(threads=1).upscale(np.asarray(Image.open(files / "small.png")), refs, seed=5)
    assert np.array_equal(np.asarray(Image.open(download.value.path())), expected)

    slider = page.get_by_role("slider")
    assert abs(share_of_bicubic(page) - 50) < 1
    slider.focus()
    slider.press("ArrowRight")
    assert abs(share_of_bicubic(page) - 51) < 0.5
    slider.press("Home")
    assert abs(share_of_bicubic(page)) < 0.5
    box = page.locator(".frame").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 3, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.up()
    assert abs(share_of_bicubic(page) - 75) < 1
    assert slider.input_value() == "75"
    page.get_by_role("button", name="Actual size").click()
    actual = page.locator(".frame").bounding_box()
    assert actual is not None
    assert round(actual["width"]) == 160

    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Show where the texture came from").click()
    expect(opened.value.get_by_role("heading", name="small.png, enlarged 40x30 to 160x120")).to_be_visible()
    expect(page.get_by_role("link", name="Show where")).to_be_hidden()
    assert page.evaluate_handle("document.documentElement").get_property("scrollWidth").json_value() <= width
    with served.client() as client:
        assert "amsa_kept_bytes 0.0" in client.get("/metrics").text
    assert list(served.temporary.iterdir()) == []


def test_the_comparison_shows_both_pictures(visit: Visit, served: Served, files: Path) -> None:
    """Left of the divider the bicubic enlargement, right of it the result, pixel by pixel at their own size."""
    page = visit(served.url)
    choose(page, files, "small.png", "sharp.png")
    upscale(page)
    expect(page.locator("#outcome")).to_be_visible()
    page.get_by_role("button", name="Actual size").click()

    def shown(percent: int) -> np.ndarray[Any, Any]:
        page.locator("#split").fill(str(percent))
        page.locator(".divider").evaluate("divider => divider.hidden = true")
        picture = np.asarray(Image.open(io.BytesIO(page.locator(".frame").screenshot())).convert("RGB"), int)
        page.locator(".divider").evaluate("divider => divider.hidden = false")
        return picture

    result, enlarged, both = shown(0), shown(100), shown(50)
    assert np.abs(result - enlarged).max() > 10
    assert np.array_equal(both[:, :78], enlarged[:, :78])
    assert np.array_equal(both[:, 82:], result[:, 82:])


def test_refusals_are_shown_and_can_be_mended(visit: Visit, served: Served, files: Path) -> None:
    page = visit(served.url)
    message = page.get_by_role("alert")
    upscale(page)
    expect(message).to_have_text("Choose the photo to enlarge and at least one sharp reference.")
    choose(page, files, "small.png", "sharp.png", "wrong.png")
    expect(page.locator(".blank")).to_have_text("no preview")
    expect(message).to_be_hidden()
    upscale(page)
    expect(message).to_contain_text("wrong.png is damaged or no picture in a known format")
    page.get_by_role("button", name="Remove wrong.png").click()
    expect(message).to_be_hidden()
    expect(page.locator("#refs")).to_be_focused()
    page.locator("#refs").set_input_files(files / "large.png")
    upscale(page)
    expect(message).to_have_text(re.compile("The photos have 2.0 MB together; this server takes 2 MB"))
    page.get_by_role("button", name="Remove large.png").click()
    page.locator("#lr").set_input_files(files / "sharp.png")  # takes the place of the other
    expect(page.locator("#lr-zone li")).to_have_count(1)
    page.locator("#lr").set_input_files(files / "small.png")
    upscale(page)
    expect(page.locator("#outcome")).to_be_visible()
    expect(message).to_be_hidden()


def test_the_server_refuses_what_the_page_does_not_know_of(visit: Visit, served: Served, files: Path) -> None:
    """413 for a body that was sent as a whole: a browser must be able to read the answer."""
    page = visit(served.url)
    answer = page.evaluate_handle(
        """async () => {
            const form = new FormData();
            form.append("lr", new Blob([new Uint8Array(8e6)]), "a.png");
            const answer = await fetch("api/jobs", { method: "POST", body: form });
            return [answer.status, (await answer.json()).error];
        }"""
    ).json_value()
    assert answer[0] == 413
    assert "larger than 2 MB" in answer[1]


def test_drop_and_full_queue_and_cancel(visit: Visit, served: Served, files: Path, picture: Picture) -> None:
    page = visit(served.url)
    names = {"#lr-zone": "middle.png", "#refs-zone": "sharp.png"}
    for zone, name in names.items():
        content = list((files / name).read_bytes())
        transfer = page.evaluate_handle(
            """([content, name]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(content)], name));
                return transfer;
            }""",
            [content, name],
        )
        page.dispatch_event(f"{zone} .drop", "drop", {"dataTransfer": transfer})
        expect(page.locator(f"{zone} li")).to_contain_text(name)
    upscale(page)
    expect(page.get_by_role("button", name="Upscale")).to_be_disabled()
    expect(page.locator("#left")).to_have_text(re.compile(r"about \d+ (s|min) left"))
    assert page.locator("#progress").evaluate("bar => bar.value") >= 2

    waiting = visit(served.url)
    choose(waiting, files, "middle.png", "sharp.png")
    upscale(waiting)
    expect(waiting.locator("#step")).to_have_text("Waiting: 1 before this one")
    third = visit(served.url)
    choose(third, files, "small.png", "sharp.png")
    upscale(third)
    expect(third.get_by_role("alert")).to_contain_text("the queue is full: 1 picture waits; try again in")

    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("alert")).to_have_text("Cancelled.")
    waiting.close(run_before_unload=True)  # whoever leaves is not waited for
    expect(page.get_by_role("button", name="Upscale")).to_be_enabled()
    upscale(third)
    expect(third.locator("#outcome")).to_be_visible()


def test_a_server_that_was_restarted(visit: Visit, serve: Serve, files: Path) -> None:
    first = serve()
    page = visit(first.url)
    choose(page, files, "middle.png", "sharp.png")
    upscale(page)
    expect(page.locator("#step")).to_have_text(re.compile("Reading|Matching|Restoring"))
    first.process.kill()
    first.process.wait()
    expect(page.locator("#step")).to_have_text("The server does not answer; asking again")
    second = serve(port=int(first.url.rsplit(":", 1)[1]))
    expect(page.get_by_role("alert")).to_contain_text(
        "no such job: it was fetched or cancelled before, is too old, or the server was restarted"
    )
    page.locator("#lr").set_input_files(files / "small.png")  # the references are still there
    upscale(page)
    expect(page.locator("#outcome")).to_be_visible()
    second.process.kill()
    second.process.wait()
    upscale(page)
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer. Start it again")
