"""What several commands share: options, and the progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_Command = TypeVar("_Command", bound=Callable[..., Any])


def threads_option(command: _Command) -> _Command:
    """Add ``--threads``."""
    decorate = click.option(
        "--threads", type=click.IntRange(1), default=None, help="Default: as many as cores."
    )
    return decorate(command)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def progress_bar(console: Console) -> Progress:
    """A bar that is drawn on a terminal only; tasks need the field ``note``."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )
