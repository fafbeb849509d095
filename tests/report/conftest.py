"""The run that all tests of the report are about, and a browser that opens the report from the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mined_run import HEIGHT, HOSTILE, WIDTH, frame, write_run
from PIL import Image

from cxr_fast.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, rng: np.random.Generator) -> Path:
    return write_run(tmp_path / "run", rng)


@pytest.fixture
def report(run: Path, tmp_path: Path, rng: np.random.Generator) -> Path:
    """With pictures of all images but one, and a true box beside one finding."""
    found = frame(run)
    archive = tmp_path / "archive"
    for name in found.image_id.unique():
        if name != HOSTILE:
            (archive / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8)).save(archive / name)
    hit = found[found.image_id.str.startswith("p2/")].iloc[0]
    sides = f"{hit.x1},{hit.y1},{hit.x2 - hit.x1},{hit.y2 - hit.y1}"
    truth = tmp_path / "truth.csv"
    name = hit.image_id.rpartition("/")[2]
    truth.write_text(f"Image Index,Finding Label,x,y,w,h\n{name},{hit['class']},{sides}\n")
    write_report(run, str(archive), truth)
    return run / "report"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driving = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    with driving.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of 1280x720 that may do nothing wrong: no error, no script from a name, no network."""
    context = browser.new_context(viewport={"width": 1280, "height": 720}, accept_downloads=True)
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    opened.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}") or dialog.dismiss())
    opened.on(
        "request", lambda request: None if request.url.startswith(("file:", "blob:")) else
        wrong.append(request.url)
    )  # fmt: skip
    opened.wrong = wrong
    yield opened
    context.close()
    assert wrong == []
