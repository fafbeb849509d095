"""A comparison as tables: of Markdown, of LaTeX (booktabs), of CSV, and drawn."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from cxr_fast.figures import canvas
from cxr_fast.figures.canvas import INK, PALE, WIDTHS, Columns, Figure
from cxr_fast.figures.comparison import MEAN, POOLED, Cell, Comparison
from cxr_fast.figures.text import (
    excludes_zero,
    latex_text,
    markdown_text,
    number,
    short_name,
    signed,
    table_line,
)

_CSV = ("run", "measure", "finding", "threshold", "value", "low", "high", "against")
# Inches: a narrowest column, a line of text, what is left below one; the share of the page that names
# may take; how much of a line small print takes; points of the two sizes.
_NARROWEST, _LINE, _PAD, _MOST, _TIGHT, _SIZE, _SMALL = 0.6, 0.125, 0.055, 0.36, 0.85, 7.0, 5.8


class Entry(NamedTuple):
    """A cell: its figure, whether it stands out, and what stands below it."""

    main: str
    strong: bool
    below: tuple[str, ...]


class Section(NamedTuple):
    """A table: its title, the heads of its columns, and rows in groups, each with its label."""

    title: str
    heads: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[str, tuple[Entry, ...]], ...]], ...]


def sections(made: Comparison, with_afp: bool = False) -> list[Section]:
    """Acc (and AFP below it), and where there are any the paired differences of Acc."""
    groups = []
    for k, threshold in enumerate(made.thresholds):
        rows = tuple(
            (
                name,
                tuple(
                    map(_entry, made.cells[i][k], made.best[i][k], [with_afp] * len(made.cells[i][k]))
                ),
            )
            for i, name in enumerate(made.names)
        )
        groups.append((f"{made.overlap_name} {threshold:g}", rows))
    title = "Acc with 95% intervals" + (", AFP below them" if with_afp else "")
    heads = tuple(short_name(f) for f in made.findings)
    parts = [Section(title, (*heads, MEAN), tuple(groups))]
    if made.reference is not None:
        groups = []
        for threshold in made.thresholds:
            rows = tuple(
                (
                    d.name,
                    tuple(
                        Entry(
                            signed(v), excludes_zero(lo, hi), (_ends(signed(lo), signed(hi), " to "),)
                        )
                        for v, lo, hi in d.of
                    ),
                )
                for d in made.differences
                if d.overlap_threshold == threshold
            )
            groups.append((f"{made.overlap_name} {threshold:g}", rows))
        title = f"Acc minus that of {made.reference}, with paired 95% intervals"
        parts.append(Section(title, (*heads, POOLED), tuple(groups)))
    return parts


def _entry(cell: Cell, best: bool, with_afp: bool) -> Entry:
    below = [_ends(number(cell.acc_low), number(cell.acc_high))]
    if with_afp:
        below.append(number(cell.afp))
    return Entry(number(cell.acc), best, tuple(below))


def _difference_entry(value: float, low: float, high: float) -> Entry:
    ends = _ends(signed(low), signed(high), " to ")
    return Entry(signed(value), excludes_zero(low, high), (ends,))


def _ends(low: str, high: str, between: str = "\N{EN DASH}") -> str:
    return "" if low == "-" else f"{low}{between}{high}"


def explained(made: Comparison) -> list[str]:
    """What the figures are, in sentences."""
    options = made.options
    bounds = {"none": "", "paper": " below the AFP bounds of the paper's Table 2"}
    walked = bounds.get(options["afp_bounds"], " below AFP bounds from a file")
    told = [
        f"Acc: share of the drawn boxes that the mined boxes{walked} find. Intervals: 95%, "
        f"percentiles of {options['resamples']} resamples of {options['resample']}."
    ]
    if len(made.names) > 1:
        told.append("Bold: the largest Acc of the runs, as printed, where they differ.")
    if made.reference is not None:
        told.append("Bold differences: their interval excludes zero.")
    return [*told, *made.notes]


def markdown(made: Comparison, with_afp: bool = False, note: str = "") -> str:
    """The tables of Markdown, a column a finding."""
    lines: list[str] = []
    for part in sections(made, with_afp):
        lines += [f"**{markdown_text(part.title)}**", ""]
        lines += [table_line([made.overlap_name, "run", *map(markdown_text, part.heads)])]
        lines += [table_line(["---"] * 2 + ["---:"] * len(part.heads))]
        for label, rows in part.groups:
            for i, (name, entries) in enumerate(rows):
                cells = [_markdown_entry(entry) for entry in entries]
                shown = label.split()[-1] if not i else ""
                lines.append(table_line([shown, markdown_text(name), *cells]))
        lines.append("")
    told = [*explained(made), *([note] if note else [])]
    return "\n".join([*lines, *map(markdown_text, told)]) + "\n"


def _markdown_entry(entry: Entry) -> str:
    main = f"**{entry.main}**" if entry.strong else entry.main
    interval, *rest = entry.below
    return " ".join([main, *([f"({interval})"] if interval else []), *(f"AFP {r}" for r in rest)])


def latex(made: Comparison, with_afp: bool = False, note: str = "") -> str:
    """A tabular each, with the rules of the package booktabs."""
    lines = [r"% \usepackage{booktabs}"]
    for part in sections(made, with_afp):
        lines += [
            f"% {latex_text(part.title)}",
            r"\begin{tabular}{ll" + "r" * len(part.heads) + "}",
            r"\toprule",
            _latex_row([latex_text(made.overlap_name), "run", *map(latex_text, part.heads)]),
        ]
        for label, rows in part.groups:
            lines.append(r"\midrule")
            for i, (name, entries) in enumerate(rows):
                main = [rf"\textbf{{{e.main}}}" if e.strong else e.main for e in entries]
                shown = label.split()[-1] if not i else ""
                lines.append(_latex_row([shown, latex_text(name), *map(_dashed, main)]))
                for depth in range(len(entries[0].below)):
                    small = [_latex_small(e.below[depth], depth) for e in entries]
                    lines.append(_latex_row(["", "", *small]))
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    told = [*explained(made), *([note] if note else [])]
    return "\n".join([*lines, *(f"% {latex_text(sentence)}" for sentence in told)]) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_small(text: str, depth: int) -> str:
    return rf"{{\scriptsize {'AFP ' if depth else ''}{_dashed(text)}}}" if text else ""


def _dashed(text: str) -> str:
    """Minus signs, and dashes between ends of an interval, as LaTeX sets them."""
    return text.replace("-", "$-$").replace("\N{EN DASH}", "--")


def comma_separated(made: Comparison) -> str:
    """One row a figure, in full precision; differences name the run that they are against."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for i, name in enumerate(made.names):
        for k, threshold in enumerate(made.thresholds):
            for finding, cell in zip((*made.findings, MEAN), made.cells[i][k], strict=True):
                for measure, values in (("acc", cell[:3]), ("afp", cell[3:])):
                    writer.writerow([name, measure, finding, threshold, *map(_full, values), ""])
    for made_of in made.differences:
        for finding, values in zip((*made.findings, POOLED), made_of.of, strict=True):
            writer.writerow(
                [made_of.name, "acc difference", finding, made_of.overlap_threshold,
                 *map(_full, values), made.reference]
            )  # fmt: skip
    return text.getvalue()


