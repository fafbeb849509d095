"""``cxr-fast figure``: pictures and tables for papers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from cxr_fast.cli.commands import SubGroup
from cxr_fast.cli.options import judging_options, truth_option
from cxr_fast.files import require_writable, write_whole

_Command = TypeVar("_Command", bound=Callable[..., Any])


_labels_option = click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Label table in the layout of Data_Entry_2017.csv, for patients.",
)


def _figure_options(command: _Command) -> _Command:
    """Add what all figures share."""
    for decorate in reversed(
        (
            click.option("--out", "outs", required=True, multiple=True, metavar="FILE",
                         type=click.Path(path_type=Path),
                         help="Where to write, of the type that its name ends in; once for each."),
            click.option("--columns", type=click.Choice(["one", "two"]), default="two",
                         show_default=True,
                         help="Width of the page: one column (3.5 in) or both (7.16 in)."),
            click.option("--dpi", type=click.IntRange(50, 1200), default=300, show_default=True,
                         help="Dots an inch, of PNG."),
            click.option("--note", default="", metavar="TEXT",
                         help="Stands in the corner. Figures of the demonstration model say so "
                         "themselves."),
        )
    ):  # fmt: skip
        command = decorate(command)
    return command


@click.group(cls=SubGroup, short_help="Draw figures and tables for papers.")
def figure() -> None:
    """Draw figures for papers: PNG, SVG and PDF; tables also as Markdown, LaTeX and CSV.

    \b
    fig2    attention steps of named images, as the paper's Fig. 2
    curves  Acc over AFP of each finding, with intervals
    table   runs side by side, with intervals and paired differences

    Needs the extra figures: pip install 'cxr_fast[figures]'.
    """  # noqa: D301 - click's mark for lines to leave as they are is a backspace


@figure.command(short_help="Attention steps of named images.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--images", required=True, help="What the run was mined from, as `mine` takes it.")
@click.option("--model", required=True, help="The model that the run was mined by.")
@click.option("--row", "named", nargs=2, multiple=True, required=True, metavar="IMAGE CLASS",
              help="A row: image_id or file name, and the class; once for each row.")  # fmt: skip
@truth_option("drawn dashed")
@click.option("--other-model", is_flag=True, help="Draw what another model than the run's sees.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
              help="Of the network. Default: the run's.")  # fmt: skip
@click.option("--device", default="auto", show_default=True)
@_figure_options
def fig2(
    run: Path,
    images: str,
    model: str,
    named: tuple[tuple[str, str], ...],
    truth: Path | None,
    other_model: bool,
    precision: str | None,
    device: str,
    outs: tuple[Path, ...],
    columns: Any,
    dpi: int,
    note: str,
) -> None:
    """Draw the attention steps of images of RUN: boxes, each step's CAM, the aggregated heatmap.

    The images are mined again, by the run's model and in its precision.

    \b
    cxr-fast figure fig2 demo/run --images demo/archive/images --model demo \\
      --truth demo/archive/BBox_List_2017.csv \\
      --row 00000002_000.png Atelectasis --out fig2.pdf
    """  # noqa: D301
    from cxr_fast.figures import canvas, steps
    from cxr_fast.figures.mined import mined_rows
    from cxr_fast.figures.text import origin_note
    from cxr_fast.model_files import model_digest

    _check(outs, canvas.SUFFIXES, [run, truth])
    rows, notes = mined_rows(run, images, model, named, truth, other_model, precision, device)
    drawn = steps.draw_steps(rows, columns, _noted(origin_note([model_digest(model)]), note))
    for out in outs:
        canvas.save(drawn, out, dpi)
    _say(outs, notes)


@figure.command(short_help="Acc over AFP, with intervals.")
@click.argument("run", type=click.Path(path_type=Path))
@truth_option("to judge by", required=True)
@_labels_option
@click.option("--finding", "findings", multiple=True, metavar="NAME",
              help="Once for each; all that the box table names by default.")  # fmt: skip
@click.option("--published", is_flag=True,
              help="Mark what the paper's Table 2 gives for Wang et al. (ChestX-ray14).")  # fmt: skip
@judging_options((0.1, 0.3, 0.5))
@_figure_options
def curves(
    run: Path,
    truth: Path,
    labels: Path | None,
    findings: tuple[str, ...],
    published: bool,
    thresholds: tuple[float, ...],
    outs: tuple[Path, ...],
    columns: Any,
    dpi: int,
    note: str,
    **values: Any,
) -> None:
    """Draw Acc over AFP along the whole list B of RUN's boxes, with 95% intervals as bands.

    \b
    cxr-fast figure curves demo/run --truth demo/archive/BBox_List_2017.csv --out curves.pdf
    """  # noqa: D301
    from cxr_fast.evaluate import EvaluationOptions
    from cxr_fast.figures import canvas
    from cxr_fast.figures.curves import draw_curves, run_curves
    from cxr_fast.figures.text import origin_note

    _check(outs, canvas.SUFFIXES, [run, truth, labels])
    options = EvaluationOptions(overlap_thresholds=thresholds, findings=findings or None, **values)
    made = run_curves(run, truth, labels, options, published)
    drawn = draw_curves(made, columns, _noted(origin_note([made.model]), note))
    for out in outs:
        canvas.save(drawn, out, dpi)
    _say(outs, made.notes)


@figure.command(short_help="Runs side by side, with differences.")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--name", "names", multiple=True, metavar="NAME",
              help="Of a source in the table, in their order; file or folder name by default."
              )  # fmt: skip
@truth_option("to judge folders by")
@_labels_option
@click.option("--reference", metavar="NAME",
              help="Differences are against this run. Default: the first.")  # fmt: skip
@click.option("--with-afp", is_flag=True, help="AFP below each Acc.")
@judging_options((0.1, 0.3))
@_figure_options
def table(
    sources: tuple[Path, ...],
    names: tuple[str, ...],
    truth: Path | None,
    labels: Path | None,
    reference: str | None,
    with_afp: bool,
    thresholds: tuple[float, ...],
    outs: tuple[Path, ...],
    columns: Any,
    dpi: int,
    note: str,
    **values: Any,
) -> None:
    """Put SOURCES side by side: Acc of each finding with intervals, the best marked.

    A source is a run's folder, which is judged by --truth, or a JSON file of `cxr-fast evaluate`.
    Paired differences need folders. FILE ends in .md, .tex, .csv, .svg, .pdf or .png.

    \b
    cxr-fast figure table runs/t1 runs/t3 --truth BBox_List_2017.csv --out table.tex --out table.svg
    """  # noqa: D301
    from cxr_fast.evaluate import EvaluationOptions
    from cxr_fast.figures import canvas, tables
    from cxr_fast.figures.comparison import compare, judgement
    from cxr_fast.figures.text import origin_note

    texts: dict[str, Callable[[str], str]] = {
        ".md": lambda told: tables.markdown(made, with_afp, told),
        ".tex": lambda told: tables.latex(made, with_afp, told),
        ".csv": lambda _: tables.comma_separated(made),
    }
    _check(outs, (*canvas.SUFFIXES, *texts), [*sources, truth, labels])
    if names and len(names) != len(sources):
        raise ValueError(
            f"--name was given {len(names)} times for {len(sources)} sources; give it once for each"
        )
    options = EvaluationOptions(overlap_thresholds=thresholds, **values)
    called = names or (None,) * len(sources)
    made = compare(
        [judgement(s, n, truth, labels, options) for s, n in zip(sources, called, strict=True)],
        thresholds,
        reference,
    )
    told = _noted(origin_note(made.models), note)
    for out in outs:
        if out.suffix.lower() in texts:
            write_whole(out, texts[out.suffix.lower()](told).encode())
        else:
            canvas.save(tables.draw_table(made, columns, with_afp, told), out, dpi)
    _say(outs, made.notes)


def _check(outs: Sequence[Path], suffixes: Sequence[str], read: Sequence[Path | None]) -> None:
    """Refuse what cannot be written before any work."""
    for out in outs:
        if out.suffix.lower() not in suffixes:
            raise ValueError(f"--out must end in {', '.join(suffixes)}, but is {out}; rename it")
        if out.resolve() in {path.resolve() for path in read if path is not None}:
            raise ValueError(f"--out {out} is one of the files that are read; name another")
        if out.is_dir():
            raise ValueError(f"--out must be a file, but {out} is a folder; name another")
        require_writable(out.parent)
        if not out.parent.is_dir():
            raise FileNotFoundError(f"{out.parent} must be a folder to write to; make it first")


def _noted(origin: str, note: str) -> str:
    return " ".join(part for part in (origin, note) if part)


def _say(outs: Sequence[Path], notes: Sequence[str]) -> None:
    for note in notes:
        click.echo(note, err=True)
    for out in outs:
        click.echo(f"written  {out}")
