"""Acc over AFP: a panel a finding, a line each T(IoU), its 95% interval as a band."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, isinf
from pathlib import Path
from typing import Any

import numpy as np

from cxr_fast.evaluate import EvaluationOptions, judge_walks
from cxr_fast.figures import canvas
from cxr_fast.figures.canvas import INK, PALE, WIDTHS, Axes, Columns, Figure, Line2D
from cxr_fast.metrics import AccCurve, acc_curves
from cxr_fast.paper import TABLE2

_DASHES: tuple[Any, ...] = (
    "solid", (0, (4, 1.2)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (7, 2)), (0, (2, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)  # fmt: skip
_OVERLAPS = {"iou": "T(IoU)", "iobb": "T(IoBB)"}
# Inches: around the panels, between them, of a panel's title, of the legend's lines.
_LEFT, _RIGHT, _TOP, _BOTTOM, _ACROSS, _DOWN, _LINE = 0.36, 0.06, 0.2, 0.42, 0.12, 0.36, 0.14


@dataclass(frozen=True)
class FindingCurves:
    """The curves of a finding, one each threshold, and what is marked on them.

    ``bounds`` [K] of AFP, infinity without; ``published`` [K] AFP and Acc of Wang et al., None without.
    """

    finding: str
    truths: int
    images: int
    curves: tuple[AccCurve, ...]
    bounds: tuple[float, ...]
    published: tuple[tuple[float, float] | None, ...]


@dataclass(frozen=True)
class RunCurves:
    """The curves of a run's findings, how they were made, and sentences on what to know of them."""

    findings: tuple[FindingCurves, ...]
    options: EvaluationOptions
    model: str
    notes: tuple[str, ...]


def run_curves(
    run: str | Path,
    boxes: str | Path,
    labels: str | Path | None,
    options: EvaluationOptions,
    published: bool = False,
) -> RunCurves:
    """Judge a run's boxes at every length of the list B; arguments and errors of ``evaluate_run``.

    ``published`` adds what the paper's Table 2 gives for Wang et al., for its findings and T(IoU).
    ValueError where that is asked for with T(IoBB).
    """
    if published and options.overlap != "iou":
        raise ValueError(
            "the published points are at T(IoU), but T(IoBB) was asked for; leave one of the two out"
        )
    judged = judge_walks(run, boxes, labels, options)
    thresholds = options.overlap_thresholds
    curves = acc_curves(
        judged.walks, thresholds, judged.images, judged.drawn_again, options.resamples, options.seed
    )
    findings = tuple(
        FindingCurves(
            finding,
            walk.truths,
            walk.images,
            tuple(curves[c]),
            tuple(judged.bounds[c].tolist()),
            tuple(_published(finding, t) if published else None for t in thresholds),
        )
        for c, (finding, walk) in enumerate(zip(judged.findings, judged.walks, strict=True))
    )
    return RunCurves(findings, options, judged.model, judged.notes)


def _published(finding: str, threshold: float) -> tuple[float, float] | None:
    for known, methods in TABLE2.items():
        if abs(known - threshold) < 1e-9 and finding in methods["ref."]:
            cell = methods["ref."][finding]
            return cell.afp, cell.acc
    return None


