"""``cxr-fast adopt``."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cxr_fast.cli.commands import Command
from cxr_fast.cli.options import mining_options
from cxr_fast.config import MiningSettings
from cxr_fast.export.scaling import scaling


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    def __init__(self, counts: tuple[int, ...], name: str) -> None:
        self.counts, self.name = counts, name

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) not in self.counts:
            counts = " or ".join(map(str, self.counts))
            self.fail(f"{value!r} must be {counts} numbers with commas between them", param, ctx)
        return numbers


def _class_names(value: str) -> tuple[str, ...]:
    """Names from a file, one a line, or separated by commas."""
    if not os.path.isfile(value):  # unlike Path.is_file, also says no to a name that is too long
        return tuple(name.strip() for name in value.split(","))
    try:
        lines = Path(value).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--classes {value} must be a text, one name a line, in UTF-8") from error
    return tuple(line.strip() for line in lines if line.strip())


@click.command(
    cls=Command,
    short_help="Make somebody's classifier a model.",
    examples=[
        "cxr-fast adopt weights.pth --from torchxrayvision --out xrv.safetensors",
        "cxr-fast adopt theirs.onnx --classes Effusion,Mass --range 0,1 --out model.onnx",
    ],
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="MODEL",
              help="The model to write: .onnx of an ONNX file, .safetensors of weights.")  # fmt: skip
@click.option("--classes", metavar="FILE|A,B,C",
              help="Names of the logits in order: a text, one a line, or with commas.")  # fmt: skip
@click.option("--from", "source", type=click.Choice(["torchvision", "timm", "torchxrayvision"]),
              help="Whose weights, and so how images are scaled.")  # fmt: skip
@click.option("--size", type=click.IntRange(32), metavar="N",
              help="Side of the images in pixels, where the file does not say it.")  # fmt: skip
@click.option("--channels", type=click.IntRange(1, 3), metavar="1|3",
              help="Of the images, where an ONNX file does not say it.")  # fmt: skip
@click.option("--range", "pixels", type=_Numbers((2,), "low,high"), metavar="LOW,HIGH",
              help="What black and white are for the network. Default: 0,1.")  # fmt: skip
@click.option("--mean", type=_Numbers((1, 3), "numbers"), metavar="M[,M,M]",
              help="Taken from pixels of that range ...")  # fmt: skip
@click.option("--std", type=_Numbers((1, 3), "numbers"), metavar="S[,S,S]",
              help="... which are then divided by it.")  # fmt: skip
@click.option("--features", metavar="NAME",
              help="Node or value of an ONNX file: the feature map, if not found.")  # fmt: skip
@click.option("--head", metavar="NAME",
              help="Node or value of an ONNX file: the logits, if not found.")  # fmt: skip
@mining_options
@click.option("--half", is_flag=True, help="Store weights in float16 (not of ONNX files).")
@click.option("--json", "as_json", is_flag=True, help="Print what the model says of itself.")
def adopt(
    file: Path,
    out: Path,
    classes: str | None,
    source: str | None,
    size: int | None,
    channels: int | None,
    pixels: tuple[float, float] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    features: str | None,
    head: str | None,
    half: bool,
    as_json: bool,
    **mining: Any,
) -> None:
    """Make FILE, somebody's classifier, a model that `mine` takes.

    FILE is an ONNX file whose logits are one linear layer on the mean of a feature map, or the
    state_dict of a ResNet-18, -34 or -50 (torch.save or safetensors).
    """
    changes = {name: value for name, value in mining.items() if value not in (None, ())}
    settings = MiningSettings(**changes)
    where: dict[str, Any] = {"size": size, "channels": channels, "features": features, "head": head}
    names = _class_names(classes) if classes else None
    given = scaling(pixels, mean, std)
    if not file.is_file():
        raise FileNotFoundError(f"{file} must be a classifier's file, but there is no such file")
    is_onnx = _is_onnx(file)
    wanted = ".onnx" if is_onnx else ".safetensors"
    if out.suffix.lower() != wanted:
        kind = "an ONNX file" if is_onnx else "a file of weights"
        raise ValueError(f"{file} is {kind}; let --out end in {wanted}, and not be {out.name}")
    if is_onnx:
        told = _adopt_onnx(file, out, names, given, source, half, mining=settings, **where)
    else:
        told = _adopt_weights(file, out, names, given, source, half, mining=settings, **where)
    if as_json:
        click.echo(json.dumps(told, indent=1))
        return
    click.echo(f"classes  {', '.join(told['class_names'])}\nwritten  {out}")


def _adopt_onnx(
    file: Path,
    out: Path,
    names: tuple[str, ...] | None,
    given: tuple[tuple[float, ...], tuple[float, ...]] | None,
    source: str | None,
    half: bool,
    **rest: Any,
) -> dict[str, Any]:
    from cxr_fast.export.adopt import adopt_onnx

    if source or half:
        raise ValueError("--from and --half are for files of weights; leave them out with an ONNX file")
    if names is None:
        raise ValueError("an ONNX file does not name its logits; give their names with --classes")
    if given is None:
        raise ValueError(
            "an ONNX file does not say how its images are scaled; give --mean and --std, --range, or "
            "both (--range 0,1: grey levels from 0 to 1 as they are)"
        )
    return asdict(adopt_onnx(file, out, names, *given, **rest))


def _adopt_weights(
    file: Path,
    out: Path,
    names: tuple[str, ...] | None,
    given: tuple[tuple[float, ...], tuple[float, ...]] | None,
    source: Any,
    half: bool,
    size: int | None = None,
    mining: MiningSettings | None = None,
    **of_onnx: Any,
) -> dict[str, Any]:
    from cxr_fast.models.adopt import adopt_weights

    if named := [f"--{name}" for name, value in of_onnx.items() if value is not None]:
        raise ValueError(f"{', '.join(named)} is of ONNX files; leave it out with weights")
    mean, std = given or (None, None)
    card = adopt_weights(
        file,
        out,
        source,
        class_names=names,
        size=size,
        mean=mean,
        std=std,
        mining=mining,
        half=half,
    )
    return asdict(card)


def _is_onnx(file: Path) -> bool:
    """Told by content: protobuf begins with the version of the format, field 1."""
    with open(file, "rb") as content:
        return content.read(1) == b"\x08" or file.suffix.lower() == ".onnx"
