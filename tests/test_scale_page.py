"""docs/scale.md: its derived numbers follow from its inputs, and its queries give what they say."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from written_run import MinedImage, write_run

from cxr_fast.archive.images import list_images

PAGE = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?%?")


def tables() -> Iterator[list[list[str]]]:
    """Each table as rows of cells, without the line below the header."""
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        yield [row for row in rows if not set("".join(row)) <= set("- ")]


TABLES = list(tables())
INPUTS = {
    row[0].strip("`"): float(row[1]) for rows in TABLES if rows[0][0] == "symbol" for row in rows[1:]
}


def derived() -> Iterator[tuple[str, str, float | None]]:
    """Formula, the cell with its value, and what x is in that column: the number above it."""
    for header, *rows in TABLES:
        if len(header) < 3 or header[1] != "formula":
            continue
        for row in rows:
            if not row[1].startswith("`"):
                assert row[1] == "measured"
                continue
            columns = [n for n, name in enumerate(header) if n > 1 and NUMBER.fullmatch(name)]
            for n in columns or [2]:
                yield row[1].strip("`"), row[n], number(header[n]) if columns else None
    for formula, value in re.findall(r"`([^`]+)`\s+=\s+(\S+)", PAGE):
        yield formula, value, None


def number(text: str) -> float:
    value = float(text.replace(",", "").rstrip("%"))
    return value / 100 if text.endswith("%") else value


CASES = list(derived())


def test_there_is_something_to_check() -> None:
    assert len(INPUTS) == 22
    assert len(CASES) > 40
    used = " ".join(formula for formula, _, _ in CASES)
    assert {name for name in INPUTS if not re.search(rf"\b{name}\b", used)} == set()


@pytest.mark.parametrize(("formula", "cell", "x"), CASES)
def test_a_derived_number(formula: str, cell: str, x: float | None) -> None:
    found = NUMBER.match(cell)
    assert found, cell
    text = found.group()
    names = INPUTS | {"ceil": math.ceil} | ({} if x is None else {"x": x})
    value = eval(formula, {"__builtins__": {}}, names)
    decimals = len(text.rstrip("%").partition(".")[2]) + 2 * text.endswith("%")
    assert abs(value - number(text)) <= 0.5001 * 10**-decimals, f"{formula} is {value}"


def query(heading: str) -> str:
    found = re.search(rf"^### {heading}\n+```sql\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return found.group(1)


def test_manifests_share_the_archive_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"images/{i % 7}/{i:03d}.png" for i in range(100)]
    for name in names:
        path = Path("archive", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    text = query("A manifest for one machine")
    listed = []
    for machine in range(3):
        with duckdb.connect() as connection:
            connection.execute(
                text.replace("% 3 = 0", f"% 3 = {machine}").replace("list-0", f"list-{machine}")
            )
        ids = list(list_images(f"archive/list-{machine}.parquet").image_ids)
        assert 10 < len(ids) < 60
        assert ids == sorted(ids)
        listed += ids
    # The ids are those of the undivided archive, each once.
    assert sorted(listed) == list(list_images("archive").image_ids) == sorted(names)


def test_a_query_over_several_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    box = (1.0, 2.0, 3.0, 4.0, 0.5)
    for machine in range(3):
        mined = {"Mass": (0.75, [box] * (machine + 1)), "Nodule": (0.25 * machine, [box])}
        images = [MinedImage(f"{machine}.png", mined=mined), MinedImage("x.png", error="truncated PNG")]
        write_run(Path(f"run-{machine}"), images, ("Mass", "Nodule"), shard_size=1)
    text = query("Boxes of several runs")
    listed = re.search(r"\[.*\]", text)
    assert listed
    with duckdb.connect() as connection:
        for pattern in (listed.group(), "'run-*/findings/*.parquet'"):
            found = connection.sql(text.replace(listed.group(), pattern)).fetchall()
            assert found == [("Mass", 6), ("Nodule", 1)]
