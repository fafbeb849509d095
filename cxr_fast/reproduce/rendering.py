"""A table's figures for people: in the paper's layout, on a terminal or as Markdown."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.table import Table as Grid

from cxr_fast import paper
from cxr_fast.figures.text import difference_text, short_name, span, table_line


def published(table: str, iou_threshold: float, row: str | None, finding: str) -> str | None:
    """The paper's own figure of a cell, or None where it has none."""
    if row is None:
        return None
    if table == "table1":
        known: Any = paper.TABLE1.get(row, {}) if iou_threshold == 0.3 else {}
        value = known.get(finding)
        return None if value is None else f"{value:.2f}"
    if table == "table2":
        cell = paper.TABLE2.get(iou_threshold, {}).get(row, {}).get(finding)
        return None if cell is None else f"{cell.acc:.2f}-{cell.afp:.2f}"
    value = paper.TABLE3.get(iou_threshold, {}).get(row, {}).get(finding)
    return None if value is None else f"{value:.2f}"


def grids(name: str, summary: dict[str, Any]) -> list[Grid]:
    """One grid for each T(IoU): our figure, its interval, and the paper's figure below."""
    made = []
    for k, threshold in enumerate(summary["iou_thresholds"]):
        grid = Grid(title=f"{name}, T(IoU) {threshold:g}", title_justify="left", show_lines=True)
        grid.add_column("method")
        for finding in [*(short_name(f) for f in summary["findings"]), "mean"]:
            grid.add_column(finding, justify="right")
        for row in summary["rows"]:
            cells = [_cell(name, summary, row, c, k) for c in range(len(summary["findings"]))]
            means = np.nanmean(row["acc"], (0, 1))[k]
            low, high = row["interval"]["mean_acc"][k]
            grid.add_row(row["name"], *cells, f"{means:.2f}\n[dim]{span(low, high)}[/dim]")
        made.append(grid)
    return made


def _cell(name: str, summary: dict[str, Any], row: dict[str, Any], c: int, k: int) -> str:
    acc, afp = (np.nanmean(np.array(row[key])[:, c, k]) for key in ("acc", "afp"))
    lines = [f"{acc:.2f}-{afp:.2f}" if summary["afp_bounds"] else f"{acc:.2f}"]
    lines.append(f"[dim]{span(*row['interval']['acc'][c][k])}[/dim]")
    told = published(name, summary["iou_thresholds"][k], row["published"], summary["findings"][c])
    lines.append(f"[italic]{told or ''}[/italic]")
    return "\n".join(lines)


def legend(summary: dict[str, Any], judged: int) -> str:
    """What the figures mean."""
    seeds = len(summary["seeds"])
    bounded = bool(summary["afp_bounds"])
    boxes, shown = sum(summary["boxes"]), "Acc-AFP" if bounded else "Acc"
    runs = f"{seeds} seed{'s' if seeds > 1 else ''}"
    told = ", AFP kept below the reference's" if bounded else ""
    return (
        f"{shown} over {judged} images and {boxes} boxes, mean of {runs}"
        f"{told}; with the 95% interval over patients, and the paper's own figure, of ChestX-ray14"
    )


def answers(summary: dict[str, Any]) -> Grid:
    """The table's questions: differences of Acc on the same images, all boxes pooled."""
    grid = Grid(title="Differences of Acc, all boxes pooled", title_justify="left")
    grid.add_column("question")
    for threshold in summary["iou_thresholds"]:
        grid.add_column(f"T {threshold:g}", justify="right")
    grid.add_column("clear on", overflow="fold")
    for answer in summary["answers"]:
        pooled = answer["differences"]["all boxes"]
        clear = []
        for finding in summary["findings"]:
            for (value, low, high), threshold in zip(
                answer["differences"][finding], summary["iou_thresholds"], strict=True
            ):
                if low > 0 or high < 0:
                    clear.append(f"{short_name(finding)} {value:+.2f} (T {threshold:g})")
        cells = [f"{v:+.2f}\n[dim]{lo:+.2f}..{hi:+.2f}[/dim]" for v, lo, hi in pooled]
        grid.add_row(answer["text"], *cells, ", ".join(clear) or "none")
    return grid


