"""``cxr-fast report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cxr_fast.cli.commands import Command
from cxr_fast.cli.options import console, progress_bar, threads_option, truth_option


@click.command(
    cls=Command,
    short_help="Make pages to look through a run.",
    examples=[
        "cxr-fast report run --images archive/images",
        "cxr-fast report run --images archive/images --choose random --findings 2000",
    ],
    resume="the report that was there is unchanged; give the same command again",
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--images", metavar="IMAGES",
              help="What was mined, where it is now: a folder, list or tars, as for `mine`. Without it "
              "the pages have no pictures.")  # fmt: skip
@truth_option("to show beside")
@click.option("--findings", type=click.IntRange(1), default=100_000, show_default=True, metavar="N",
              help="Show this many at most; totals are of all.")  # fmt: skip
@click.option("--choose", type=click.Choice(["probable", "random"]), default="probable",
              show_default=True,
              help="Which, where there are more: the most probable of each class, as many of each, or "
              "those of images drawn at random.")  # fmt: skip
@click.option("--preview-size", type=click.IntRange(64, 4096), default=768, show_default=True,
              help="Pixels of the longer side of pictures.")  # fmt: skip
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def report(run: Path, images: str | None, truth: Path | None, as_json: bool, **options: Any) -> None:
    """Write RUN/report/index.html: pages to look through what was mined.

    They open from the disk in any browser, without a server or a network: totals, and a gallery with
    filters, each step's attention, boxes beside true ones, and marks (accept, reject) that export
    as CSV. Give --images for pictures; mine with --heatmaps for attention.
    """
    from cxr_fast.report import write_report

    talk = console()
    with progress_bar(talk) as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, note="")
            bar.update(tasks[what], completed=done, total=total)

        written = write_report(run, images, truth, progress=progress, **options)
    if as_json:
        click.echo(json.dumps(written._asdict() | {"page": str(written.page)}))
        return
    click.echo(
        f"{written.shown} of {written.findings} findings in {written.images} images, "
        f"{written.previews} pictures, {written.bytes / 2**20:.0f} MiB"
    )
    for sentence in written.left_out:
        click.echo(sentence)
    click.echo(f"open  {written.page}")
