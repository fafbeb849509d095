"""``cxr-fast phantom``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cxr_fast.cli.commands import Command
from cxr_fast.cli.options import SEED, console, progress_bar, threads_option
from cxr_fast.machine import cores


@click.command(
    cls=Command,
    short_help="Draw an archive of synthetic X-rays.",
    examples=[
        "cxr-fast phantom archive --images 120",
        "cxr-fast phantom archive --images 5000 --size 512 --seed 1",
    ],
    resume="the same command goes on where it stopped",
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--images", type=click.IntRange(0), default=200, show_default=True)
@click.option("--size", type=click.IntRange(64), default=1024, show_default=True)
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--backgrounds", type=click.Path(path_type=Path),
              help="A folder of real images to plant the findings on.")  # fmt: skip
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def phantom(
    out: Path,
    images: int,
    size: int,
    seed: int,
    backgrounds: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write an archive of synthetic chest X-rays with known boxes, laid out as ChestX-ray14."""
    from cxr_fast.phantom import PhantomSettings, write_archive

    settings = PhantomSettings(images=images, size=size, seed=seed, backgrounds=backgrounds)
    talk = console()
    with progress_bar(talk) as bar:
        task = bar.add_task("drawing", total=images, note="")
        workers = threads or cores()
        write_archive(
            out,
            settings,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            workers=workers if workers > 1 else 0,
        )
    if as_json:
        click.echo(json.dumps({"images": images, "out": str(out)}))
        return
    click.echo(f"{images} images, their labels, boxes and split lists in {out}")
