"""``cxr-fast train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cxr_fast.cli.options import cores, threads_option


@click.command()
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
@threads_option
def train(archive: Path, out: Path, threads: int | None, **values: Any) -> None:
    """Train a classifier on the image-level labels of ARCHIVE (stage base)."""
    from cxr_fast.archive import command

    command.train(archive, out, threads or cores(), values, click.echo)
