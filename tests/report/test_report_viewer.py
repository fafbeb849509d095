"""The report's viewer in a headless Chromium: layers, boxes, zoom, the way from finding to finding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mined_run import CELLS, CLASSES, HEIGHT, WIDTH, frame, read
from report_page import CARDS, go, hits, until

from cxr_fast.report import write_report


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
    first = whole
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

    # Of a drag that began elsewhere nothing moves; a window of another size has the box in the middle.
    page.keyboard.press("z")
    centred(1)
    before = seen()[1]
    panel = page.query_selector("#facts").bounding_box()
    page.mouse.move(panel["x"] + 5, panel["y"] + 5)
    page.mouse.down()
    page.mouse.move(*pointer, steps=3)
    page.mouse.up()
    assert seen()[1] == pytest.approx(before, abs=0.5)
    page.set_viewport_size({"width": 1100, "height": 500})
    until(page, f"document.getElementById('frame').offsetWidth !== {round(before[2])}")
    whole = np.array(
        [0, 0, *(WIDTH * np.min(seen()[0][2:] / [WIDTH, HEIGHT]) * np.array([1, HEIGHT / WIDTH]))]
    )
    plain["height"] *= whole[2] / first[2]
    centred(1)
    page.keyboard.press("z")

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


def test_focus_and_place_stay_with_the_reader(report: Path, page: Any) -> None:
    go(page, report, "#finding?0")
    page.focus("#next")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.inner_text("#place").startswith("3 of")
    page.focus("#brightness")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("j")
    page.keyboard.press("ArrowRight")
    assert page.input_value("#brightness") == "1.1"
    assert page.inner_text("#place").startswith("4 of")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.finding") == "3"
    page.set_viewport_size({"width": 800, "height": 600})
    page.evaluate("document.getElementById('main').scrollTo(0, 10000)")
    page.click(f"[data-finding='{CARDS - 1}']")
    stage = page.query_selector("#stage").bounding_box()
    assert page.query_selector("header").bounding_box()["y"] == 0
    assert 0 < stage["y"] < 150
    # Into another list, and back to the place in this one.
    page.set_viewport_size({"width": 1280, "height": 720})
    go(page, report, "#gallery?class=A&mark=none")
    page.click(".card >> nth=2")
    while page.query_selector("#others button") is None:
        page.keyboard.press("j")
    place = page.inner_text("#place")
    page.click("#others button")
    assert page.inner_text("h2") != "A"
    page.go_back()
    until(page, f"document.getElementById('place').textContent === '{place}'")
    assert page.inner_text("h2") == "A"


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


def test_rank_is_of_all_only_where_all_are_shown(run: Path, page: Any) -> None:
    found = frame(run)
    rank = "document.querySelector('#facts dd').textContent"
    write_report(run)
    go(page, run / "report", "#finding?0")
    own = (found.image_id == found.image_id[0]) & (found["class"] == found["class"][0])
    assert page.evaluate(rank) == f"1 of {own.sum()}"
    write_report(run, findings=3)  # what the image has beside these is not there to be counted
    page.reload()
    page.wait_for_selector("#stage")
    likely = found[found.image_id == page.inner_text("#image-id")]
    assert int(page.evaluate(rank)) in set(likely["rank"])
