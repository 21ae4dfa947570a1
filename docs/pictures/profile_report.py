"""Photographs the report of `amsa profile` with a headless Chromium: `python docs/pictures/profile_report.py`.

It makes the report first, of the shipped model against PyTorch, and keeps it in out/profile.
"""

import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
REPORT = HERE.parents[1] / "out" / "profile"

arguments = ["--lr", "128x96", "--ref", "512x384", "--against", "torch", "--gpu", "rtx2080ti"]
subprocess.run([sys.executable, "-m", "amsa", "profile", *arguments, "-o", REPORT], check=True)

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    # The top of the report on a desk, and its roofline of measured layers on a phone, whose pixels are half as large.
    for name, width, height, scale, first in (("desktop", 1280, 1290, 1, "header"), ("phone", 360, 1000, 2, "#roofline")):
        page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
        page.goto((REPORT / "profile.html").as_uri())
        top = page.locator(first).evaluate("(element) => element.getBoundingClientRect().top + scrollY") - 14
        shot = page.screenshot(full_page=True, clip={"x": 0, "y": top, "width": width, "height": height})
        picture = Image.open(io.BytesIO(shot)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        picture.save(HERE / f"profile_{name}.png", optimize=True)
    browser.close()
