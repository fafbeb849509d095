"""The pictures of this page, of the run that `make demo` made: python docs/report/screenshots.py."""

from __future__ import annotations

import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
INDEX = HERE.parents[1] / "demo" / "run" / "report" / "index.html"
VIEWS = {
    "overview": ("#overview", []),
    "gallery": ("#gallery?best=1&sort=probability", ["j", "a", "j", "r"]),
    "viewer": ("#gallery?class=Effusion&best=1&sort=iou", ["j", "Enter"]),
    "step": ("#gallery?class=Effusion&best=1&sort=iou", ["j", "Enter", "2"]),
    "near": ("#gallery?class=Effusion&best=1&sort=iou", ["j", "Enter", "z", "h"]),
    "marks": ("#marks", []),
}

with sync_playwright() as driver:
    browser = driver.chromium.launch(
        executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
    )
    context = browser.new_context(viewport={"width": 1280, "height": 720})  # in which marks stay
    for name, (address, keys) in VIEWS.items():
        page = context.new_page()
        page.goto(f"file://{INDEX}{address}")
        page.wait_for_selector("main:not([aria-busy])")
        for key in keys:
            page.keyboard.press(key)
            page.wait_for_timeout(300)
        page.screenshot(path=HERE / f"{name}.jpg", type="jpeg", quality=82)
    browser.close()
