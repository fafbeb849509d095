"""``cxr-fast train``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cxr_fast.cli.commands import Command
from cxr_fast.cli.options import SEED, console, progress_bar, threads_option
from cxr_fast.config import BOXED_FINDINGS, CHESTXRAY14_FINDINGS
from cxr_fast.machine import cores

_Command = TypeVar("_Command", bound=Callable[..., Any])

_FINDINGS = {"8": BOXED_FINDINGS, "14": CHESTXRAY14_FINDINGS}

# Flags of the settings: name, type or choices, and what it says. Without a default here, as the
# settings have theirs, and a YAML file comes between the two.
_SETTINGS: tuple[tuple[str, Any, str], ...] = (
    ("stage", ("base", "msa-init", "msa", "mining"), "Default: base."),
    ("epochs", click.IntRange(1), "Default: 50, 10, until the loss plateaus, 10, by stage."),
    ("batch-size", click.IntRange(2), "Of one update, over all processes. Default: 64."),
    ("accumulate", click.IntRange(1), "Parts that a batch is computed in. Default: 1."),
    ("learning-rate", float, "Default: 0.1."),
    ("optimizer", ("sgd", "adamw"), "Default: sgd."),
    ("weight-decay", float, "Default: 0.0001."),
    ("warmup", float, "Share of the updates. Default: 0.05."),
    ("decay", ("cosine", "constant"), "Of the learning rate. Default: cosine."),
    ("balance", ("none", "wang"), "Weights of positives and negatives. Default: none."),
    ("validation", float, "Share of patients held back. Default: 0.1."),
    ("monitor", ("loss", "auroc"), "What picks the best epoch. Default: loss."),
    ("patience", click.IntRange(0), "Epochs without a better one that end it. Default: 5 for msa."),
    ("seed", SEED, "Default: 0."),
    ("precision", ("auto", "float32", "bfloat16"), "Default: auto."),
    ("checkpoint-every", click.IntRange(1), "Updates between two states on disk. Default: 500."),
    ("flip", click.FloatRange(0, 1), "Chance of a mirror image. Default: 0."),
    ("schedule", ("joint", "staged"), "Of the mining steps. Default: joint."),
    ("variant", ("kp", "kp-vanilla", "none"), "Knowledge preservation. Default: kp."),
    ("steps", click.IntRange(1, 255), "Mining steps, T. Default: 3."),
    ("erased-share", float, "n/N, of a batch. Default: 0.125."),
    ("preservation", float, "Lambda, the weight of L_KP. Default: 0.5."),
    ("cam-threshold", float, "Cuts a step's foreground. Default: 0.5."),
    ("gradient-clip", float, "Largest norm of a gradient. Default: none."),
    ("averaging", float, "Decay of a running average of the weights. Default: none."),
)


def _settings_options(command: _Command) -> _Command:
    for name, kind, text in reversed(_SETTINGS):
        typed = click.Choice(kind) if isinstance(kind, tuple) else kind
        command = click.option(f"--{name}", type=typed, default=None, help=text)(command)
    return command


@click.command(
    cls=Command,
    short_help="Train a stage on image-level labels.",
    examples=[
        "cxr-fast train archive --stage base --out runs/base",
        "cxr-fast train archive --stage mining --start msa.safetensors --mine-list mine.txt --out am",
        "torchrun --nproc-per-node 8 -m cxr_fast.cli train archive --config base.yaml --out base",
    ],
    resume="the same command goes on from the last state on the disk",
    # A line with nothing but a backspace keeps click from filling the paragraph after it.
    help="""Train one stage of the method on the image-level labels of ARCHIVE.

\b
base      the backbone, from nothing or ImageNet weights
msa-init  a new aggregation and classifier over the frozen backbone
msa       all of it, until the validation loss plateaus
mining    attention mining with knowledge preservation

