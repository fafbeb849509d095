"""``cxr-fast evaluate``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from cxr_fast.cli.commands import Command
from cxr_fast.cli.options import judging_options, truth_option

if TYPE_CHECKING:
    from cxr_fast.evaluate import Evaluation

_WIDTH = 100
_NAMES = {"pointing_game": "pointing game", "map_iou": "mean IoU", "pixel_auc": "pixel AUC"}


@click.command(
    cls=Command,
    short_help="Judge a run by true boxes and labels.",
    examples=[
        "cxr-fast evaluate run --truth BBox_List_2017.csv --labels Data_Entry_2017.csv",
        "cxr-fast evaluate run --truth BBox_List_2017.csv --afp-bounds paper --json",
    ],
)
@click.argument("run", type=click.Path(path_type=Path))
@truth_option("to judge by", required=True)
@click.option("--labels", type=click.Path(path_type=Path),
              help="Label table in the layout of Data_Entry_2017.csv: AUROC, patients.")  # fmt: skip
@judging_options((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7))
@click.option("--heatmap-threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True,
              help="Cuts the heatmap for the mean IoU.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Write it all to FILE.csv or FILE.json.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document instead of tables.")
def evaluate(
    run: Path,
    truth: Path,
    labels: Path | None,
    thresholds: tuple[float, ...],
    out: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Judge RUN by ground-truth boxes: Acc and AFP per finding at each T(IoU), with 95% intervals.

    Beside them stand the pointing game, and AUROC with --labels; mean IoU and pixel AUC where the run
    was mined with --heatmaps.
    """
    from cxr_fast import evaluate as judging

    if out is not None and out.suffix not in (".csv", ".json"):
        raise ValueError(f"--out must end in .csv or .json, but is {out}; rename it")
    inputs = (truth, labels, values["afp_bounds"])
    if out is not None and out.resolve() in {Path(str(name)).resolve() for name in inputs if name}:
        raise ValueError(f"--out {out} is one of the tables that are read; name another file")
    options = judging.EvaluationOptions(overlap_thresholds=thresholds, **values)
    evaluation = judging.evaluate_run(run, truth, labels, options)
    if out is not None:
        judging.write_evaluation(evaluation, out)
    if as_json:
        click.echo(json.dumps(judging.document(evaluation), allow_nan=False))
        return
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH  # a log, whose 80 columns are a guess
    for part in (_localization(evaluation), _beside(evaluation)):
        if part is not None:
            console.print(part)
    for sentence in (*_explained(evaluation), *evaluation.missing.values(), *evaluation.notes):
        console.print(sentence, highlight=False, markup=False)
    if out is not None:
        console.print(f"written: {out}", highlight=False, markup=False, soft_wrap=True)


def _localization(evaluation: Evaluation) -> Table:
    """One row a finding, one column a threshold: Acc, its interval, AFP."""
    from cxr_fast.evaluate.documents import mean_localization

    thresholds = evaluation.options.overlap_thresholds
    table = Table(title="Acc, its 95% interval, AFP", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("finding\n", no_wrap=True)
    name = {"iou": "IoU", "iobb": "IoBB"}[evaluation.options.overlap]
    for value in thresholds:
        table.add_column(f"T({name})\n{value:g}", justify="right", no_wrap=True)
    for c, finding in enumerate(evaluation.findings):
        rows = evaluation.localization[c * len(thresholds) : (c + 1) * len(thresholds)]
        cells = [
            _cell(row.result.acc, evaluation.intervals.acc[c, k], row.result.afp)
            for k, row in enumerate(rows)
        ]
        truths = rows[0].result.truths if rows else 0
        table.add_row(f"{finding}\n{truths} box{'es' if truths != 1 else ''}\nAFP", *cells)
    means = mean_localization(evaluation)
    cells = [_cell(m["acc"], (m["acc_low"], m["acc_high"]), m["afp"]) for m in means]
    table.add_section()
    table.add_row(f"mean of {len(evaluation.findings)}\n\nAFP", *cells)
    return table


def _beside(evaluation: Evaluation) -> Table | None:
    """AUROC and what judges heatmaps, one row a finding."""
    if evaluation.auroc is None and not evaluation.maps:
        return None
    table = Table(title="with 95% intervals", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("finding", no_wrap=True)
    columns: list[dict[str, str]] = []
    if evaluation.auroc is not None:
        table.add_column("AUROC", justify="right", no_wrap=True)
        interval = evaluation.auroc.interval
        values = zip(evaluation.auroc.findings, interval.area, interval.low, interval.high, strict=True)
        columns.append({finding: _with_ends(*numbers) for finding, *numbers in values})
        known = interval.area[~np.isnan(interval.area)]
        columns[-1]["mean"] = f"{known.mean():.2f}" + " " * 12 if len(known) else "-"
    for name, scores in evaluation.maps.items():
        table.add_column(_NAMES[name], justify="right", no_wrap=True)
        values = zip(evaluation.findings, *scores[:3], strict=True)
        columns.append({finding: _with_ends(*numbers) for finding, *numbers in values})
        columns[-1]["mean"] = _with_ends(scores.mean, scores.mean_low, scores.mean_high)
    known_by_auroc = evaluation.auroc.findings if evaluation.auroc else ()
    for finding in dict.fromkeys((*evaluation.findings, *known_by_auroc)):
        table.add_row(finding, *(column.get(finding, "") for column in columns))
    table.add_section()
    table.add_row("mean", *(column["mean"] for column in columns))
    return table


def _explained(evaluation: Evaluation) -> list[str]:
    """What the figures are over, in sentences."""
    options = evaluation.options
    divided = {
        "class": "images with a box of the finding",
        "boxed": "images with any box",
        "all": "images of the run",
    }[options.afp_images]
    numbers = sorted({row.result.images for row in evaluation.localization})
    count = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0] if numbers else 0}"
    by = f"their number ({count})" if options.afp_denominator is None else f"{count}, as asked for"
    bound = {"none": "no AFP bound: all boxes count", "paper": "AFP bounds of the paper's Table 2"}
    order = {"truth": "of the box table", "run": "of the run"}[options.image_order]
    walked = bound.get(str(options.afp_bounds), f"AFP bounds of {options.afp_bounds}")
    if str(options.afp_bounds) != "none":
        walked += f", images in the order {order}"
    sentences = [
        f"Acc: share of the drawn boxes that were found. AFP: false positives on {divided}, divided by "
        f"{by}; {walked}.",
        f"Intervals: percentiles of {options.resamples} resamples of {options.resample}, seed "
        f"{options.seed}" + ("; AUROC: DeLong." if evaluation.auroc else "."),
    ]
    if evaluation.auroc:
        scores = evaluation.auroc
        sentences.append(f"AUROC over {scores.images} images.")
    if "map_iou" in evaluation.maps:
        sentences.append(f"Mean IoU of heatmaps cut at {options.heatmap_threshold:g}.")
    return sentences


def _cell(acc: float, ends: Any, afp: float) -> str:
    return f"{_number(acc)}\n{_number(ends[0])}-{_number(ends[1])}\n{_number(afp)}"


def _with_ends(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f} ({low:.2f}-{high:.2f})"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
