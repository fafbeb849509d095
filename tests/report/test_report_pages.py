"""The report's pages in a headless Chromium: overview, gallery, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from mined_run import CLASSES, HOSTILE, frame, read
from report_page import CARDS, go, hits, shown, until

from cxr_fast.report import write_report


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


def test_fields_keep_what_a_reader_does_in_them(report: Path, page: Any) -> None:
    found = frame(report.parent)
    go(page, report, "#gallery")
    page.fill("#filter-score-from", "0.3")
    page.keyboard.press("Tab")
    page.keyboard.type("0.6")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "filter-score-to"
    assert page.evaluate("location.hash") == "#gallery?score=0.3..0.6"
    assert hits(page) == ((found.score >= 0.3) & (found.score <= 0.6)).sum()
    page.fill("#filter-text", "p1/")
    page.click("#filter-clear")  # the field is left by the click, which is not lost
    assert hits(page) == len(found)
    assert page.input_value("#filter-text") == ""
    page.focus("#filter-class input[value='2']")
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.value") == "2"
    assert hits(page) == (found["class"] == "C").sum()
    page.keyboard.press("/")
    page.keyboard.type("p1/")
    page.keyboard.press("Enter")
    named = found[(found["class"] == "C") & found.image_id.str.startswith("p1/")]
    assert hits(page) == len(named)
    page.keyboard.type("nowhere")
    page.keyboard.press("Escape")
    assert page.input_value("#filter-text") == "p1/"
    assert hits(page) == len(named)
    page.keyboard.press("/")
    page.keyboard.type("p2/")  # instead of what was there
    assert page.input_value("#filter-text") == "p2/"
    page.keyboard.press("Escape")
    # Letters are commands also where the order was chosen last.
    page.focus("#sort")
    page.keyboard.press("ArrowDown")
    assert page.input_value("#sort") == "probability"
    page.select_option("#direction", "up")
    page.focus("#sort")
    page.keyboard.press("a")
    page.keyboard.press("s")
    assert page.input_value("#sort") == "probability"
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.className").startswith("card")
    page.select_option("#sort", "archive")
    assert shown(page) == named.index[:CARDS].tolist()  # and not turned round as probability was
    # The filter is there again after a look at something else.
    page.click("nav [data-view=marks]")
    page.click("nav [data-view=gallery]")
    assert hits(page) == len(named)


def test_the_skip_link_stays_in_the_view(report: Path, page: Any) -> None:
    go(page, report, "#gallery?class=B")
    page.focus(".skip")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.evaluate("document.body.dataset.view + location.hash") == "gallery#gallery?class=B"


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
    (report / "previews" / "000" / "000001.jpg").unlink()
    other = int(np.flatnonzero(read(report, "findings")["image"] == 1)[0])
    go(opened, report, f"#finding?{other}")
    opened.wait_for_selector("#frame .plate")
    assert "previews/000/000001.jpg is missing" in opened.inner_text("#frame")
    (report / "data" / "findings.js").write_text("cxrReport.receive(...[")
    go(opened, report)
    opened.reload()
    opened.wait_for_selector(".problem")
    assert "data/findings.js is damaged; write the report again" in opened.inner_text(".problem")
    opened.close()


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
