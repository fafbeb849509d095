"""How long the report of a large run takes to write, to open and to page through.

    python benchmarks/report_pages.py [--findings 100000] [--out FILE.json]

The run is made up: boxes and maps of noise, four classes an image, pictures that are links to 200
phantoms. Chromium is driven headless by Playwright (extra dev); times are of a page's own clock, from
before the first byte or from the key to the frame that shows the result.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from cxr_fast import __version__
from cxr_fast.archive.findings import open_run
from cxr_fast.config import BOXED_FINDINGS
from cxr_fast.phantom import PhantomSettings, write_archive
from cxr_fast.report import write_report

CLASSES, SHARD, SIDE, CELLS = BOXED_FINDINGS[:4], 1024, 1024, 32
# Resolves when a frame after the next one is drawn.
FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def made_up_run(folder: Path, images: int) -> None:
    rng = np.random.default_rng(0)
    settings = {
        "shard_size": SHARD,
        "mining": {"steps": 3},
        "model": {"sha256": "", "class_names": list(CLASSES)},
    }
    ids = [f"{i:06d}.png" for i in range(images)]
    with open_run(folder, settings) as run:
        run.write_images(ids)
        for shard in range(-(-images // SHARD)):
            names = ids[SHARD * shard : SHARD * (shard + 1)]
            pairs = len(names) * len(CLASSES)
            low = rng.integers(0, 700, (3 * pairs, 2))
            high = low + rng.integers(20, 300, (3 * pairs, 2))
            probability = rng.random(pairs).astype(np.float32)
            class_of = np.tile(CLASSES, len(names))
            findings = {
                "image_id": np.repeat(names, 3 * len(CLASSES)),
                "class": np.repeat(class_of, 3).tolist(),
                "rank": np.tile([1, 2, 3], pairs),
                **dict(zip(("x1", "y1", "x2", "y2"), np.hstack([low, high]).T, strict=True)),
                "score": rng.random(3 * pairs).astype(np.float32),
                "probability": np.repeat(probability, 3),
            }
            sides = {"image_height": SIDE, "image_width": SIDE, "height": CELLS, "width": CELLS}
            maps = {
                "image_id": np.repeat(names, len(CLASSES)),
                "class": class_of.tolist(),
                "probability": probability,
                "peak_x": probability,
                "peak_y": probability,
                **{name: np.full(pairs, side) for name, side in sides.items()},
                "heatmap": [row.tobytes() for row in rng.integers(0, 256, (pairs, CELLS**2), np.uint8)],
                "cam": [row.tobytes() for row in rng.integers(0, 256, (pairs, CELLS**2), np.uint8)],
                "erased_at": [row.tobytes() for row in rng.integers(0, 4, (pairs, CELLS**2), np.uint8)],
            }
            run.write_shard(shard, findings, (), maps)
        run.finish(-(-images // SHARD))


def timed(page: Any, change: str, times: int, *after: str) -> list[float]:
    """Milliseconds from ``change``, a statement of JavaScript, until its result is drawn."""
    taken = []
    for _ in range(times):
        parts = ("const start = performance.now()", change, f"await {FRAME}")
        body = "; ".join((*parts, *after, "return performance.now() - start"))
        taken.append(page.evaluate(f"async () => {{ {body}; }}"))
    return taken


def measure(index: Path) -> dict[str, float]:
    from playwright.sync_api import sync_playwright

    figures: dict[str, list[float]] = {}
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        for _ in range(5):
            page = browser.new_page(viewport={"width": 1280, "height": 720})
            page.goto(f"file://{index}")
            page.wait_for_selector("main:not([aria-busy])")
            figures.setdefault("open, ms", []).append(page.evaluate("performance.now()"))
            page.close()
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(f"file://{index}#gallery")
        page.wait_for_selector(".card")
        click = "document.getElementById('{}').click()"
        figures["page turn, ms"] = timed(page, click.format("page-next"), 30)
        pictures = "await Promise.all([...document.querySelectorAll('.card img')].map(i => i.decode()))"
        figures["the same, until its pictures are decoded, ms"] = timed(
            page, click.format("page-next"), 30, pictures
        )
        sort = "cxrReport.go('#gallery?sort=score&up=' + (location.hash.includes('up=1') ? 0 : 1))"
        figures["sort all by score, ms"] = timed(page, sort, 10)
        narrow = "cxrReport.go('#gallery?class=Mass&score=' + Math.random() / 2 + '..1&sort=size')"
        narrow = narrow.replace("Mass", CLASSES[1])
        figures["filter and sort, ms"] = timed(page, narrow, 10)
        figures["search in image names, ms"] = timed(
            page, "cxrReport.go('#gallery?text=' + Math.floor(Math.random() * 1000))", 10
        )
        step = "cxrReport.go('#finding?' + Math.floor(Math.random() * 5000))"
        figures["open a finding, ms"] = timed(page, step, 30)
        figures["the same, until its map is there, ms"] = timed(
            page,
            step,
            30,
            "while (document.getElementById('map').hidden) await new Promise(d => setTimeout(d, 1))",
        )
        heap = page.evaluate("performance.memory.usedJSHeapSize") / 2**20
        browser.close()
    return {name: statistics.median(values) for name, values in figures.items()} | {
        "slowest page turn, ms": max(figures["page turn, ms"]),
        "JavaScript's memory, MiB": heap,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--findings", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    images = -(-arguments.findings // (3 * len(CLASSES)))
    with tempfile.TemporaryDirectory() as folder:
        archive, run = Path(folder, "archive"), Path(folder, "run")
        phantoms = min(200, images)
        write_archive(Path(folder, "phantoms"), PhantomSettings(images=phantoms, size=SIDE))
        drawn = sorted(Path(folder, "phantoms", "images").iterdir())
        archive.mkdir()
        for i in range(images):
            (archive / f"{i:06d}.png").symlink_to(drawn[i % phantoms])
        made_up_run(run, images)
        start = time.perf_counter()
        report = write_report(run, str(archive), findings=arguments.findings)
        figures = {
            "findings": report.shown,
            "pictures": report.previews,
            "written in, s": time.perf_counter() - start,
            "size, MiB": report.bytes / 2**20,
            **measure(report.page.resolve()),
        }
    for name, value in figures.items():
        print(f"{name:40s} {value:10.6g}")
    if arguments.out:
        arguments.out.write_text(json.dumps({"cxr_fast": __version__, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
