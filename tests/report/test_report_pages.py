"""The report's pages in a headless Chromium, opened from the disk as a reader opens them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from mined_run import CELLS, CLASSES, FORMULA, HEIGHT, HOSTILE, WIDTH, frame, read
from PIL import Image

from cxr_fast.report import write_report

playwright = pytest.importorskip("playwright.sync_api")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
CARDS = 24


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=QUIET)
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


def go(page: Any, report: Path, address: str = "") -> None:
    page.goto(f"file://{report}/index.html{address}")
    page.wait_for_selector("main:not([aria-busy])")


def until(page: Any, expression: str) -> None:
    """Wait; Playwright's own way evaluates text inside the page, which the page forbids."""
    for _ in range(250):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"never came true: {expression}")


def hits(page: Any) -> int:
    return int(page.inner_text("#hits").split(" of ")[0].replace(",", ""))


def shown(page: Any) -> list[int]:
    """The rows of the findings whose cards are there."""
    cards = page.query_selector_all(".card")
    return [int(card.get_attribute("data-finding")) for card in cards]


def test_the_overview_says_what_there_is(report: Path, page: Any) -> None:
    found = frame(report.parent)
    go(page, report)
    assert page.inner_text("#totals").startswith(
        f"{len(found)} findings of 3 classes in 50 images, 1 of"
    )
    cards = page.query_selector_all(".class-card")
    assert len(cards) == 3
    for card, name in zip(cards, CLASSES, strict=True):
        own = found[found["class"] == name]
        text = card.inner_text()
        assert name in text
        assert f"{len(own)} findings in {own.image_id.nunique()} images" in text
        assert f"mean score {own.score.mean():.2f}" in text
        assert len(card.query_selector_all(".histogram")) == 2
    assert "empty file" in page.inner_text("main")
    backdrop = "[...document.querySelectorAll('.chest img')].map((i) => i.complete && i.naturalWidth)"
    until(page, f"{backdrop}.join() === '128,128,128'")
    assert "1 of 49 pictures are not in" in page.inner_text(".left-out")
    page.click(".class-card a")
    page.wait_for_selector(".card")
    assert hits(page) == (found["class"] == "A").sum()