def _full(value: float) -> str:
    return "" if value != value else repr(float(value))


@canvas.styled
def draw_table(
    made: Comparison, columns: Columns = "two", with_afp: bool = False, note: str = ""
) -> Figure:
    """The tables drawn, findings across the page; ``note`` stands in the lower right corner.

    Where a page has no room for all findings but for all runs, runs go across and findings down;
    where it has for neither, findings stand in several tables one below the other.
    """
    width = WIDTHS[columns]
    parts = []
    for whole in sections(made, with_afp):
        fitting = _fitting(whole, width)
        if fitting < len(whole.heads) and len(whole.groups[0][1]) <= _fitting(turned(whole), width):
            parts.append(turned(whole))
        else:
            parts += _blocks(whole, fitting)
    per_line = int(width * 20.5)
    told = [line for s in explained(made) for line in textwrap.wrap(canvas.plain(s), per_line)]
    height = 0.05 + sum(map(_height, parts)) + 0.1 * len(told) + (0.2 if note else 0.05)
    figure = canvas.sheet(width, height)
    top = 0.05
    for part in parts:
        _draw_section(figure, part, top)
        top += _height(part)
    for line in told:
        top += 0.1
        canvas.write(figure, 0.02, top, line, fontsize=_SMALL)
    canvas.corner_note(figure, note)
    return figure


