"""``cxr-fast convert``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cxr_fast.cli.commands import Command
from cxr_fast.cli.options import console, progress_bar

if TYPE_CHECKING:
    from cxr_fast.archive.convert import Conversion, Layout


@click.command(
    cls=Command,
    short_help="Write the boxes of a run as COCO or CSV.",
    examples=[
        "cxr-fast convert run --to coco --out boxes.json --min-probability 0.5",
        "cxr-fast convert run --to bbox-list --out boxes.csv --class Mass --class Nodule --top 1",
    ],
    resume="nothing was written; give the same command again",
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", "layout", required=True, type=click.Choice(["coco", "bbox-list"]),
              help="COCO JSON, or the layout of BBox_List_2017.csv.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="The file to write; one that exists is left alone.")  # fmt: skip
@click.option("--min-score", type=click.FloatRange(0, 1), default=0.0, show_default=True,
              help="Leave out boxes whose score is less.")  # fmt: skip
@click.option("--min-probability", type=click.FloatRange(0, 1), default=0.0, show_default=True,
              help="Leave out boxes whose class is less probable.")  # fmt: skip
@click.option("--class", "classes", multiple=True, metavar="NAME",
              help="Boxes of this class only; once for each.")  # fmt: skip
@click.option("--top", type=click.IntRange(1), metavar="K",
              help="The K best boxes of each image and class.")  # fmt: skip
@click.option("--paths", is_flag=True,
              help="bbox-list: name images with their folders, where file names are not unique."
              )  # fmt: skip
@click.option("--partial", is_flag=True, help="Convert what there is of an unfinished run.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def convert(
    run: Path, layout: Layout, out: Path, paths: bool, partial: bool, as_json: bool, **wanted: Any
) -> None:
    """Write the boxes of RUN for other programs: FiftyOne, CVAT and pycocotools read COCO.

    COCO lists every image that could be read, with or without boxes; a bbox-list names images
    by file name and has rows for boxes only. A run that is not finished is refused.
    """
    from cxr_fast.archive.convert import BoxFilter, convert_run

    with progress_bar(console()) as bar:
        task = bar.add_task("converting", total=None, note="")

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        done = convert_run(
            run, out, layout, BoxFilter(**wanted), paths=paths, partial=partial, progress=progress
        )
    if as_json:
        click.echo(json.dumps(done._asdict()))
        return
    click.echo(f"{done.images} images, {done.boxes} boxes -> {out}")
    for sentence in _left_out(done):
        click.echo(sentence)


def _left_out(done: Conversion) -> list[str]:
    sentences = (
        (done.missing_shards, "shards are not mined yet, and not in the file"),
        (done.unreadable, "images were unreadable, and are not in the file (see errors.parquet)"),
        (done.sizeless, "images were mined for no class: their size is unknown, and they are left out"),
        (done.renamed, "images have names that are not UTF-8; they are named by their image_id"),
        (done.outside, "images lie outside the folder that was mined (../), which CVAT refuses"),
    )
    return [f"{count} {sentence}" for count, sentence in sentences if count]