ARCHIVE is laid out as ChestX-ray14. OUT gets best.safetensors, last.safetensors, metrics.csv and
tensorboard/. The same command goes on where it was stopped. Start it with torchrun for several
processes.
""",
)
@click.argument("archive", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The training's folder.")
@click.option("--config", type=click.Path(path_type=Path),
              help="YAML with the settings; flags count over it.")  # fmt: skip
@click.option("--start", type=click.Path(path_type=str),
              help="The model to go on from; every stage but base.")  # fmt: skip
@click.option("--mine-list", type=click.Path(path_type=str),
              help="Names of the images to erase, one a line; stage mining.")  # fmt: skip
@click.option("--findings", default="8", show_default=True, metavar="8|14|NAMES",
              help="ChestX-ray14's with boxes, all of them, or names with commas between; "
              "stage base.")  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path), metavar="DIR",
              help="Keep resized images here, for several runs. Default: in memory.")  # fmt: skip
@click.option("--skip-missing", is_flag=True,
              help="Leave out images that the lists name and the folders lack.")  # fmt: skip
@click.option("--backbone", type=click.Choice(["resnet18", "resnet34", "resnet50"]),
              help="Stage base. Default: resnet50.")  # fmt: skip
@click.option("--msa", type=click.Choice(["none", "bilinear", "deconv"]),
              help="Multi-scale aggregation. Default: none in base, bilinear in msa-init.")  # fmt: skip
@click.option("--width", type=float, help="Of every layer. Default: 1.")
@click.option("--in-channels", type=click.IntRange(1, 3), help="1 or 3. Default: 3.")
@click.option("--input-size", type=click.IntRange(32), help="Side in pixels. Default: 512.")
@click.option("--bilateral/--whole", default=None,
              help="Look at each half of the image alone; stage base. Default: whole.")  # fmt: skip
@click.option("--pooling", type=click.Choice(["gap", "lse"]),
              help="From CAM to logit, the mean or log-sum-exp; stage base. Default: gap.")  # fmt: skip
@click.option("--standardise", is_flag=True, default=None,
              help="Bring each image to mean 0 and deviation 1; stage base.")  # fmt: skip
@click.option("--imagenet", type=click.Path(path_type=str),
              help="torchvision's weights of the backbone to begin with; stage base.")  # fmt: skip
@_settings_options
@click.option("--compile", is_flag=True, default=None, help="Compile the training step.")
@click.option("--frozen-norms", is_flag=True, default=None,
              help="Keep batch normalisation in eval mode.")  # fmt: skip
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print the last epoch and the files as JSON.")
def train(
    archive: Path,
    out: Path,
    config: Path | None,
    findings: str,
    cache: Path | None,
    skip_missing: bool,
    threads: int | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train one stage; see the command's help."""
    import torch

    from cxr_fast.training import command

    job = command.prepare(
        archive,
        out,
        config,
        flags,
        _FINDINGS.get(findings) or tuple(name.strip() for name in findings.split(",")),
        cache,
        "skip" if skip_missing else "refuse",
    )
    talk = console()
    for note in job.archive.notes:
        talk.print(note, highlight=False)
    torch.set_num_threads(threads or cores())
    with progress_bar(talk) as bar:

        def images_read(what: str) -> Callable[[int, int], None]:
            task = bar.add_task(what, total=None, note="")
            return lambda done, total: bar.update(task, completed=done, total=total)

        def reporter(what: str) -> Callable[[int, int, str], None]:
            task = bar.add_task(what, total=None, note="")
            return lambda done, total, note: bar.update(task, completed=done, total=total, note=note)

        result = job.run(talk.print, images_read, reporter, threads or cores())
    row = result.histories[-1][-1]
    if as_json:
        told = {name: row[name] for name in ("epoch", "loss", "auroc")}
        if int(os.environ.get("RANK", 0)) == 0:  # of the processes of torchrun one prints
            click.echo(json.dumps({**told, "best": str(result.best), "last": str(result.last)}))
        return
    click.echo(f"epoch {row['epoch']:.0f}: loss {row['loss']:.4f}, mean AUROC {row['auroc']:.3f}")
    click.echo(f"best  {result.best}\nlast  {result.last}")
