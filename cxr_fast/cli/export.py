"""``cxr-fast export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import click

from cxr_fast.cli.commands import Command
from cxr_fast.cli.options import MODEL


def _size(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | Literal["dynamic"] | None:
    if value is None or value == "dynamic":
        return value  # type: ignore[return-value]  # mypy does not narrow a str to a literal
    try:
        return int(value)
    except ValueError as error:
        raise click.BadParameter(
            f"{value!r} is neither a number of pixels nor 'dynamic'", context, parameter
        ) from error


@click.command(
    cls=Command,
    short_help="Write a model as ONNX or torch.export.",
    examples=[
        "cxr-fast export demo --form cam --out cam.onnx",
        "cxr-fast export model.safetensors --raw-input --dtype float16 --out boxes.onnx",
    ],
)
@click.argument("model", type=MODEL)
@click.option("--to", type=click.Choice(["onnx", "pt2"]), default="onnx", show_default=True,
              help="ONNX, or a torch.export program.")  # fmt: skip
@click.option("--form", type=click.Choice(["cam", "end2end"]), default="end2end", show_default=True,
              help="Up to class activation maps, or up to boxes.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="The file to write; one that exists is left alone.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32",
              show_default=True, help="Of the network; maps and boxes are float32.")  # fmt: skip
@click.option("--size", callback=_size, metavar="N|dynamic",
              help="Side of the images in pixels. Default: the model's.")  # fmt: skip
@click.option("--raw-input", is_flag=True,
              help="Take grey bytes of any size; the graph resizes and normalises.")  # fmt: skip
@click.option("--heatmap", is_flag=True, help="Give the aggregated heatmap, too.")
@click.option("--erased-at", is_flag=True, help="Give the step that erases each cell, too.")
@click.option("--opset", type=int, metavar="N", help="Of ONNX. Default: 18, or 22 for bfloat16.")
@click.option("--json", "as_json", is_flag=True, help="Print the file's contract as JSON.")
def export(model: str, out: Path, as_json: bool, **options: Any) -> None:
    """Write MODEL (a file, or 'demo') for programs that mine without torch.

    Of --form end2end the input is `image` (and `image_size`, without --raw-input), the outputs are
    `logits`, `boxes`, `scores` and `counts`; of --form cam they are `logits` and `cam`.
    """
    from cxr_fast.export.command import export_model
    from cxr_fast.export.metadata import to_json

    metadata = export_model(model, out, **options)
    if as_json:
        click.echo(json.dumps(json.loads(to_json(metadata)), indent=1))
        return
    taken = metadata.input
    side = taken.size or "any"
    image = f"uint8 [N, rows, columns], resized to {side}" if taken.raw else (
        f"float32 [N, {taken.channels}, {side}, {side}]"
    )  # fmt: skip
    click.echo(f"image    {image}\noutputs  {', '.join(metadata.outputs)}\nwritten  {out}")
