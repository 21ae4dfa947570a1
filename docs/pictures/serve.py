"""Photographs the page of `amsa serve` with a headless Chromium: `python docs/pictures/serve.py`.

LR and reference are made of scikit-image's coffee photo (CC0) as in `make.py`.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import sync_playwright
from skimage.data import coffee

from amsa.engine.demo import shrink
from amsa.engine.images import from_array, write_photo

HERE = Path(__file__).parent
photo = coffee()
turned = cv2.warpAffine(photo, cv2.getRotationMatrix2D((300, 190), 8, 1.1), (600, 400), borderMode=cv2.BORDER_REFLECT)

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    write_photo(folder / "coffee, small.png", shrink(from_array(photo[8:360, 100:484].copy()))[0])
    write_photo(folder / "coffee, sharp.jpg", from_array(np.clip(turned[8:360, 100:484] * 1.05, 0, 255).astype(np.uint8)))
    command = [sys.executable, "-m", "amsa", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        url = server.stdout.readline().split()[0]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        page.goto(url)
        page.locator("#lr").set_input_files(folder / "coffee, small.png")
        page.locator("#refs").set_input_files(folder / "coffee, sharp.jpg")
        page.get_by_role("button", name="Upscale").click()
        page.locator("#outcome").wait_for(timeout=120_000)
        page.screenshot(path=HERE / "serve.jpg", full_page=True, quality=88)
        browser.close()
        server.send_signal(signal.SIGINT)
