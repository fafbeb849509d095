"""Runs side by side: cells against what evaluate says, differences against scipy, names literally."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from judged_runs import Judged, judged_run, literal_walk, overlap, texts_of
from scipy import stats
from written_run import MinedImage, write_run

from cxr_fast.cli import main

NAMES = ("50% of $x_1$ & <b>|a~^\\{}#", "second_run")


def figure(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["figure", "table", *(str(a) for a in arguments)])


def document(judged: Judged, out: Path, *options: object) -> Path:
    arguments = ["evaluate", judged.run, "--truth", judged.table, "--out", out, *options]
    assert CliRunner().invoke(main, [str(a) for a in arguments]).exit_code == 0
    return out


@pytest.fixture
def two(tmp_path: Path) -> tuple[Judged, Judged]:
    return judged_run(tmp_path, "one", 15, 3), judged_run(tmp_path, "two", 45, 8)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_cells_are_those_of_a_literal_walk_and_of_evaluate(
    two: tuple[Judged, Judged], tmp_path: Path
) -> None:
    out = tmp_path / "t.csv"
    result = figure(two[0].run, two[1].run, "--truth", two[0].table, "--resamples", 50, "--out", out)
    assert result.exit_code == 0, result.output
    rows = {(r["run"], r["measure"], r["finding"], float(r["threshold"])): r for r in rows_of(out)}
    for judged in two:
        said = json.loads(
            document(judged, tmp_path / f"{judged.run.name}.json", "--resamples", 50).read_text()
        )
        cells = {(c["finding"], c["iou_threshold"]): c for c in said["localization"]}
        for finding in ("Mass", "Nodule"):
            for threshold in (0.1, 0.3):
                afp, acc = literal_walk(judged, finding, threshold)[-1]
                key = (judged.run.name, "acc", finding, threshold)
                assert float(rows[key]["value"]) == pytest.approx(acc)
                assert float(rows[key]["low"]) == cells[finding, threshold]["acc_low"]
                assert float(rows[key]["high"]) == cells[finding, threshold]["acc_high"]
                assert float(rows[key[0], "afp", *key[2:]]["value"]) == pytest.approx(afp)
        means = [literal_walk(judged, f, 0.3)[-1][1] for f in ("Mass", "Nodule")]
        assert float(rows[judged.run.name, "acc", "mean", 0.3]["value"]) == pytest.approx(
            np.mean(means)
        )


def found_by_image(judged: Judged, findings: tuple[str, ...], threshold: float) -> np.ndarray:
    """Truths and boxes found [I, 2] of the images that have truth of the findings."""
    counts: dict[str, np.ndarray] = {}
    for (image, finding), truths in judged.truth.items():
        if finding in findings:
            mined = judged.mined.get((image, finding), [])
            hit = sum(any(overlap(m, t) > threshold for m in mined) for t in truths)
            counts[image] = counts.get(image, np.zeros(2)) + np.array([len(truths), hit])
    return np.array([counts[image] for image in sorted(counts)])


@pytest.mark.parametrize("reference", ["one", "two"])
def test_differences_are_those_of_a_paired_bootstrap(
    two: tuple[Judged, Judged], tmp_path: Path, reference: str
) -> None:
    out = tmp_path / "t.csv"
    result = figure(two[0].run, two[1].run, "--truth", two[0].table, "--resamples", 5000,
                    "--iou-threshold", 0.5, "--reference", reference, "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = [r for r in rows_of(out) if r["measure"] == "acc difference"]
    assert {r["against"] for r in rows} == {reference}
    assert {r["run"] for r in rows} == {"one", "two"} - {reference}
    first, second = two if reference == "two" else two[::-1]
    for findings, shown in ((("Mass",), "Mass"), (("Mass", "Nodule"), "all boxes")):
        a, b = (found_by_image(judged, findings, 0.5) for judged in (first, second))
        bootstrap = stats.bootstrap(
            (a[:, 0], a[:, 1], b[:, 1]),
            lambda truths, hits, others, axis: (hits - others).sum(axis) / truths.sum(axis),
            paired=True, method="percentile", n_resamples=5000, rng=np.random.default_rng(0),
        )  # fmt: skip
        row = next(r for r in rows if r["finding"] == shown)
        difference = (a[:, 1] - b[:, 1]).sum() / a[:, 0].sum()
        assert float(row["value"]) == pytest.approx(difference)
        assert difference != 0
        ends = [float(row["low"]), float(row["high"])]
        np.testing.assert_allclose(ends, bootstrap.confidence_interval, atol=0.03)


def test_whole_patients_are_drawn_for_differences(two: tuple[Judged, Judged], tmp_path: Path) -> None:
    """One patient of all images: every resample is the sample."""
    labels, out = two[0].labels, tmp_path / "t.csv"
    arguments = (two[0].run, two[1].run, "--truth", two[0].table, "--labels", labels, "--out", out,
                 "--resample", "patients", "--iou-threshold", 0.5, "--resamples", 300)  # fmt: skip
    widths = []
    for _ in range(2):
        assert figure(*arguments).exit_code == 0
        row = next(r for r in rows_of(out) if r["measure"] == "acc difference")
        widths.append(float(row["high"]) - float(row["low"]))
        labels.write_text(re.sub(r",\d+\n", ",7\n", labels.read_text()))
    assert widths[0] > 0
    assert widths[1] == 0


def test_differences_below_a_bound_are_of_the_prefix(
    two: tuple[Judged, Judged], tmp_path: Path
) -> None:
    bounds, out = tmp_path / "bounds.csv", tmp_path / "t.csv"
    bounds.write_text("finding,iou_threshold,afp\nMass,0.5,0.35\nNodule,0.5,0.35\n")
    result = figure(two[0].run, two[1].run, "--truth", two[0].table, "--iou-threshold", 0.5,
                    "--afp-bounds", bounds, "--resamples", 20, "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    row = next(r for r in rows_of(out) if r["measure"] == "acc difference" and r["finding"] == "Mass")
    kept = [max(a for f, a in literal_walk(j, "Mass", 0.5) if f < 0.35) for j in two]
    assert float(row["value"]) == pytest.approx(kept[1] - kept[0])


def test_every_form_has_the_same_figures_and_marks_the_best(
    two: tuple[Judged, Judged], tmp_path: Path
) -> None:
    outs = [tmp_path / f"t.{kind}" for kind in ("md", "tex", "svg", "png", "pdf")]
    result = figure(two[0].run, two[1].run, "--truth", two[0].table, "--resamples", 30, "--with-afp",
                    "--iou-threshold", 0.5, "--name", NAMES[0], "--name", NAMES[1],
                    *(part for out in outs for part in ("--out", out)))  # fmt: skip
    assert result.exit_code == 0, result.output
    acc = np.array([[literal_walk(j, f, 0.5)[-1][1] for f in ("Mass", "Nodule")] for j in two])
    acc = np.column_stack([acc, acc.mean(axis=1)])
    best = acc.round(2) == acc.round(2).max(axis=0)
    best &= ~best.all(axis=0)
    assert best.any()
    markdown, latex = (tmp_path / "t.md").read_text(), (tmp_path / "t.tex").read_text()
    table = [line for line in markdown.splitlines() if line.startswith("|")][2:4]
    body = latex.split("\\midrule\n")[1].splitlines()
    mains = [body[0], body[3]]  # each with its interval and AFP below
    for run in range(2):
        for c in range(3):
            text = f"{acc[run, c]:.2f}"
            cell = re.split(r"(?<!\\)\|", table[run])[3 + c].split(" (")[0].strip()
            assert cell == (f"**{text}**" if best[run, c] else text)
            told = mains[run].replace(" \\\\", "").replace("\\&", "").split(" & ")[2 + c]
            assert told == (rf"\textbf{{{text}}}" if best[run, c] else text)
    texts = texts_of(tmp_path / "t.svg")
    for number in acc.ravel():
        assert f"{number:.2f}" in texts
    assert "second_run" in texts
    assert any(t.startswith("50% of $x_1$ & <b>") for t in texts)


def test_latex_specials_are_escaped(two: tuple[Judged, Judged], tmp_path: Path) -> None:
    out = tmp_path / "t.tex"
    args = (two[0].run, two[1].run, "--truth", two[0].table, "--resamples", 5)
    assert figure(*args, "--name", NAMES[0], "--name", "b", "--out", out).exit_code == 0
    row = next(line for line in out.read_text().splitlines() if "50" in line and "&" in line)
    name = re.split(r"(?<!\\) & ", row)[1]
    assert name == (
        r"50\% of \$x\_1\$ \& \textless{}b\textgreater{}\textbar{}a\textasciitilde{}"
        r"\textasciicircum{}\textbackslash{}\{\}\#"
    )


def test_documents_stand_in_for_folders_without_differences(
    two: tuple[Judged, Judged], tmp_path: Path
) -> None:
    documents = [document(j, tmp_path / f"{j.run.name}.json", "--resamples", 30) for j in two]
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    said = figure(*documents, "--out", first)
    assert said.exit_code == 0, said.output
    assert "No paired differences with one, two" in said.output
    again = figure(two[0].run, two[1].run, "--truth", two[0].table, "--resamples", 30, "--out", second)
    assert again.exit_code == 0
    assert rows_of(first) == [r for r in rows_of(second) if r["measure"] != "acc difference"]


def test_one_run_and_one_that_found_nothing(tmp_path: Path) -> None:
    judged = judged_run(tmp_path)
    empty = judged_run(tmp_path, "empty")
    for part in (empty.run / "findings").glob("*.parquet"):
        pq.write_table(pq.read_table(part).slice(0, 0), part)
    alone, both = tmp_path / "alone.md", tmp_path / "both.csv"
    assert figure(judged.run, "--truth", judged.table, "--out", alone).exit_code == 0
    assert "**0." not in alone.read_text()  # nothing to be better than
    assert "minus" not in alone.read_text()
    assert figure(judged.run, empty.run, "--truth", judged.table, "--out", both).exit_code == 0
    rows = [r for r in rows_of(both) if r["run"] == "empty" and r["measure"] == "acc"]
    assert {float(r["value"]) for r in rows} == {0.0}


def test_many_findings_are_turned_or_cut_into_blocks(tmp_path: Path) -> None:
    """In one column the findings do not fit across: all of them are there, whichever way."""
    judged = judged_run(tmp_path)
    whole = json.loads(document(judged, tmp_path / "d.json").read_text())
    names = [f"Finding {i}" for i in range(12)]
    cells = [c for c in whole["localization"] if c["finding"] == "Mass"]
    whole["localization"] = [{**c, "finding": name} for name in names for c in cells]
    sources = []
    for run in range(7):
        sources.append(tmp_path / f"run number {run}.json")
        sources[-1].write_text(json.dumps(whole))
    for count in (2, 7):
        out = tmp_path / f"{count}.svg"
        result = figure(*sources[:count], "--columns", "one", "--out", out)
        assert result.exit_code == 0, result.output
        assert set(names) <= set(texts_of(out))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("one", "--out", "t.md"), "needs --truth, unless it is a JSON file"),
        (("one", "two", "--truth", "boxes.csv", "--name", "a", "--out", "t.md"),
         "--name was given 1 times for 2 sources"),
        (("one", "two", "--truth", "boxes.csv", "--name", "a", "--name", "a", "--out", "t.md"),
         "two of the runs are named 'a'"),
        (("one", "--truth", "boxes.csv", "--reference", "x", "--out", "t.md"), "must be one of one"),
        (("boxes.csv", "--out", "t.md"), "must be a JSON document of `cxr-fast evaluate"),
        (("d.json", "--iou-threshold", 0.15, "--out", "t.md"), "was not judged at 0.15, but at 0.1"),
        (("one", "d.json", "--truth", "boxes.csv", "--overlap", "iobb", "--out", "t.md"),
         "with overlap iobb, d with iou; judge them alike"),
        (("one", "--truth", "boxes.csv", "--out", "t.docx"), ".svg, .md, .tex, .csv, but is t.docx"),
        (("d.json", "--out", "d.json"), "must end in"),
    ],
)  # fmt: skip
def test_refusals(
    two: tuple[Judged, Judged],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    sentence: str,
) -> None:
    document(two[0], tmp_path / "d.json")
    monkeypatch.chdir(tmp_path)
    result = figure(*options)
    assert result.exit_code == 1, result.output
    assert sentence in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not list(tmp_path.glob("t.*"))


def test_runs_of_other_images_are_not_paired(tmp_path: Path) -> None:
    judged = judged_run(tmp_path)
    other = write_run(
        tmp_path / "few", [MinedImage("00.png"), MinedImage("01.png")], ("Mass", "Nodule")
    )
    result = figure(judged.run, other, "--truth", judged.table, "--out", tmp_path / "t.md")
    assert result.exit_code == 1
    assert "not judged by the same boxes of the same images" in " ".join(result.output.split())
