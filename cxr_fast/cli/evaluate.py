"""``cxr-fast evaluate``."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--boxes", required=True, type=click.Path(path_type=Path),
              help="Box table in the layout of BBox_List_2017.csv.")  # fmt: skip
@click.option("--iou-threshold", "thresholds", multiple=True, type=float, default=(0.1, 0.3),
              show_default=True)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print rows as JSON.")
def evaluate(run: Path, boxes: Path, thresholds: tuple[float, ...], as_json: bool) -> None:
    """Judge the findings of RUN: Acc and AFP per class at each T(IoU)."""
    from cxr_fast.evaluate import evaluate_run

    rows = evaluate_run(run, boxes, thresholds)
    if as_json:
        for row in rows:
            values = {"finding": row.finding, "iou_threshold": row.overlap_threshold}
            click.echo(json.dumps({**values, **row.result._asdict()}))
        return
    table = Table(title="Acc / AFP per image of the class", title_justify="left")
    table.add_column("finding")
    table.add_column("boxes", justify="right")
    for value in thresholds:
        table.add_column(f"T(IoU) {value:g}", justify="right")
    for first in range(0, len(rows), len(thresholds)):
        group = rows[first : first + len(thresholds)]
        cells = [f"{r.result.acc:.2f} / {r.result.afp:.2f}" for r in group]
        table.add_row(group[0].finding, str(group[0].result.truths), *cells)
    Console().print(table)
