"""Published figures: the paper's tables as constants, and Wang's table through the arithmetic."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_fast import metrics
from cxr_fast.config import BOXED_FINDINGS
from cxr_fast.evaluate import afp_bounds
from cxr_fast.paper import TABLE1, TABLE2, TABLE3, Cell

# Wang et al. (CVPR 2017): localisation by T(IoBB) of "Chestx-ray8", its Table 4, four digits.
WANG = {
    0.1: (
        "0.7277 0.9931 0.7124 0.7886 0.4352 0.1645 0.7500 0.4591",
        "0.8323 0.3506 0.7998 0.5589 0.6423 0.6047 0.9055 0.4776",
    ),
    0.25: (
        "0.5500 0.9794 0.5424 0.5772 0.2823 0.0506 0.5583 0.3469",
        "0.9167 0.4553 0.8598 0.6077 0.6707 0.6158 0.9614 0.5000",
    ),
    0.5: (
        "0.2833 0.8767 0.3333 0.4227 0.1411 0.0126 0.3833 0.1836",
        "1.0203 0.5630 0.9268 0.6585 0.6941 0.6189 1.0132 0.5285",
    ),
    0.75: (
        "0.1666 0.7260 0.2418 0.3252 0.1176 0.0126 0.2583 0.1020",
        "1.0619 0.6616 0.9603 0.6921 0.7043 0.6199 1.0569 0.5396",
    ),
    0.9: (
        "0.1333 0.6849 0.2091 0.2520 0.0588 0.0126 0.2416 0.0816",
        "1.0752 0.7226 0.9797 0.7124 0.7144 0.6199 1.0732 0.5437",
    ),
}
TRUTHS = (180, 146, 153, 123, 85, 79, 120, 98)  # boxes in BBox_List_2017
DENOMINATOR = 984


def printed(part: int, whole: int, *, rounded: bool) -> str:
    """A ratio at four digits, rounded half up or cut, in integers."""
    digits = (2 * part * 10_000 + rounded * whole) // (2 * whole)
    return f"{digits // 10_000}.{digits % 10_000:04d}"


def count_behind(cell: str, whole: int, roundings: tuple[bool, ...]) -> int:
    """The one k whose k / whole is printed so."""
    counts = [k for k in range(2 * whole) if cell in {printed(k, whole, rounded=r) for r in roundings}]
    assert len(counts) == 1, (cell, whole)
    return counts[0]


@pytest.mark.parametrize("threshold", WANG)
def test_wangs_integers_come_back_as_wangs_digits(threshold: float) -> None:
    """A set of detections with exactly their counts, all eight findings through one table."""
    accs, afps = (cells.split() for cells in WANG[threshold])
    drawn, elsewhere = (100, 100, 300, 300), (700, 700, 800, 900)
    detected: list[tuple[int, int, int, tuple[int, ...]]] = []
    truth: list[tuple[int, int, tuple[int, ...]]] = []
    counts = []
    for c, (acc, afp, total) in enumerate(zip(accs, afps, TRUTHS, strict=True)):
        # Every cell of Acc is cut; those of AFP are partly cut, partly rounded.
        found, missed = (
            count_behind(acc, total, (False,)),
            count_behind(afp, DENOMINATOR, (False, True)),
        )
        counts.append((found, missed))
        truth += [(image, c, drawn) for image in range(total)]
        detected += [(image, 1, c, drawn) for image in range(found)]
        detected += [(k % 880, 2 + k // 880, c, elsewhere) for k in range(missed)]
    rows, drawn_rows = zip(*detected, strict=True), zip(*truth, strict=True)
    table = metrics.localization_table(
        *map(np.array, rows),
        *map(np.array, drawn_rows),
        findings=BOXED_FINDINGS,
        overlap_thresholds=[threshold],
        images="all",
        all_images=DENOMINATOR,
        overlap="iobb",
    )
    for row, acc, afp, count in zip(table, accs, afps, counts, strict=True):
        assert (row.result.found, row.result.false_positives) == count
        assert f"{row.result.acc:.12f}"[:6] == acc
        assert afp in (f"{row.result.afp:.12f}"[:6], f"{row.result.afp:.4f}")


def test_the_numbers_of_images_do_not_fit_wangs_false_positives() -> None:
    """984 is the number of boxes. Cells that no k / 880 or k / 983 is printed as, say so."""
    cells = {cell for _, afps in WANG.values() for cell in afps.split()}

    def misfits(images: int) -> int:
        possible = {printed(k, images, rounded=r) for k in range(2 * images) for r in (False, True)}
        return len(cells - possible)

    assert misfits(DENOMINATOR) == 0
    assert misfits(880) > 10
    assert misfits(983) > 10
    assert printed(595, DENOMINATOR, rounded=True) == "0.6047"
    assert printed(595, DENOMINATOR, rounded=False) == "0.6046"


def test_cells_of_the_tables() -> None:
    assert TABLE1["512-bilinear"] == dict(
        zip(BOXED_FINDINGS, (0.21, 0.62, 0.34, 0.54, 0.35, 0.24, 0.37, 0.29), strict=True)
    )
    assert TABLE2[0.1]["ref."]["Nodule"] == Cell(acc=0.14, afp=0.61)
    assert TABLE2[0.3]["ref."]["Atelectasis"].afp == 1.40
    assert TABLE2[0.7]["ours"]["Pneumothorax"] == (0.02, 0.53)
    assert TABLE3[0.1]["t=3"] == TABLE3[0.1]["KP"]
    assert TABLE3[0.3]["w/o KP"]["Cardiomegaly"] == 0.99
    assert [len(t) for t in (TABLE1, TABLE2, TABLE3)] == [6, 7, 2]


def paper_rows() -> list[list[str]]:
    folder = Path(__file__).parents[1].parent / "shared" / "paper"
    texts = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not texts:
        pytest.skip("the paper's text is not in ../shared/paper")
    text = re.sub(r"</?[bu]>", "", texts[0].read_text())
    return [line.split("\t") for line in text.splitlines() if line.count("\t") >= 8]


def test_tables_are_the_papers() -> None:
    rows = paper_rows()
    first = {row[0]: [float(v) for v in row[1:]] for row in rows if re.match("(512|1024)-", row[0])}
    assert first == {method: list(cells.values()) for method, cells in TABLE1.items()}
    seen, threshold = 0, 0.0
    for row in rows:
        if row[1] in ("ref.", "base.", "ours"):
            threshold = float(row[0]) if row[0] else threshold
            cells = [tuple(map(float, cell.split("-"))) for cell in row[2:]]
            assert list(TABLE2[threshold][row[1]].values()) == cells
            seen += 1
    assert seen == 3 * len(TABLE2) == 21
    thirds = [row[1:] for row in rows if row[1] in TABLE3[0.1]]
    for threshold, part in ((0.1, thirds[:3] + thirds[6:9]), (0.3, thirds[3:6] + thirds[9:])):
        cells = {method: [float(v) for v in values] for method, *values in part}
        assert cells == {method: list(row.values()) for method, row in TABLE3[threshold].items()}


def test_bounds_of_the_paper_and_of_a_file(tmp_path: Path) -> None:
    notes: list[str] = []
    got = afp_bounds("paper", ("Nodule", "Hernia"), (0.1, 0.7), notes)
    np.testing.assert_array_equal(got, [[0.61, 0.62], [np.inf, np.inf]])
    assert notes == ["Without AFP bound, so over all boxes: Hernia."]
    assert np.isinf(afp_bounds("none", ("Nodule",), (0.35,), notes)).all()
    with pytest.raises(ValueError, match=r"expected one for T\(IoU\) 0.35, but paper gives .* 0.7"):
        afp_bounds("paper", ("Nodule",), (0.35,), notes)

    def bounds_of(*lines: str) -> Any:
        table = tmp_path / "bounds.csv"
        table.write_text("finding,iou_threshold,afp\n" + "\n".join(lines) + "\n")
        return afp_bounds(table, ("Mass",), (0.35,), notes)

    np.testing.assert_array_equal(bounds_of("Mass,0.35,1.5", "Nodule,0.1,2"), [[1.5]])
    for line, message in (
        ("Mass,0.35,", "line 2: expected T"),
        ("Mass,35,1", "line 2: expected T"),
        ("Mass,0.35,-1", "line 2: expected T"),
        ("Mass,0.1,1", r"expected one for T\(IoU\) 0.35"),
    ):
        with pytest.raises(ValueError, match=message):
            bounds_of(line)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns finding, iou_threshold, afp"):
        afp_bounds(tmp_path / "other.csv", ("Mass",), (0.35,), notes)


def test_wangs_table_is_the_one_at_hand(shared_data: Path) -> None:
    table = shared_data.parent / "notes" / "wang2017.csv"
    if not table.exists():
        pytest.skip("wang2017.csv is not here")
    with table.open(newline="") as file:
        rows = {(float(r["t_iobb"]), r["measure"]): r for r in csv.DictReader(file)}
    for (threshold, measure), row in rows.items():
        cells = WANG[threshold][("acc", "afp").index(measure)].split()
        assert [row[finding] for finding in BOXED_FINDINGS] == cells
    assert len(rows) == 2 * len(WANG)
