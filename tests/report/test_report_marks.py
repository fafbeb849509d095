"""A reader's marks in a headless Chromium: set, kept, exported, read again."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from mined_run import FORMULA, HOSTILE, frame
from report_page import CARDS, go, hits, shown, until

from cxr_fast.report import write_report


def exported(page: Any, folder: Path) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.click("#export")
    path = folder / "marks.csv"
    download.value.save_as(path)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_marking_hides_no_finding(report: Path, page: Any) -> None:
    """Pages of what is not marked yet keep what is marked on them until the list is asked for again."""
    found = frame(report.parent)
    go(page, report, "#gallery?mark=none")
    for key in "jaja":
        page.keyboard.press(key)
    page.keyboard.press("n")
    assert shown(page) == list(range(CARDS, 2 * CARDS))
    page.click(".card")
    for _ in range(CARDS):
        page.keyboard.press("a")
    page.keyboard.press("Escape")
    assert shown(page) == list(range(2 * CARDS, 3 * CARDS))
    assert page.evaluate("document.activeElement.dataset.finding") == str(2 * CARDS)
    page.keyboard.press("Enter")
    page.keyboard.press("a")
    page.keyboard.press("Escape")  # to the same page
    assert shown(page) == list(range(2 * CARDS, 3 * CARDS))
    page.click("nav [data-view=marks]")
    page.click("main a[href*='mark=none']")
    assert hits(page) == len(found) - CARDS - 3
    assert shown(page)[0] == 2
    page.keyboard.press("j")
    page.evaluate("for (let i = 0; i < 3; i++) document.activeElement.dispatchEvent(new KeyboardEvent("
                  "'keydown', {key: 'a', bubbles: true, repeat: i > 0}))")  # fmt: skip
    page.keyboard.press("Enter")
    page.evaluate("for (let i = 0; i < 3; i++) document.activeElement.dispatchEvent(new KeyboardEvent("
                  "'keydown', {key: 'r', bubbles: true, repeat: i > 0}))")  # fmt: skip
    page.dblclick("#mark-accept")
    assert page.inner_text("#place").startswith("3 of")  # one for the key, one for the double click
    go(page, report, "#marks")
    assert page.inner_text("#mark-counts").startswith(f"{CARDS + 4} accepted, 1 rejected")
    page.dblclick("#clear")
    assert page.inner_text("#mark-counts").startswith(f"{CARDS + 4} accepted, 1 rejected")


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
    go(other, report, "#marks")
    page.keyboard.press("k")
    page.keyboard.press("r")
    until(
        other, "document.getElementById('mark-counts').textContent.startsWith('1 accepted, 1 rejected')"
    )
    go(other, report, "#finding?0")
    page.keyboard.press("k")
    page.keyboard.press("k")
    page.keyboard.press("r")
    until(other, "document.getElementById('stage').dataset.mark === 'reject'")
    other.keyboard.press("Escape")
    page.keyboard.press("k")
    page.keyboard.press("k")
    page.keyboard.press("a")
    until(other, "document.querySelector('.card').classList.contains('accept')")
    page.keyboard.press("a")
    go(page, report, "#marks")
    assert page.inner_text("#mark-counts").startswith("2 accepted, 0 rejected")
    page.reload()
    page.wait_for_selector("#mark-counts")
    assert page.inner_text("#mark-counts").startswith("2 accepted, 0 rejected")


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
