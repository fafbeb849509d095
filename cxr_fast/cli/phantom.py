"""``cxr-fast phantom``."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from cxr_fast.cli.options import cores, progress_bar, threads_option


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--images", type=click.IntRange(0), default=200, show_default=True)
@click.option("--size", type=click.IntRange(64), default=1024, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--backgrounds", type=click.Path(path_type=Path),
              help="A folder of real images to plant the findings on.")  # fmt: skip
@threads_option
def phantom(
    out: Path, images: int, size: int, seed: int, backgrounds: Path | None, threads: int | None
) -> None:
    """Write an archive of synthetic chest X-rays with known boxes, laid out as ChestX-ray14."""
    from cxr_fast.phantom import PhantomSettings, write_archive

    settings = PhantomSettings(images=images, size=size, seed=seed, backgrounds=backgrounds)
    console = Console(stderr=True)
    with progress_bar(console) as bar:
        task = bar.add_task("drawing", total=images, note="")
        workers = threads or cores()
        write_archive(
            out,
            settings,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            workers=workers if workers > 1 else 0,
        )
    click.echo(f"{images} images, their labels, boxes and split lists in {out}")