@canvas.styled
def draw_curves(made: RunCurves, columns: Columns = "two", note: str = "") -> Figure:
    """A panel for each finding; ``note`` stands in the lower right corner."""
    across = min(len(made.findings), 4 if columns == "two" else 2) or 1
    down = -(-len(made.findings) // across) or 1
    width = WIDTHS[columns]
    side = (width - _LEFT - _RIGHT - (across - 1) * _ACROSS) / across
    height = min(side, 1.9)
    handles = _handles(made)
    per_line = 5 if columns == "two" else 3
    legend = _LINE * -(-len(handles) // per_line) + 0.06 + (0.14 if note else 0)
    total = _TOP + down * height + (down - 1) * _DOWN + _BOTTOM + legend
    figure = canvas.sheet(width, total)
    farthest = _farthest(made)
    for place, of_finding in enumerate(made.findings):
        row, column = divmod(place, across)
        left = _LEFT + column * (side + _ACROSS)
        axes = canvas.cell(figure, left, _TOP + row * (height + _DOWN), side, height)
        _draw_panel(axes, of_finding, made.options)
        axes.set_xlim(-0.02 * farthest, farthest)
        axes.set_ylim(-0.02, 1.02)
        if column:
            axes.tick_params(labelleft=False)
        if place + across < len(made.findings):
            axes.tick_params(labelbottom=False)
    middle = _TOP + (down * height + (down - 1) * _DOWN) / 2
    canvas.write(
        figure, 0.02, middle, "Acc (share of boxes found)", rotation=90, va="center", ha="left"
    )
    canvas.write(figure, _LEFT + (width - _LEFT - _RIGHT) / 2, total - legend - 0.1,
                 "AFP (false positives per image)", ha="center")  # fmt: skip
    figure.legend(
        handles=handles, loc="upper center", ncols=min(per_line, len(handles)), frameon=False,
        bbox_to_anchor=(0.5, (legend + 0.02) / total), borderpad=0, borderaxespad=0,
        handlelength=2.6, columnspacing=1.4,
    )  # fmt: skip
    canvas.corner_note(figure, note)
    return figure


def _draw_panel(axes: Axes, of: FindingCurves, options: EvaluationOptions) -> None:
    boxes = f"{of.truths} box{'es' if of.truths != 1 else ''}"
    axes.set_title(canvas.plain(f"{of.finding} ({boxes})"), pad=3)
    axes.grid(color="#dddddd", linewidth=0.4)
    axes.set_axisbelow(True)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    if not of.truths:
        axes.text(0.5, 0.5, "no ground truth", transform=axes.transAxes, ha="center", color=PALE)
        return
    colours = canvas.lightness(len(of.curves))
    for k, (curve, colour) in enumerate(zip(of.curves, colours, strict=True)):
        threshold = f"{options.overlap_thresholds[k]:g}"
        axes.fill_between(
            curve.at, curve.low, curve.high, step="post", color=colour, alpha=0.16, linewidth=0,
            gid=canvas.plain(f"{of.finding} band {threshold}"),
        )  # fmt: skip
        axes.plot(
            curve.afp, curve.acc, drawstyle="steps-post", color=colour, linestyle=_DASHES[k % 7],
            linewidth=1.1, gid=canvas.plain(f"{of.finding} {threshold}"),
        )  # fmt: skip
        axes.plot(curve.afp[-1:], curve.acc[-1:], "o", color=colour, markersize=2.6)
        if isfinite(of.bounds[k]):
            axes.axvline(of.bounds[k], color=colour, linestyle=_DASHES[k % 7], linewidth=0.6)
            taken = np.flatnonzero(curve.afp < of.bounds[k])
            if len(taken):
                axes.plot(
                    curve.afp[taken[-1]], curve.acc[taken[-1]], "s", markersize=3.4, color=colour,
                    markeredgecolor="white", markeredgewidth=0.5,
                )  # fmt: skip
        if (point := of.published[k]) is not None:
            axes.plot(
                *point, "D", markersize=3.4, markerfacecolor="white", markeredgecolor=colour,
                markeredgewidth=0.9,
            )  # fmt: skip


def _handles(made: RunCurves) -> list[Line2D]:
    """The legend: thresholds, and what the marks are that are there."""
    options = made.options
    colours = canvas.lightness(len(options.overlap_thresholds))
    name = _OVERLAPS[options.overlap]
    handles = [
        Line2D([], [], color=colour, linestyle=_DASHES[k % 7], linewidth=1.1, label=f"{name} {t:g}")
        for k, (t, colour) in enumerate(zip(options.overlap_thresholds, colours, strict=True))
    ]
    band = Line2D([], [], color=PALE, alpha=0.35, linewidth=5, label="95% interval")
    whole = Line2D([], [], color=INK, marker="o", linestyle="none", markersize=2.6, label="all boxes")
    handles += [band, whole]
    if any(not isinf(bound) for of in made.findings for bound in of.bounds):
        handles.append(
            Line2D([], [], color=INK, marker="s", linewidth=0.6, markersize=3.4, label="AFP bound")
        )
    if any(point for of in made.findings for point in of.published):
        handles.append(
            Line2D([], [], color=INK, marker="D", linestyle="none", markersize=3.4,
                   markerfacecolor="white", label="Wang et al. 2017")
        )  # fmt: skip
    return handles


def _farthest(made: RunCurves) -> float:
    """Where the AFP axes end: behind all that is drawn."""
    ends = [0.1]
    for of in made.findings:
        if of.truths:
            ends += [float(curve.afp[-1]) for curve in of.curves]
            ends += [bound for bound in of.bounds if isfinite(bound)]
            ends += [point[0] for point in of.published if point is not None]
    return 1.06 * max(ends)
