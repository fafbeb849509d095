"""The command ``cxr-fast``: arguments in, functions of the package called, sentences out.

One file a command.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from cxr_fast import __version__
from cxr_fast.cli.adopt import adopt
from cxr_fast.cli.bench import bench
from cxr_fast.cli.card import card
from cxr_fast.cli.commands import Group
from cxr_fast.cli.completion import completion
from cxr_fast.cli.convert import convert
from cxr_fast.cli.env import env
from cxr_fast.cli.evaluate import evaluate
from cxr_fast.cli.export import export
from cxr_fast.cli.figure import figure
from cxr_fast.cli.mine import mine
from cxr_fast.cli.phantom import phantom
from cxr_fast.cli.report import report
from cxr_fast.cli.reproduce import reproduce
from cxr_fast.cli.train import train

_SECTIONS: dict[str, Sequence[click.Command]] = {
    "Mine an archive": (mine, report, convert, evaluate),
    "Models": (train, adopt, card, export),
    "For papers": (figure, reproduce),
    "Try it, measure it": (phantom, bench, env, completion),
}


@click.group(
    cls=Group,
    sections=_SECTIONS,
    # A line with nothing but a backspace keeps click from filling the paragraph after it.
    help="""Mine disease locations out of chest X-rays that have image-level labels only.

\b
Try it:  cxr-fast phantom demo/archive --images 60
         cxr-fast mine demo/archive/images --model demo --out demo/run --heatmaps
         cxr-fast report demo/run --images demo/archive/images
""",
)
@click.version_option(__version__, prog_name="cxr-fast")
def main() -> None:
    """The command; what it does is in its subcommands."""
