"""What several commands share: options, and the progress bar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cxr_fast.cli.commands import QUIET
from cxr_fast.config import Mode, Select

_Command = TypeVar("_Command", bound=Callable[..., Any])


# More threads than any machine has cores only cost memory; a system refuses at a number of its own.
THREADS = click.IntRange(1, 1024)
# What every generator of random numbers takes.
SEED = click.IntRange(0, 2**32 - 1)


class ModelFile(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A model's file, or ``demo`` for the bundled one; the text as it was given."""

    name = "model"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """``demo``, or else whatever files there are."""
        if incomplete and "demo".startswith(incomplete):
            return [CompletionItem("demo")]
        return [CompletionItem(incomplete, type="file")]


MODEL = ModelFile()


def threads_option(command: _Command) -> _Command:
    """Add ``--threads``."""
    decorate = click.option("--threads", type=THREADS, default=None, help="Default: as many as cores.")
    return decorate(command)


def truth_option(purpose: str, required: bool = False) -> Callable[[_Command], _Command]:
    """Add ``--truth``, with what the true boxes are for."""
    return click.option(
        "--truth",
        type=click.Path(path_type=Path),
        required=required,
        metavar="CSV",
        help=f"True boxes in the layout of BBox_List_2017.csv, {purpose}.",
    )


def mining_options(command: _Command) -> _Command:
    """Add those of ``MiningSettings`` that a model may record; what is not given is None or ()."""
    for decorate in reversed(
        (
            click.option(
                "--steps", type=click.IntRange(1, 255), help="Attention steps that `mine` takes."
            ),
            click.option("--cam-threshold", type=float, help="Cuts a step's foreground."),
            click.option(
                "--mode", type=click.Choice(get_args(Mode)), help="Of the aggregated heatmap."
            ),
            click.option(
                "--threshold",
                "thresholds",
                type=float,
                multiple=True,
                help="Cuts boxes; once for each.",
            ),
            click.option("--select", type=click.Choice(get_args(Select)), help="Which boxes."),
            click.option(
                "--upsample", type=click.IntRange(1, 64), help="Of maps before boxes are cut."
            ),
        )
    ):
        command = decorate(command)
    return command


def judging_options(thresholds: tuple[float, ...]) -> Callable[[_Command], _Command]:
    """Add those of ``EvaluationOptions`` that say how boxes are judged; ``thresholds`` are T(IoU)."""
    options = (
        click.option(
            "--iou-threshold", "thresholds", multiple=True, type=float, default=thresholds,
            show_default=True, help="T(IoU), or T(IoBB); give it several times.",
        ),
        click.option(
            "--overlap", type=click.Choice(["iou", "iobb"]), default="iou", show_default=True,
            help="Intersection over the union, or over the mined box.",
        ),
        click.option(
            "--afp-images", type=click.Choice(["class", "boxed", "all"]), default="class",
            show_default=True,
            help="Count false positives on images with a box of the class, with any box, or all.",
        ),
        click.option(
            "--afp-denominator", type=click.IntRange(1), metavar="N",
            help="Divide them by N instead; with --afp-images boxed or all.",
        ),
        click.option(
            "--afp-bounds", default="none", show_default=True, metavar="none|paper|FILE",
            help="Stop where AFP reaches this bound: the paper's Table 2, or a CSV with finding, "
            "iou_threshold, afp.",
        ),
        click.option(
            "--image-order", type=click.Choice(["truth", "run"]), default="truth",
            show_default=True, help="Order of images in the list B; matters with bounds.",
        ),
        click.option(
            "--resample", type=click.Choice(["images", "patients"]), default="images",
            show_default=True, help="What the intervals draw; patients need --labels.",
        ),
        click.option("--resamples", type=click.IntRange(1), default=1000, show_default=True),
        click.option("--seed", type=SEED, default=0, show_default=True),
    )  # fmt: skip

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def console() -> Console:
    """For the person who waits: stderr, and nothing with ``--quiet``."""
    return Console(stderr=True, quiet=click.get_current_context().meta.get(QUIET, False))


def progress_bar(console: Console) -> Progress:
    """A bar that is drawn on a terminal only; tasks need the field ``note``."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal or console.is_dumb_terminal or console.quiet,
    )
