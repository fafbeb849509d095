"""``cxr-fast reproduce``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console

from cxr_fast.cli.commands import Command
from cxr_fast.cli.options import SEED, console, progress_bar, threads_option
from cxr_fast.files import require_writable
from cxr_fast.machine import cores


@click.command(
    cls=Command,
    short_help="Run the paper's protocol and tables.",
    examples=[
        "cxr-fast reproduce table3 --data archive --out results --preset small",
        "cxr-fast reproduce siim --data siim_covid --out results",
    ],
    resume="what was trained is kept; the same command goes on",
)
@click.argument("what", type=click.Choice(["table1", "table2", "table3", "fig2", "rules", "siim"]))
@click.option("--data", required=True, type=click.Path(path_type=Path),
              help="The archive, laid out as ChestX-ray14; for siim its own folder.")  # fmt: skip
@click.option("--kermany", type=click.Path(path_type=Path), metavar="DIR",
              help="Kermany's X-rays to pre-train on; siim only. Default: beside --data.")  # fmt: skip
@click.option("--network", "networks", multiple=True, metavar="NAME",
              help="Of siim, once for each; all by default.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Figures and judged cells.")
@click.option("--runs", type=click.Path(path_type=Path), metavar="DIR",
              help="Trained networks and resized images. Default: OUT/runs.")  # fmt: skip
@click.option("--preset", type=click.Choice(["paper", "small", "long"]), default="small",
              show_default=True,
              help="The published scale (a GPU), one for two cores, the same for longer.")  # fmt: skip
@click.option("--imagenet", type=click.Path(path_type=Path),
              help="torchvision's weights that the backbone begins with, as the paper's.")  # fmt: skip
@click.option("--seed", "seeds", type=SEED, multiple=True, default=(0, 1, 2),
              show_default=True, help="Once for each seed.")  # fmt: skip
@threads_option
def reproduce(
    what: str,
    data: Path,
    kermany: Path | None,
    networks: tuple[str, ...],
    out: Path,
    runs: Path | None,
    preset: str,
    imagenet: Path | None,
    seeds: tuple[int, ...],
    threads: int | None,
) -> None:
    """Run the paper's protocol for one of its tables, and print it beside the paper's own figures.

    \b
    table1  aggregation and input size      fig2   the paper's Fig. 2, of the first seed
    table2  against a plain CAM             rules  what the paper leaves open from CAMs to boxes
    table3  steps, knowledge preservation   siim   real X-rays, and variants beyond the paper

    All learn from image-level labels alone. Every network is trained once and kept, and so is every
    judged cell: the same command goes on where it stopped. Writes OUT/WHAT.json and OUT/WHAT.md;
    fig2, which needs the extra figures, OUT/fig2.png.
    """  # noqa: D301 - click's mark for lines to leave as they are is a backspace
    import torch

    from cxr_fast.reproduce import command, rendering

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("reproduce runs in one process; start it without torchrun")
    for flag, given in (("--network", networks), ("--kermany", kermany)):
        if given and what != "siim":
            raise ValueError(f"{flag} is for siim; leave it out of {what}")
    if imagenet is not None and (what == "siim" or not imagenet.is_file()):
        raise ValueError(f"--imagenet must be a file, and is not for siim, but is {imagenet}")
    for folder in (out, runs or out):
        require_writable(folder)
    seeds, networks = tuple(dict.fromkeys(seeds)), tuple(dict.fromkeys(networks))
    talk = console()
    torch.set_num_threads(threads or cores())
    runs = runs or out / "runs"
    with progress_bar(talk) as bar:

        def images_read(label: str) -> Callable[[int, int], None]:
            task = bar.add_task(label, total=None, note="")
            return lambda done, total: bar.update(task, completed=done, total=total)

        def reporter(run: str) -> Callable[[str], Callable[[int, int, str], None]]:
            def part(stage: str) -> Callable[[int, int, str], None]:
                task = bar.add_task(f"{run}: {stage}", total=None, note="")

                def report(done: int, total: int, note: str) -> None:
                    bar.update(task, completed=done, total=total, note=note)

                return report

            return part

        if what == "siim":
            from cxr_fast.reproduce import real_report

            names = real_report.network_names(networks)
            study = real_report.open_study(
                data, kermany or data.parent / "kermany", out, runs, threads or cores(), reporter
            )
            for folder in (out, runs):
                folder.mkdir(parents=True, exist_ok=True)
            report = real_report.reproduce_siim(study, names, seeds, talk.print)
            click.echo(real_report.markdown(report))
            return
        protocol = command.open_protocol(
            data, preset, runs / "images", threads or cores(), images_read, imagenet
        )
        if what == "fig2":
            drawn = command.reproduce_fig2(protocol, seeds[0], out, runs, reporter)
            click.echo(f"figure  {drawn}" if drawn else "no image shows any of the figure's cases")
            return
        if what == "rules":
            from cxr_fast.reproduce import rules

            compared = command.reproduce_rules(protocol, seeds, out, runs, reporter, talk.print)
            click.echo(rules.markdown(compared))
            return
        made = command.reproduce(what, protocol, seeds, out, runs, reporter, talk.print)
    printed = Console()
    for grid in rendering.grids(what, made):
        printed.print(grid)
    printed.print(rendering.legend(made, len(protocol.judged_names)), highlight=False)
    printed.print(rendering.answers(made))
    click.echo(f"figures  {out / what}.json, {out / what}.md")
