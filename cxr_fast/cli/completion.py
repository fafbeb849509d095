"""``cxr-fast completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from cxr_fast.cli.commands import Command

_SHELLS = ("bash", "zsh", "fish")


@click.command(
    cls=Command,
    short_help="Print what makes a shell complete words.",
    examples=[
        "echo 'eval \"$(cxr-fast completion bash)\"' >> ~/.bashrc",
        "cxr-fast completion fish > ~/.config/fish/completions/cxr-fast.fish",
    ],
)
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options and files."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "cxr-fast", "_CXR_FAST_COMPLETE").source())
