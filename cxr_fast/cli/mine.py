"""``cxr-fast mine``."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from cxr_fast.cli.commands import Command
from cxr_fast.cli.endings import Interrupts, name_of
from cxr_fast.cli.options import MODEL, THREADS, console, progress_bar, truth_option
from cxr_fast.files import write_whole

# Where nobody watches a bar, a log has a line now and then.
_SECONDS_BETWEEN_LINES = 60.0


def _one_source(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> str:
    if len(value) > 1:
        raise click.UsageError(
            f"IMAGES is one argument, but {len(value)} came; quote a pattern so that the shell leaves "
            "it alone ('folder/*.png'), or list the paths in a CSV or Parquet file",
            context,
        )
    return value[0]


@contextmanager
def _stopping(talk: Console) -> Iterator[tuple[threading.Event, list[int]]]:
    """An event that Ctrl-C and SIGTERM set, and which of them did."""
    stop, numbers = threading.Event(), list[int]()

    def softly(number: int) -> None:
        numbers.append(number)
        stop.set()
        talk.print(f"{name_of(number)}: stopping behind the shard in hand; once more ends at once")

    interrupts = click.get_current_context().find_object(Interrupts)
    with interrupts.softly(softly) if interrupts else nullcontext():
        yield stop, numbers


@click.command(
    cls=Command,
    short_help="Mine images into boxes.",
    examples=[
        "cxr-fast mine archive/images --model demo --out run --overlays 20",
        "cxr-fast mine 'shards-{000..099}.tar' --model model.onnx --out run --min-probability 0.5",
        "cxr-fast mine images --model model.safetensors --out run --classes labels --labels labels.csv",
    ],
    resume="the same command goes on where it stopped",
)
@click.argument("images", nargs=-1, required=True, callback=_one_source)
@click.option("--model", required=True, type=MODEL,
              help="A checkpoint, an .onnx file of `cxr-fast export --form cam` (no torch needed), or "
              "'demo' for the bundled model.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--classes", type=click.Choice(["all", "labels"]), default="all", show_default=True,
              help="Every class of every image, or those that --labels names.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path),
              help="Label table in the layout of Data_Entry_2017.csv.")  # fmt: skip
@truth_option("drawn on overlays")
@click.option("--overlays", type=click.IntRange(0), default=0, metavar="N",
              help="Draw the first N images, as in the paper's Fig. 2.")  # fmt: skip
@click.option("--min-probability", type=click.FloatRange(0, 1), default=0.0, show_default=True,
              help="Leave out classes less probable than this.")  # fmt: skip
@click.option("--heatmaps", is_flag=True,
              help="Keep the heatmaps too, for evaluate's mean IoU and pixel AUC.")  # fmt: skip
@click.option("--keep-tags", multiple=True, metavar="NAME",
              help="A DICOM value to keep in OUT/tags: PatientSex, 0010,0040, ... No other leaves its "
              "file.")  # fmt: skip
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
              default="auto", show_default=True,
              help="Of the network; resolved once and recorded.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--shard-size", type=click.IntRange(1), default=1024, show_default=True,
              help="Images of one part, which is written whole or not at all.")  # fmt: skip
@click.option("--device", default="auto", show_default=True,
              help="auto (every GPU, or else the processor), cpu, cuda, cuda:0,cuda:1; of an .onnx "
              "file auto, tensorrt, cuda, openvino, cpu.")  # fmt: skip
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="This machine, or the Ray cluster that RAY_ADDRESS names.")  # fmt: skip
@click.option("--threads", type=THREADS,
              help="Of this machine: as many as cores; with --engine ray of each worker: its GPU's "
              "share of the node, or the node.")  # fmt: skip
@click.option("--max-errors", type=click.IntRange(0), metavar="N",
              help="Stop once more images than this are unreadable. Default: never.")  # fmt: skip
@click.option("--profile", is_flag=True, help="Write OUT/profile.json: where the time went.")
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
    heatmaps: bool,
    keep_tags: tuple[str, ...],
    precision: Any,
    batch_size: int,
    shard_size: int,
    device: str,
    engine: Any,
    threads: int | None,
    max_errors: int | None,
    profile: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Mine IMAGES into boxes.

    IMAGES is a folder, a quoted pattern ('folder/**/*.png'), a .csv or .parquet file that lists paths,
    tars ('shards-{000..099}.tar'), or one image; each here or behind a URI (s3://bucket/folder).

    Writes OUT/findings/*.parquet, one row a box, OUT/maps/*.parquet, one row a heatmap,
    OUT/errors.parquet and OUT/run.json. The same command goes on where it stopped; other settings
    in the same folder are refused. Ctrl-C and SIGTERM end it behind the shard in hand.
    """
    from cxr_fast import _numpy_ops
    from cxr_fast.archive import command

    # The process is this command's own; pages that were given back cost a tenth of its time.
    _numpy_ops.keep_freed_memory()
    talk = console()
    prepared = command.prepare(
        images, model, out, classes, labels, truth, overlays, min_probability, heatmaps, keep_tags,
        precision, batch_size, shard_size, device, threads, max_errors, engine,
    )  # fmt: skip
    with prepared as job:
        talk.print(job.summary, highlight=False, soft_wrap=True)
        with progress_bar(talk) as bar:
            task = bar.add_task("mining", total=None, note="")

            seen: dict[str, Any] = {}
            told = time.monotonic()

            def progress(done: int, total: int, stages: Any) -> None:
                nonlocal told
                seconds = bar.tasks[0].elapsed or 1e-9
                note = f"{done / seconds:.1f} images/s, limited by {stages.limit()}"
                bar.update(task, completed=done, total=total, note=note)
                seen.update(images=done, stages=stages)
                if not talk.is_terminal and time.monotonic() - told > _SECONDS_BETWEEN_LINES:
                    told = time.monotonic()
                    talk.print(f"{done} of {total} images, {note}", highlight=False, soft_wrap=True)

            try:
                with _stopping(talk) as (stop, numbers):
                    report = job.run(progress, stop)
            finally:
                if profile and seen:
                    document = json.dumps(
                        seen["stages"].profile() | {"images": seen["images"]}, indent=1
                    )
                    write_whole(out / "profile.json", document.encode() + b"\n")
    if as_json:
        click.echo(json.dumps({**report._asdict(), "stages": report.stages.seconds}))
    else:
        rate = report.images / report.seconds if report.seconds else 0.0
        done = (
            f"{report.images} images mined in {report.seconds:.1f} s ({rate:.1f} images/s, "
            f"limited by {report.stages.limit()}), {report.boxes} boxes"
        )
        if not report.images:
            done = "nothing was left to mine"
        click.echo(f"{done}; {report.unreadable} of {report.total} images unreadable")
        click.echo(f"findings  {out / 'findings'}\nerrors    {out / 'errors.parquet'}")
        if (out / "overlays").is_dir():
            click.echo(f"overlays  {out / 'overlays'}")
        elif overlays:
            click.echo("overlays  none drawn: those images were mined before")
        for trouble in job.troubles:
            click.echo(f"overlay not drawn  {trouble}", err=True)
    if report.stopped:
        name = name_of(numbers[0])
        click.echo(f"stopped by {name} behind a whole shard; the same command goes on", err=True)
        sys.exit(128 + numbers[0])
    if strict and report.unreadable:
        sys.exit(1)