def markdown(name: str, summary: dict[str, Any], judged: int) -> str:
    """All of it as Markdown."""
    findings, lines = summary["findings"], [f"## {name}", "", legend(summary, judged) + ".", ""]
    heads = [*(short_name(f) for f in findings), "mean"]
    for k, threshold in enumerate(summary["iou_thresholds"]):
        lines += [
            f"T(IoU) {threshold:g}",
            "",
            table_line(["method", *heads]),
            table_line(["---"] * (len(heads) + 1)),
        ]
        for row in summary["rows"]:
            cells = []
            for c in range(len(findings)):
                acc, afp = (np.nanmean(np.array(row[key])[:, c, k]) for key in ("acc", "afp"))
                shown = f"{acc:.2f}-{afp:.2f}" if summary["afp_bounds"] else f"{acc:.2f}"
                cells.append(f"{shown} ({span(*row['interval']['acc'][c][k])})")
            mean = np.nanmean(row["acc"], (0, 1))[k]
            cells.append(f"{mean:.2f} ({span(*row['interval']['mean_acc'][k])})")
            lines.append(table_line([row["name"], *cells]))
            told = [published(name, threshold, row["published"], f) for f in findings]
            if any(told):
                lines.append(
                    table_line([f"*paper: {row['published']}*", *(f"*{t}*" for t in told), ""])
                )
        lines.append("")
    lines += _answer_lines(summary) + _quality_lines(summary)
    return "\n".join(lines) + "\n"


def _answer_lines(summary: dict[str, Any]) -> list[str]:
    """Every answer by finding."""
    columns = [*summary["findings"], "all boxes"]
    heads = [short_name(f) for f in columns]
    lines = []
    for k, threshold in enumerate(summary["iou_thresholds"]):
        lines += [
            f"Differences of Acc at T(IoU) {threshold:g} on the same images; bold where the interval "
            "excludes zero",
            "",
            table_line(["question", *heads]),
            table_line(["---"] * (len(heads) + 1)),
        ]
        for answer in summary["answers"]:
            cells = []
            for column in columns:
                cells.append(difference_text(*answer["differences"][column][k]))
            lines.append(table_line([answer["text"], *cells]))
        lines.append("")
    return lines


def _quality_lines(summary: dict[str, Any]) -> list[str]:
    """AUROC, pointing game, pixel AUC and the floor of each row, means over classes and seeds."""
    iou = summary["iou_thresholds"]
    floors = [f"floor at T {t:g}" for t in iou]
    heads = ["method", "AUROC", "pointing game", "pixel AUC", *floors]
    lines = [
        "Means over the findings. Floor: Acc of the same boxes, each at a random place of its image. "
        "AUROC is of the test list, mined images among them, whose labels mined networks have seen.",
        "",
        table_line(heads),
        table_line(["---"] * len(heads)),
    ]
    chance = np.nanmean(summary["random_floor"], 0)
    lines.append(
        table_line(["three random boxes of true sizes", "", "", "", *(f"{v:.2f}" for v in chance)])
    )
    for row in summary["rows"]:
        values = [np.nanmean(row[key]) for key in ("auroc", "pointing", "pixel_auc")]
        floor = np.nanmean(summary["floors"][row["name"]], 0)
        lines.append(table_line([row["name"], *(f"{v:.2f}" for v in (*values, *floor))]))
    return lines + _best_box_lines(summary)


def _best_box_lines(summary: dict[str, Any]) -> list[str]:
    """The best box of each image alone, which many boxes cannot help: its Acc and its floor."""
    threshold, findings = summary["iou_thresholds"][0], summary["findings"]
    heads = ["method", *(short_name(f) for f in findings)]
    lines = [
        "",
        f"Acc at T(IoU) {threshold:g} of the best box of each image alone, and how many times that of "
        "the same boxes at random places it is",
        "",
        table_line(heads),
        table_line(["---"] * len(heads)),
    ]
    for row in summary["rows"]:
        best = summary["best_box"][row["name"]]
        pairs = zip(np.array(best["acc"])[:, 0], np.array(best["floor"])[:, 0], strict=True)
        told = (f"{acc:.2f}, x{acc / floor:.1f}" if floor else f"{acc:.2f}" for acc, floor in pairs)
        lines.append(table_line([row["name"], *told]))
    return lines