def test_filters_order_and_pages(report: Path, page: Any) -> None:
    found = frame(report.parent)
    go(page, report, "#gallery")
    assert hits(page) == len(found)
    assert shown(page) == list(range(CARDS))
    page.check("#filter-class input[value='1']")
    until(page, "document.querySelector('#filter-class input[value=\"1\"]').checked")
    own = found[found["class"] == CLASSES[1]]
    assert hits(page) == len(own)
    page.fill("#filter-score-from", "0.5")
    page.press("#filter-score-from", "Enter")
    own = own[own.score >= 0.5]
    until(page, f"document.getElementById('hits').textContent.startsWith('{len(own)} ')")
    page.select_option("#sort", "size")
    area = (own.x2 - own.x1) * (own.y2 - own.y1)
    expected = area.sort_values(ascending=False, kind="stable").index.tolist()
    until(page, f"document.querySelector('.card').dataset.finding === '{expected[0]}'")
    assert shown(page) == expected[:CARDS]
    page.select_option("#direction", "up")
    expected = area.sort_values(kind="stable").index.tolist()
    until(page, f"document.querySelector('.card').dataset.finding === '{expected[0]}'")
    assert shown(page) == expected[:CARDS]
    # The address is the filter: opened again, it shows the same.
    address = page.evaluate("location.hash")
    page.click("#filter-clear")
    until(page, "location.hash === '#gallery'")
    assert hits(page) == len(found)
    go(page, report, address)
    page.reload()
    page.wait_for_selector(".card")
    assert shown(page) == expected[:CARDS]
    page.click("#filter-clear")
    page.fill("#filter-text", "P3/")
    page.press("#filter-text", "Enter")
    named = found[found.image_id.str.contains("p3/")]
    until(page, f"document.getElementById('hits').textContent.startsWith('{len(named)} ')")
    page.click("#filter-clear")
    page.check("#filter-best")
    best = (found["rank"] == 1).sum()
    until(page, f"document.getElementById('hits').textContent.startsWith('{best} ')")
    page.click("#filter-clear")
    until(page, f"document.getElementById('hits').textContent.startsWith('{len(found)} ')")
    page.click("#page-next")
    until(page, "document.getElementById('page').value === '2'")
    assert shown(page) == list(range(CARDS, 2 * CARDS))
    page.click("#page-last")
    pages = -(-len(found) // CARDS)
    until(page, f"document.getElementById('page').value === '{pages}'")
    assert shown(page) == list(range((pages - 1) * CARDS, len(found)))
    assert page.is_disabled("#page-next")
    page.go_back()
    until(page, "document.getElementById('page').value === '2'")
    # Boxes of one image and class share a probability: equal ones stay in the archive's order.
    go(page, report, "#gallery?sort=probability")
    page.wait_for_selector(".card")
    likely = found.probability.sort_values(ascending=False, kind="stable").index.tolist()
    assert shown(page) == likely[:CARDS]
    go(page, report, "#gallery?score=0.999..0.9991&text=nowhere")
    assert "No finding passes" in page.inner_text("main")


def pixels(page: Any) -> np.ndarray:
    """The canvas over the image, [H, W, 4]."""
    given = page.evaluate(
        "() => { const c = document.getElementById('map'); return [c.height, c.width,"
        " [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]; }"
    )
    return np.array(given[2]).reshape(given[0], given[1], 4)


def test_layers_are_the_steps(report: Path, page: Any) -> None:
    layer = read(report, "layers-000000")["maps"][0]
    go(page, report, "#finding?0")
    page.wait_for_selector("#map:not([hidden])")
    assert page.get_attribute("[data-layer=all]", "aria-pressed") == "true"
    erased_at, cam = (layer[name].reshape(CELLS).astype(int) for name in ("erased_at", "cam"))
    brightness = []
    for t, key in ((1, "1"), (2, "2")):
        page.keyboard.press(key)
        page.wait_for_selector(f"[data-layer='{t}'][aria-pressed=true]")
        drawn = pixels(page)
        gone = (erased_at > 0) & (erased_at < t)
        grey_cells = (np.abs(drawn[..., :3] - 120) <= 1).all(-1) & (drawn[..., 3] == 150)
        assert (grey_cells == gone).all()
        outline = page.query_selector("#boxes .erased")
        assert (outline is None) == (t == 1)
        if outline:
            # As long as there are sides between cells that are erased and others, or the edge.
            padded = np.pad(gone, 1)
            sides = [np.count_nonzero(np.diff(padded.astype(int), axis=axis)) for axis in (0, 1)]
            path = outline.get_attribute("d")
            assert [path.count("h"), path.count("v")] == sides
        # Brighter where there is more attention, among the cells that are left.
        alive = cam[~gone]
        grey = drawn[..., 3][~gone]
        order = np.argsort(alive, kind="stable")
        assert (np.diff(grey[order]) >= 0).all()
        brightness.append(grey)
    page.keyboard.press("0")
    page.wait_for_selector("[data-layer=all][aria-pressed=true]")
    levels = layer["heatmap"].reshape(CELLS).astype(int)
    assert np.abs(pixels(page)[..., 3] - np.minimum(255, 1.25 * levels)).max() <= 1
    page.keyboard.press("h")
    assert page.is_hidden("#map")
    page.keyboard.press("h")
    page.fill("#opacity", "0.25")
    assert page.evaluate("document.getElementById('map').style.opacity") == "0.25"


def test_boxes_and_truth(report: Path, page: Any) -> None:
    found, got = frame(report.parent), read(report, "findings")
    row = int(np.flatnonzero(np.isfinite(got["iou"]))[0])
    go(page, report, f"#finding?{row}")
    same = found[(found.image_id == found.image_id[row]) & (found["class"] == found["class"][row])]

    def drawn(kind: str) -> list[list[float]]:
        boxes = page.query_selector_all(f"#boxes .{kind} .line")
        return [[float(b.get_attribute(n)) for n in ("x", "y", "width", "height")] for b in boxes]

    own = found.loc[row]
    expected = [own.x1, own.y1, own.x2 - own.x1, own.y2 - own.y1]
    assert drawn("current")[0] == pytest.approx(expected, abs=1e-3)
    assert drawn("truth")[0] == pytest.approx(expected, abs=1e-3)
    assert len(drawn("other")) == len(same) - 1
    labels = sorted(label.text_content() for label in page.query_selector_all("#boxes .box text"))
    assert labels == sorted(["true", *(f"{score:.2f}" for score in same.score)])
    assert "IoU with truth\n1.00" in page.inner_text("#facts")
    # What is drawn lies where it should on the screen: the frame has the image's proportions.
    frame_box = page.query_selector("#frame").bounding_box()
    assert frame_box["width"] / frame_box["height"] == pytest.approx(WIDTH / HEIGHT, rel=0.01)
    assert frame_box["x"] >= 0
    assert frame_box["y"] + frame_box["height"] <= 720
    line = page.query_selector("#boxes .current .line").bounding_box()
    scale = frame_box["width"] / WIDTH
    assert line["x"] - frame_box["x"] == pytest.approx(own.x1 * scale, abs=3)
    assert line["width"] == pytest.approx(expected[2] * scale, abs=6)
    page.keyboard.press("t")
    assert drawn("truth") == []
    page.keyboard.press("b")
    assert drawn("current") == []


def test_zoom_and_brightness(report: Path, page: Any) -> None:
    """The part of the image that is seen, as the browser lays it out."""
    found = frame(report.parent)
    go(page, report, "#finding?0")

    def seen() -> tuple[np.ndarray, np.ndarray]:
        """Left, top, width, height of the stage and of the image."""
        boxes = [page.query_selector(name).bounding_box() for name in ("#stage", "#frame")]
        stage, image = (np.array([b["x"], b["y"], b["width"], b["height"]]) for b in boxes)
        return stage + np.array([3, 3, -6, -6]), image  # within its border

    def centred(row: int) -> None:
        own = found.loc[row]
        stage, image = seen()
        line = page.query_selector("#boxes .current .line").bounding_box()
        share = np.array([line["width"], line["height"]]) / stage[2:]
        assert share.max() == pytest.approx(0.6, abs=0.02) or image[2] == pytest.approx(
            8 * whole[2], rel=0.01
        )
        assert image[2] / image[3] == pytest.approx(WIDTH / HEIGHT, rel=0.01)
        middle = np.array([own.x1 + own.x2, own.y1 + own.y2]) / 2 / [WIDTH, HEIGHT]
        half = np.minimum(
            stage[2:] / image[2:] / 2, 0.5
        )  # as near to the edge as the image fills the stage
        expected = np.clip(middle, half, 1 - half)
        assert (stage[:2] + stage[2:] / 2 - image[:2]) / image[2:] == pytest.approx(expected, abs=0.01)
        letters = page.query_selector("#boxes .current text").bounding_box()
        assert letters["height"] == pytest.approx(plain["height"], rel=0.15)

    _, whole = seen()
    plain = page.query_selector("#boxes .current text").bounding_box()
    page.keyboard.press("z")
    centred(0)
    page.keyboard.press("j")  # the next one, too
    assert page.get_attribute("#toggle-near", "aria-pressed") == "true"
    centred(1)
    page.keyboard.press("z")
    assert seen()[1] == pytest.approx(whole, abs=0.5)

    pointer = whole[:2] + whole[2:] * [0.4, 0.55]
    page.mouse.move(*pointer)
    page.mouse.wheel(0, -400)
    until(page, f"document.getElementById('frame').offsetWidth > {1.5 * whole[2]}")
    stage, image = seen()
    assert image[2] / whole[2] == pytest.approx(np.e, rel=0.02)
    assert (pointer - image[:2]) / image[2:] == pytest.approx([0.4, 0.55], abs=0.01)
    page.mouse.down()
    page.mouse.move(*(pointer + np.array([30, -20])), steps=3)
    assert seen()[1][:2] - image[:2] == pytest.approx([30, -20], abs=1.5)
    page.mouse.move(*(pointer + np.array([3000, 0])))
    page.mouse.up()
    assert seen()[1][0] == pytest.approx(stage[0], abs=1)  # no further than the image's edge
    page.keyboard.press("+")
    assert seen()[1][2] == pytest.approx(1.25 * image[2], rel=0.01)
    for _ in range(20):
        page.keyboard.press("-")
    assert seen()[1] == pytest.approx(whole, abs=0.5)

    tone = "getComputedStyle(document.querySelector('#frame img')).filter"
    page.fill("#contrast", "2")
    page.keyboard.press("i")
    page.keyboard.press("j")
    assert page.evaluate(tone) == "brightness(1) contrast(2) invert(1)"
    assert page.input_value("#contrast") == "2"
    page.keyboard.press("v")
    assert page.evaluate(tone) == "brightness(1) contrast(1) invert(0)"


def test_keys_walk_through_findings(report: Path, page: Any) -> None:
    go(page, report, "#gallery")
    page.keyboard.press("j")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("k")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.dataset.finding") == "1"
    page.keyboard.press("Enter")
    page.wait_for_selector("#stage")
    assert page.inner_text("#place").startswith("2 of ")
    for key, place in (("j", 3), ("ArrowDown", 4), ("k", 3), ("ArrowLeft", 2), ("k", 1), ("k", 1)):
        page.keyboard.press(key)
        until(page, f"document.getElementById('place').textContent.startsWith('{place} of')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#cards")
    page.keyboard.press("/")
    until(page, "document.activeElement.id === 'filter-text'")
    page.keyboard.type("jar")  # letters typed into a field are no commands
    assert page.input_value("#filter-text") == "jar"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    assert "next, previous" in page.inner_text("#help")
    page.keyboard.press("Escape")
    assert page.is_hidden("#help")
    for keys, view in (("gm", "marks"), ("go", "overview"), ("gg", "gallery")):
        for key in keys:
            page.keyboard.press(key)
        until(page, f"document.body.dataset.view === '{view}'")


def press_at_once(page: Any, *keys: str) -> None:
    """With no moment between them in which the browser could do anything else."""
    page.evaluate(
        "keys => { for (const key of keys) document.activeElement.dispatchEvent("
        "new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true})); }",
        list(keys),
    )


def test_a_key_is_of_what_is_seen_when_it_is_pressed(report: Path, page: Any) -> None:
    found = frame(report.parent)
    go(page, report, "#gallery")
    press_at_once(page, "n", "n", "p", "n", "j")
    assert page.input_value("#page") == "3"
    assert page.evaluate("document.activeElement.dataset.finding") == str(2 * CARDS)
    press_at_once(page, "k")  # over the edge of a page
    assert page.input_value("#page") == "2"
    assert page.evaluate("document.activeElement.dataset.finding") == str(2 * CARDS - 1)
    page.evaluate("document.activeElement.click()")
    press_at_once(page, "a", "a", "j", "r", "Escape")
    assert page.input_value("#page") == "3"
    page.click("#filter-clear")
    assert hits(page) == len(found)
    press_at_once(page, "g", "m")
    assert page.inner_text("#mark-counts").startswith("2 accepted, 1 rejected")
    press_at_once(page, "/")
    assert page.evaluate("document.activeElement.id") == "filter-text"
    # Filters cleared, page 3, and the finding once, however many the reader walked through.
    for view in ("marks", "gallery", "gallery", "finding", "gallery"):
        page.go_back()
        until(page, f"document.body.dataset.view === '{view}'")


def test_the_skip_link_stays_in_the_view(report: Path, page: Any) -> None:
    go(page, report, "#gallery?class=B")
    page.focus(".skip")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.evaluate("document.body.dataset.view + location.hash") == "gallery#gallery?class=B"


def exported(page: Any, folder: Path) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.click("#export")
    path = folder / "marks.csv"
    download.value.save_as(path)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_marks_stay_and_leave_as_csv(report: Path, page: Any, tmp_path: Path) -> None:
    found = frame(report.parent)
    odd = [int(found.index[found.image_id == name][0]) for name in (FORMULA, HOSTILE)]
    go(page, report, "#finding?0")
    page.keyboard.press("a")  # and on to the next
    until(page, "document.getElementById('place').textContent.startsWith('2 of')")
    page.keyboard.press("r")
    for row in odd:
        go(page, report, f"#finding?{row}")
        page.keyboard.press("a")
    page.reload()
    go(page, report, "#gallery?mark=accept")
    page.wait_for_selector(".card")
    assert shown(page) == [0, *sorted(odd)]
    go(page, report, "#marks")
    assert page.inner_text("#mark-counts").startswith("3 accepted, 1 rejected")
    rows = exported(page, tmp_path)
    assert [row["mark"] for row in rows] == ["accept", "reject", "accept", "accept"]
    for row, number in zip(rows, (0, 1, *odd), strict=True):
        own = found.loc[number]
        name = f"'{FORMULA}" if own.image_id == FORMULA else own.image_id
        assert (row["image_id"], row["class"], int(row["rank"])) == (name, own["class"], own["rank"])
        for column in ("x1", "y1", "x2", "y2", "score", "probability"):
            assert float(row[column]) == pytest.approx(own[column], rel=1e-6)
    # A report that is written again, of fewer findings, still has them.
    write_report(report.parent, findings=3)
    go(page, report, "#marks")
    assert page.inner_text("#mark-counts").startswith("3 accepted, 1 rejected")
    page.click("#clear")
    assert "Really take back 4 marks?" in page.inner_text("#clear")
    page.click("#clear")
    assert page.inner_text("#mark-counts").startswith("0 accepted, 0 rejected")
    page.set_input_files("#import", tmp_path / "marks.csv")
    until(page, "document.getElementById('told').textContent.startsWith('4 rows read: 4')")
    assert page.inner_text("#mark-counts").startswith("3 accepted, 1 rejected")
    (tmp_path / "wrong.csv").write_text("image_id,class,rank,mark\na.png,A,1,perhaps\n")
    page.set_input_files("#import", tmp_path / "wrong.csv")
    until(page, "document.getElementById('told').textContent.includes('Row 2 must have')")
    assert page.inner_text("#mark-counts").startswith("3 accepted, 1 rejected")


def test_a_finding_has_an_address_of_its_own(report: Path, page: Any) -> None:
    """Read again, it is the same one, in the same order: found by a filter that marking changes."""
    found = frame(report.parent)
    own = found[found["class"] == CLASSES[2]].sort_values("score", ascending=False, kind="stable").index
    go(page, report, "#gallery?class=C&sort=score&mark=none")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stage")
    page.keyboard.press("a")
    page.keyboard.press("j")
    until(page, "document.getElementById('place').textContent.startsWith('3 of')")
    assert page.inner_text("#image-id") == found.image_id[own[2]]
    page.reload()
    page.wait_for_selector("#stage")
    assert page.inner_text("#image-id") == found.image_id[own[2]]
    assert page.inner_text("#place") == f"2 of {len(own) - 1}"  # the accepted one is out now
    page.keyboard.press("k")
    until(page, "document.getElementById('place').textContent.startsWith('1 of')")
    assert page.inner_text("#image-id") == found.image_id[own[1]]
    go(page, report, f"#finding?{own[0]}&mark=none")  # in no such order: among all
    assert page.inner_text("#place").endswith(f" of {len(found)}")
    assert page.inner_text("#image-id") == found.image_id[own[0]]
    go(page, report, "#finding?1000000")
    page.wait_for_selector("#cards")


def test_windows_do_not_undo_each_others_marks(report: Path, page: Any) -> None:
    go(page, report, "#finding?0")
    other = page.context.new_page()
    go(other, report, "#finding?10")
    page.keyboard.press("a")
    until(page, "document.getElementById('place').textContent.startsWith('2 of')")
    other.keyboard.press("r")
    until(other, "document.getElementById('place').textContent.startsWith('12 of')")
    page.keyboard.press("a")
    until(page, "document.getElementById('place').textContent.startsWith('3 of')")
    other.keyboard.press("k")
    until(other, "document.getElementById('place').textContent.startsWith('11 of')")
    other.keyboard.press("c")
    # Browsers tell other windows of it a moment later.
    until(page, "cxrReport.marks.counts().accept === 2 && cxrReport.marks.counts().reject === 0")
    go(page, report, "#marks")
    assert page.inner_text("#mark-counts").startswith("2 accepted, 0 rejected")
    page.reload()
    page.wait_for_selector("#mark-counts")
    assert page.inner_text("#mark-counts").startswith("2 accepted, 0 rejected")


def test_a_name_is_text_and_nothing_else(report: Path, page: Any) -> None:
    found = frame(report.parent)
    row = int(found.index[found.image_id == HOSTILE][0])
    go(page, report, f"#finding?{row}")
    assert page.inner_text("#image-id") == HOSTILE
    assert page.inner_text("#image-note") == "<b>first</b>"
    assert page.query_selector("main img[src=x]") is None
    assert "no picture" in page.inner_text("#frame")
    go(page, report, "#gallery?text=onerror")
    page.wait_for_selector(".card")
    assert page.query_selector(".card .id").inner_text() == HOSTILE
    assert page.query_selector("main img[src=x]") is None


def test_a_folder_that_is_not_whole_says_so(report: Path, browser: Any) -> None:
    opened = browser.new_page()  # what is missing is an error of the console, too
    (report / "data" / "layers-000000.js").unlink()
    go(opened, report, "#finding?0")
    until(opened, "document.getElementById('notice').textContent.includes('is missing')")
    (report / "data" / "findings.js").write_text("cxrReport.receive(...[")
    go(opened, report)
    opened.reload()
    opened.wait_for_selector(".problem")
    assert "data/findings.js is damaged; write the report again" in opened.inner_text(".problem")
    opened.close()


def test_a_browser_that_keeps_nothing_says_so(report: Path, page: Any, tmp_path: Path) -> None:
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new Error('denied'); }})"
    )
    go(page, report, "#finding?0")
    assert "export marks before you close" in page.inner_text("#notice")
    page.keyboard.press("a")
    page.keyboard.press("g")
    page.keyboard.press("m")
    page.wait_for_selector("#export")
    assert [row["mark"] for row in exported(page, tmp_path)] == ["accept"]


def test_runs_with_less_in_them(run: Path, page: Any) -> None:
    for part in (run / "maps").iterdir():
        table = pd.read_parquet(part, partitioning=None)
        assert set(table.columns) >= {"heatmap", "cam", "erased_at"}
        kept = pq.read_table(part, partitioning=None).drop_columns(["cam", "erased_at", "heatmap"])
        pq.write_table(kept, part)
    write_report(run)
    go(page, run / "report", "#finding?0")
    assert page.inner_text("#layers") == "No heatmap"
    assert page.is_disabled("#toggle-map")
    assert page.query_selector("#toggle-truth") is None
    page.keyboard.press("1")
    page.keyboard.press("0")
    assert page.is_hidden("#map")
    assert json.loads(page.evaluate("JSON.stringify(cxrReport.summary.left_out)"))
