"""The command ``cxr-fast``: arguments in, functions of the package called, sentences out.

One file a command.
"""

from __future__ import annotations

from typing import Any

import click

from cxr_fast import __version__
from cxr_fast.cli.adopt import adopt
from cxr_fast.cli.bench import bench
from cxr_fast.cli.card import card
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

# Which extra of the package brings a module, where it is not the extra torch.
_EXTRAS = {
    "lightning_fabric": "train",
    "matplotlib": "figures",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "ray": "ray",
    "tensorboardX": "train",
    "yaml": "train",
}
# What a person can mend: said in a sentence, without a traceback.
_MENDABLE = (ValueError, TypeError, OSError, RuntimeError)


class _Group(click.Group):
    """Commands whose expected errors end in one line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # RuntimeErrors and OSErrors that mean something else
        except _MENDABLE as error:
            if ctx.params.get("debug"):
                raise
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            if ctx.params.get("debug"):
                raise
            raise click.ClickException(
                f"this command needs {error.name}, which is not installed; install it with: "
                f"pip install 'cxr_fast[{_EXTRAS.get(error.name or '', 'torch')}]'"
            ) from error


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    # A line with nothing but a backspace keeps click from filling the paragraph after it.
    help="""Mine disease locations out of chest X-rays that have image-level labels only.

\b
Try it:  cxr-fast phantom demo/archive --images 60
         cxr-fast mine demo/archive/images --model demo --out demo/run --overlays 6
""",
)
@click.version_option(__version__, prog_name="cxr-fast")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
def main(debug: bool) -> None:
    """The command; what it does is in its subcommands."""


for _command in (
    mine,
    convert,
    phantom,
    train,
    evaluate,
    figure,
    report,
    reproduce,
    card,
    adopt,
    export,
    bench,
    env,
):
    main.add_command(_command)