def turned(whole: Section) -> Section:
    """The section with runs across and findings down."""
    runs = tuple(name for name, _ in whole.groups[0][1]) if whole.groups else ()
    groups = tuple(
        (
            label,
            tuple(
                (head, tuple(entries[c] for _, entries in rows)) for c, head in enumerate(whole.heads)
            ),
        )
        for label, rows in whole.groups
    )
    return Section(whole.title, runs, groups)


def _blocks(whole: Section, fitting: int) -> list[Section]:
    """The section in pieces of so many columns, as equal as may be."""
    count = -(-len(whole.heads) // fitting)
    size = -(-len(whole.heads) // count)
    return [
        Section(
            whole.title if not start else "",
            whole.heads[start : start + size],
            tuple(
                (label, tuple((name, entries[start : start + size]) for name, entries in rows))
                for label, rows in whole.groups
            ),
        )
        for start in range(0, len(whole.heads), size)
    ]


def _first(part: Section, width: float) -> float:
    """Inches for the names of rows."""
    names = [name for _, rows in part.groups for name, _ in rows]
    return min(_MOST * width, canvas.widest(names, fontsize=_SIZE) + 0.08)


def _fitting(part: Section, width: float) -> int:
    """How many columns the page has room for."""
    return max(1, int((width - _first(part, width)) / _NARROWEST))


def _height(part: Section) -> float:
    """Inches that ``_draw_section`` takes."""
    depths = [len(row[0].below) if row else 0 for _, rows in part.groups for _, row in rows]
    rows = sum(_LINE * (1 + _TIGHT * depth) for depth in depths)
    heads = (_LINE + _PAD) * (2 if part.title else 1)
    return heads + len(part.groups) * (_LINE + _PAD) + rows + 2 * _PAD


def _draw_section(figure: Figure, part: Section, top: float) -> None:
    width = float(figure.get_size_inches()[0])
    first = _first(part, width)
    share = (width - first - 0.04) / len(part.heads)
    ends = [first + share * (i + 1) for i in range(len(part.heads))]
    if part.title:
        top += _LINE
        canvas.write(figure, 0.02, top, part.title, fontsize=_SIZE, weight="bold")
        top += _PAD
    canvas.rule(figure, 0, width, top, 0.9)
    top += _LINE
    for end, head in zip(ends, part.heads, strict=True):
        canvas.write(figure, end, top, _cut(head, share - 0.04), ha="right")
    top += _PAD
    for label, rows in part.groups:
        canvas.rule(figure, 0, width, top, 0.5)
        top += _LINE
        canvas.write(figure, 0.02, top, label, style="italic", color=PALE)
        for name, entries in rows:
            top += _LINE
            canvas.write(figure, 0.02, top, _cut(name, first - 0.04))
            for end, entry in zip(ends, entries, strict=True):
                weight = "bold" if entry.strong else "normal"
                canvas.write(figure, end, top, _minus(entry.main), ha="right", weight=weight)
            for depth in range(len(entries[0].below) if entries else 0):
                top += _LINE * _TIGHT
                for end, entry in zip(ends, entries, strict=True):
                    told, colour = _minus(entry.below[depth]), PALE if depth else INK
                    canvas.write(figure, end, top, told, ha="right", fontsize=_SMALL, color=colour)
        top += _PAD
    canvas.rule(figure, 0, width, top, 0.9)


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}") if len(text) > 1 else text


def _cut(name: str, room: float) -> str:
    """The name, or as much of its beginning as there is room for."""
    shown = canvas.plain(name)
    while len(shown) > 2 and canvas.widest([shown], fontsize=_SIZE) > room:
        shown = shown[:-2].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return shown
