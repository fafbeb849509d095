"""``cxr-fast bench`` and ``cxr-fast bench compare``."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from cxr_fast.cli.commands import SubGroup


@click.group(
    cls=SubGroup,
    short_help="Race operators against their peers.",
    invoke_without_command=True,
    examples=["cxr-fast bench --only masked_gap --seconds 1", "cxr-fast bench --out results"],
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--only", metavar="NAME", help="Cases whose name has this; pytest's -k.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True,
              help="For each case, about.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Write the results as JSON and the table as text.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Tiny cases: does everything run and agree here?")
@click.pass_context
def bench(
    context: click.Context, device: str, only: str | None, seconds: float, out: Path | None, quick: bool
) -> None:
    """Race operators, pipeline and training step against other ways to compute the same.

    Equality first, then medians of calls in turns, as ratios to each peer and in percent of what the
    machine's bandwidth and arithmetic, measured in the same run, allow.
    """
    from cxr_fast.bench import run_benchmarks

    if context.invoked_subcommand is None:
        sys.exit(run_benchmarks(device, only, seconds, out, quick))


@bench.command()
@click.argument("old", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("new", type=click.Path(path_type=Path, dir_okay=False))
def compare(old: Path, new: Path) -> None:
    """Compare two JSON files of results, case by case: above 1 is faster in NEW."""
    from cxr_fast import bench

    Console().print(bench.compare(old, new))
