"""The command ``cxr-fast``: arguments in, functions of the package called, sentences out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cxr_fast import __version__

# What a person can mend: said in a sentence, without a traceback.
_MENDABLE = (ValueError, TypeError, OSError, RuntimeError)
_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Group(click.Group):
    """Commands whose expected errors end in one line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # RuntimeErrors and OSErrors that mean something else
        except _MENDABLE as error:
            if ctx.params.get("debug"):
                raise
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            if ctx.params.get("debug"):
                raise
            raise click.ClickException(
                f"this command needs {error.name}, which is not installed; "
                "install it with: pip install 'cxr_fast[torch]'"
            ) from error


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    # A line with nothing but a backspace keeps click from filling the paragraph after it.
    help="""Mine disease locations out of chest X-rays that have image-level labels only.

\b
Try it:  cxr-fast phantom demo/archive --images 60
         cxr-fast mine demo/archive/images --model demo --out demo/run --overlays 6
""",
)
@click.version_option(__version__, prog_name="cxr-fast")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
def main(debug: bool) -> None:
    """The command; what it does is in its subcommands."""


def _threads_option(command: _Command) -> _Command:
    decorate = click.option(
        "--threads", type=click.IntRange(1), default=None, help="Default: as many as cores."
    )
    return decorate(command)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )


def _one_source(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> str:
    if len(value) > 1:
        raise click.UsageError(
            f"IMAGES is one argument, but {len(value)} came; quote a pattern so that the shell leaves "
            "it alone ('folder/*.png'), or list the paths in a CSV",
            context,
        )
    return value[0]


@main.command()
@click.argument("images", nargs=-1, required=True, callback=_one_source)
@click.option("--model", required=True, help="A checkpoint, or 'demo' for the bundled model.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--classes", type=click.Choice(["all", "labels"]), default="all", show_default=True,
              help="Every class of every image, or those that --labels names.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path),
              help="Label table in the layout of Data_Entry_2017.csv.")  # fmt: skip
@click.option("--truth", type=click.Path(path_type=Path),
              help="Box table in the layout of BBox_List_2017.csv, drawn on overlays.")  # fmt: skip
@click.option("--overlays", type=click.IntRange(0), default=0, metavar="N",
              help="Draw the first N images, as in the paper's Fig. 2.")  # fmt: skip
@click.option("--min-probability", type=click.FloatRange(0, 1), default=0.0, show_default=True,
              help="Leave out classes less probable than this.")  # fmt: skip
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
              default="auto", show_default=True,
              help="Of the network; resolved once and recorded.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@_threads_option
@click.option("--strict", is_flag=True, help="Exit with status 1 if an image was unreadable.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def mine(
    images: str,
    model: str,
    out: Path,
    classes: str,
    labels: Path | None,
    truth: Path | None,
    overlays: int,
    min_probability: float,
    precision: Any,
    batch_size: int,
    device: str,
    threads: int | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Mine IMAGES (a folder, a quoted glob, a CSV, or one file) into boxes.

    Writes OUT/findings/*.parquet, one row a box, OUT/errors.parquet and OUT/run.json. The same
    command goes on where it stopped; other settings in the same folder are refused.
    """
    from cxr_fast.archive import command

    console = Console(stderr=True)
    job = command.prepare(
        images, model, out, classes, labels, truth, overlays, min_probability, precision,
        batch_size, device, threads or _cores(),
    )  # fmt: skip
    console.print(job.summary, highlight=False)
    with _bar(console) as bar:
        task = bar.add_task("mining", total=None, note="")

        def progress(done: int, total: int, stages: Any) -> None:
            seconds = bar.tasks[0].elapsed or 1e-9
            bar.update(
                task,
                completed=done,
                total=total,
                note=f"{done / seconds:.1f} images/s, limited by {stages.limit()}",
            )

        report = job.run(progress)
    if as_json:
        click.echo(json.dumps({**report._asdict(), "stages": report.stages.seconds}))
    else:
        rate = report.images / report.seconds if report.seconds else 0.0
        click.echo(
            f"{report.images} images mined in {report.seconds:.1f} s ({rate:.1f} images/s, "
            f"limited by {report.stages.limit()}), {report.boxes} boxes; "
            f"{report.unreadable} of {report.total} images unreadable"
        )
        click.echo(f"findings  {out / 'findings'}\nerrors    {out / 'errors.parquet'}")
        if (out / "overlays").is_dir():
            click.echo(f"overlays  {out / 'overlays'}")
        elif overlays:
            click.echo("overlays  none drawn: those images were mined before")
        for trouble in job.troubles:
            click.echo(f"overlay not drawn  {trouble}", err=True)
    if strict and report.unreadable:
        sys.exit(1)


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--images", type=click.IntRange(0), default=200, show_default=True)
@click.option("--size", type=click.IntRange(64), default=1024, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--backgrounds", type=click.Path(path_type=Path),
              help="A folder of real images to plant the findings on.")  # fmt: skip
@_threads_option
def phantom(
    out: Path, images: int, size: int, seed: int, backgrounds: Path | None, threads: int | None
) -> None:
    """Write an archive of synthetic chest X-rays with known boxes, laid out as ChestX-ray14."""
    from cxr_fast.phantom import PhantomSettings, write_archive

    settings = PhantomSettings(images=images, size=size, seed=seed, backgrounds=backgrounds)
    console = Console(stderr=True)
    with _bar(console) as bar:
        task = bar.add_task("drawing", total=images, note="")
        workers = threads or _cores()
        write_archive(
            out,
            settings,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            workers=workers if workers > 1 else 0,
        )
    click.echo(f"{images} images, their labels, boxes and split lists in {out}")


@main.command()
@click.argument("archive", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The checkpoint.")
@click.option("--backbone", type=click.Choice(["resnet18", "resnet34", "resnet50"]),
              default="resnet50", show_default=True)  # fmt: skip
@click.option("--msa", type=click.Choice(["none", "bilinear", "deconv"]), default="bilinear",
              show_default=True, help="Multi-scale aggregation.")  # fmt: skip
@click.option("--width", type=float, default=1.0, show_default=True, help="Of every layer.")
@click.option("--in-channels", type=click.Choice(["1", "3"]), default="3", show_default=True)
@click.option("--input-size", type=click.IntRange(32), default=512, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=50, show_default=True)
@click.option("--batch-size", type=click.IntRange(2), default=64, show_default=True)
@click.option("--learning-rate", type=float, default=0.1, show_default=True)
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), default="sgd", show_default=True)
@click.option("--weight-decay", type=float, default=1e-4, show_default=True)
@click.option("--balance", type=click.Choice(["none", "wang"]), default="none", show_default=True)
@click.option("--steps", type=click.IntRange(1, 255), default=3, show_default=True,
              help="Attention steps that `mine` takes with this model; recorded in it.")  # fmt: skip
@click.option("--upsample", type=click.IntRange(1, 64), default=1, show_default=True,
              help="Upsampling of heatmaps before boxes are cut; recorded likewise.")  # fmt: skip
@click.option("--half", is_flag=True, help="Store the weights in float16.")
@click.option("--seed", type=int, default=0, show_default=True)
@_threads_option
def train(archive: Path, out: Path, threads: int | None, **values: Any) -> None:
    """Train a classifier on the image-level labels of ARCHIVE (stage base)."""
    from cxr_fast.archive import command

    command.train(archive, out, threads or _cores(), values, click.echo)


@main.command()
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


@main.group(invoke_without_command=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--only", metavar="NAME", help="Cases whose name has this; pytest's -k.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True,
              help="For each case, about.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Write the results as JSON and the table as text.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Tiny cases: does everything run and agree here?")
@click.pass_context
def bench(
    context: click.Context, device: str, only: str | None, seconds: float, out: Path | None, quick: bool
) -> None:
    """Race operators, pipeline and training step against other ways to compute the same.

    Equality first, then medians of calls in turns, as ratios to each peer and in percent of what the
    machine's bandwidth and arithmetic, measured in the same run, allow.
    """
    from cxr_fast.bench import run_benchmarks

    if context.invoked_subcommand is None:
        sys.exit(run_benchmarks(device, only, seconds, out, quick))


@bench.command()
@click.argument("old", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("new", type=click.Path(path_type=Path, dir_okay=False))
def compare(old: Path, new: Path) -> None:
    """Compare two JSON files of results, case by case: above 1 is faster in NEW."""
    from cxr_fast import bench

    Console().print(bench.compare(old, new))


@main.command()
def env() -> None:
    """Say which kernels serve here, and why."""
    import platform

    import numpy

    from cxr_fast import runtime

    click.echo(f"cxr_fast {__version__}, Python {platform.python_version()}, {_cores()} cores")
    click.echo(f"numpy {numpy.__version__}: kernels {runtime.instruction_set()}")
    try:
        import torch
    except ImportError:
        click.echo("torch: not installed (pip install 'cxr_fast[torch]')")
        return
    from cxr_fast import ops
    from cxr_fast.mining import resolve_precision
    from cxr_fast.ops import cuda, library

    click.echo(f"torch {torch.__version__}: CPU kernels {ops.CPU_KERNELS}")
    cpu = resolve_precision("auto", torch.device("cpu"))
    click.echo(f"precision auto on this processor: {str(cpu).removeprefix('torch.')}")
    if torch.version.cuda is None:
        click.echo("CUDA: this torch was built without it")
        return
    click.echo(f"CUDA {torch.version.cuda}: what serves each operator")
    width = max(map(len, ops.CUDA_KERNELS))
    for name, served in ops.CUDA_KERNELS.items():
        click.echo(f"  {name:<{width}}  {served}")
    if not torch.cuda.is_available():
        click.echo("no GPU is visible here")
        return
    extension = library.find_extension()
    in_use = any(served.startswith("CUDA C++") for served in ops.CUDA_KERNELS.values())
    for device in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(device)
        code = cuda.describe(device, extension) if extension and in_use else "not in use"
        click.echo(
            f"cuda:{device} {torch.cuda.get_device_name(device)}, compute capability {major}.{minor}: "
            f"CUDA C++ {code}"
        )


if __name__ == "__main__":
    main()
