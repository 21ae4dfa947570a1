"""A headless Chromium for tests of HTML pages; `conftest.py` offers its two fixtures to all tests.

A test that takes `open_page` calls it with a page's address, and gets Playwright's `Page`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OpenPage = Callable[..., "Page"]
"""open_page(url, width=1280, height=800, scheme="light" or "dark", network=False)."""

# Without the last five Chromium looks for updates and other things on the network that no test asked for.
_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
_ARGUMENTS += ("--disable-component-update", "--disable-sync")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, that of the system or Playwright's own. Skips where there is none.

    A module's, not a session's: while Playwright runs, its event loop is this thread's, and `asyncio.run` is refused. The
    next module starts another within 1 s.
    """
    pytest.importorskip("playwright", reason="playwright is not installed: pip install 'amsa[dev]'")
    from playwright.sync_api import Error, sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        except Error as e:
            pytest.skip(f"no browser starts ({str(e).splitlines()[0]}): apt install chromium, or playwright install chromium")
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens a page in a window of its own. At the end of the test a script's error, a message of level error or warning, and
    with `network=False` a request for anything but files and data of the page itself fails it."""
    contexts, complaints = [], []

    def open_(url: str, width: int = 1280, height: int = 800, scheme: Any = "light", network: bool = False) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
        page.on("console", lambda m: complaints.append(f"console: {m.text}") if m.type in ("error", "warning") else None)

        def note(address: str) -> None:
            if not network and not address.startswith(("file:", "data:", "blob:", "about:")):
                complaints.append(f"network: {address}")

        page.on("request", lambda request: note(request.url))
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not complaints, "\n".join(complaints)
