"""Acc over AFP: what is drawn is what a walk over the list B gives, box by box."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from judged_runs import CLASSES, HEADER, judged_run, literal_walk, staircase, texts_of

from cxr_fast.archive.findings import open_run
from cxr_fast.cli import main
from cxr_fast.evaluate import EvaluationOptions, evaluate_run
from cxr_fast.figures.curves import draw_curves, run_curves
from cxr_fast.model_files import model_digest
from cxr_fast.paper import TABLE2

DEMO = model_digest("demo")


def curves(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["figure", "curves", *(str(a) for a in arguments)])


def test_the_drawn_lines_are_those_of_a_literal_walk(tmp_path: Path) -> None:
    judged = judged_run(tmp_path, noise=60)
    options = EvaluationOptions(overlap_thresholds=(0.1, 0.5), resamples=50)
    made = run_curves(judged.run, judged.table, None, options)
    figure = draw_curves(made)
    assert [axes.get_title() for axes in figure.axes] == [
        f"{c} ({sum(len(b) for (_, f), b in judged.truth.items() if f == c)} boxes)"
        for c in CLASSES[:2]
    ]
    drawn = {line.get_gid(): line for axes in figure.axes for line in axes.lines if line.get_gid()}
    for finding in CLASSES[:2]:
        for threshold in (0.1, 0.5):
            expected = staircase(literal_walk(judged, finding, threshold))
            line = drawn[f"{finding} {threshold:g}"]
            assert line.get_drawstyle() == "steps-post"
            np.testing.assert_allclose(line.get_xydata(), expected, rtol=1e-12)
            assert len(expected) > 2


@pytest.mark.parametrize("scope", ["class", "boxed", "all"])
@pytest.mark.parametrize("resample", ["images", "patients"])
def test_bands_are_the_intervals_that_evaluate_gives_below_a_bound(
    tmp_path: Path, scope: Any, resample: Any
) -> None:
    judged = judged_run(tmp_path)
    options = EvaluationOptions(
        overlap_thresholds=(0.3,), resamples=200, seed=4, afp_images=scope, resample=resample
    )
    made = run_curves(judged.run, judged.table, judged.labels, options)
    bounds = tmp_path / "bounds.csv"
    for c, of in enumerate(made.findings):
        curve = of.curves[0]
        assert np.array_equal(curve.at, curve.afp)  # few enough for all
        for place in range(len(curve.at)):
            bound = repr(float(np.nextafter(curve.at[place], np.inf)))
            bounds.write_text(f"finding,iou_threshold,afp\n{of.finding},0.3,{bound}\n")
            within = replace(options, afp_bounds=bounds)
            evaluation = evaluate_run(judged.run, judged.table, judged.labels, within)
            assert evaluation.localization[c].result.acc == pytest.approx(curve.acc[place])
            ends = [curve.low[place], curve.high[place]]
            np.testing.assert_allclose(ends, evaluation.intervals.acc[c, 0], atol=1e-12)


def test_bounds_and_published_points_are_marked_where_they_are(tmp_path: Path) -> None:
    judged = judged_run(tmp_path)
    options = EvaluationOptions(overlap_thresholds=(0.1, 0.3), resamples=9, afp_bounds="paper")
    figure = draw_curves(run_curves(judged.run, judged.table, None, options, published=True))
    mass = figure.axes[0]
    upright = [
        line for line in mass.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    ]
    published = [TABLE2[t]["ref."]["Mass"] for t in (0.1, 0.3)]
    assert [line.get_xdata()[0] for line in upright] == [cell.afp for cell in published]
    diamonds = [line for line in mass.lines if line.get_marker() == "D"]
    assert [tuple(line.get_xydata()[0]) for line in diamonds] == [(c.afp, c.acc) for c in published]
    squares = [line for line in mass.lines if line.get_marker() == "s"]
    for square, threshold, cell in zip(squares, (0.1, 0.3), published, strict=True):
        taken = [p for p in staircase(literal_walk(judged, "Mass", threshold)) if p[0] < cell.afp]
        np.testing.assert_allclose(square.get_xydata()[0], taken[-1])


def test_svg_holds_text_and_files_are_the_same_bytes_again(tmp_path: Path) -> None:
    judged = judged_run(tmp_path)
    shared = (judged.run, "--truth", judged.table, "--resamples", 20, "--note", "a < b & $c$")
    outs = [("--out", tmp_path / f"{n}.{kind}") for n in "12" for kind in ("svg", "png", "pdf")]
    result = curves(*shared, *(part for out in outs for part in out))
    assert result.exit_code == 0, result.output
    assert curves(*shared, "--out", tmp_path / "3.svg", "--out", tmp_path / "3.pdf").exit_code == 0
    for kind in ("svg", "png", "pdf"):
        assert (tmp_path / f"1.{kind}").read_bytes() == (tmp_path / f"2.{kind}").read_bytes()
    for kind in ("svg", "pdf"):
        written = (tmp_path / f"1.{kind}").read_bytes()
        assert written == (tmp_path / f"3.{kind}").read_bytes()
        assert not re.search(rb"CreationDate|<dc:date>|20[0-9]{2}-[0-9]{2}-[0-9]{2}", written)
    texts = texts_of(tmp_path / "1.svg")
    for text in ("AFP (false positives per image)", "Acc (share of boxes found)", "T(IoU) 0.3",
                 "95% interval", "a < b & $c$"):  # fmt: skip
        assert text in texts, texts
    assert b"/FontFile2" in (tmp_path / "1.pdf").read_bytes()  # TrueType, embedded
    assert f'width="{7.16 * 72:g}pt"' in (tmp_path / "1.svg").read_text()


@pytest.mark.parametrize(("model", "told"), [(DEMO, True), ("0123abcd", False)])
def test_the_demonstration_model_is_named(tmp_path: Path, model: str, told: bool) -> None:
    with open_run(tmp_path / "run", {"model": {"sha256": model, "class_names": CLASSES}}) as run:
        run.write_images(["00.png"])
        run.finish(0)
    table = tmp_path / "boxes.csv"
    table.write_text(HEADER + "00.png,Mass,1,1,5,5\n")
    out = tmp_path / "c.svg"
    result = curves(tmp_path / "run", "--truth", table, "--out", out, "--columns", "one")
    assert result.exit_code == 0, result.output  # a run of one image that found nothing
    assert any("Synthetic" in text for text in texts_of(out)) == told
    assert f'width="{3.5 * 72:g}pt"' in out.read_text()


def test_a_class_without_truth_has_a_panel_that_says_so(tmp_path: Path) -> None:
    judged = judged_run(tmp_path)
    out = tmp_path / "c.svg"
    result = curves(judged.run, "--truth", judged.table, "--finding", "Hernia", "--finding", "Mass",
                    "--resamples", 9, "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert {"Hernia (0 boxes)", "no ground truth"} <= set(texts_of(out))


def test_names_with_specials_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = ("<b>&$x_1^2$", "Mass", "\\frac{\x07}")
    box = {"x1": [5.0], "y1": [5.0], "x2": [9.0], "y2": [9.0], "score": [1.0], "probability": [1.0]}
    with open_run(tmp_path / "run", {"model": {"class_names": names}}) as run:
        run.write_images(["a.png"])
        run.write_shard(0, {"image_id": ["a.png"], "class": [names[0]], "rank": [1], **box})
    table = tmp_path / "boxes.csv"
    table.write_text(HEADER + f"a.png,{names[0]},5,5,4,4\na.png,{names[2]},5,5,4,4\n")
    out = tmp_path / "c.svg"
    result = curves(tmp_path / "run", "--truth", table, "--out", out, "--out", tmp_path / "c.png")
    assert result.exit_code == 0, result.output
    assert f"{names[0]} (1 box)" in texts_of(out)
    assert any(text.startswith("\\frac{") for text in texts_of(out))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--out", "c.jpg"), "--out must end in .pdf, .png, .svg, but is c.jpg"),
        (("--out", "nowhere/c.svg"), "must be a folder to write to; make it first"),
        (("--out", "c.svg", "--overlap", "iobb", "--published"), "leave one of the two out"),
        (("--out", "c.svg", "--afp-bounds", "paper", "--iou-threshold", 0.15), "add the bound"),
        (("--out", "c.svg", "--resample", "patients"), "give a label table, or draw images"),
    ],
)
def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], sentence: str
) -> None:
    judged = judged_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    result = curves(judged.run, "--truth", judged.table, *options)
    assert result.exit_code == 1
    assert sentence in " ".join(result.output.split())
    assert not (tmp_path / "c.svg").exists()
    refused = curves(tmp_path, "--truth", judged.table, "--out", "c.svg")
    assert "holds no mining run" in refused.output
    shadowed = curves(judged.run, "--truth", judged.table, "--out", judged.table)
    assert shadowed.exit_code == 1


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = judged_run(tmp_path)
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib" or "cxr_fast.figures" in n]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = curves(judged.run, "--truth", judged.table, "--out", tmp_path / "c.svg")
    assert result.exit_code == 1
    assert "pip install 'cxr_fast[figures]'" in result.output
