"""``cxr-fast card``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cxr_fast.cli.commands import Command
from cxr_fast.cli.options import MODEL, mining_options
from cxr_fast.files import require_writable


@click.command(
    cls=Command,
    short_help="Show or change what a model says of itself.",
    examples=[
        "cxr-fast card demo",
        "cxr-fast card model.safetensors --steps 1 --threshold 0.5 --out other.safetensors",
    ],
)
@click.argument("model", type=MODEL)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write the model with these changes; without it the card is printed.")  # fmt: skip
@mining_options
@click.option("--note", help="Added to the provenance.")
@click.option("--half", is_flag=True, help="Store the weights in float16.")
def card(model: str, out: Path | None, note: str | None, half: bool, **mining: Any) -> None:
    """Show what MODEL (a file, or 'demo') says of itself, or write it with other mining settings.

    What `mine` does by default is recorded in the model's card: steps, thresholds, how boxes are cut.
    """
    import torch

    from cxr_fast.model_files import model_path
    from cxr_fast.models import load_checkpoint, save_checkpoint
    from cxr_fast.models.card import card_to_json

    classifier, described = load_checkpoint(model_path(model))
    changes = {name: value for name, value in mining.items() if value not in (None, ())}
    described = replace(described, mining=replace(described.mining, **changes))
    if note:
        described = replace(described, provenance=f"{described.provenance}. {note}")
    if out is not None:
        require_writable(out.parent)
        save_checkpoint(out, classifier, described, dtype=torch.float16 if half else torch.float32)
    elif changes or note or half:
        raise ValueError("these changes need --out FILE: the model itself is left as it is")
    click.echo(json.dumps(card_to_json(described), indent=1))
