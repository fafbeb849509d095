"""The table and the JSON of a run."""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from racing import Outcome
from rich.console import Console
from rich.table import Table

from cxr_fast import ops


def render(outcomes: Sequence[Outcome]) -> str:
    """The table as text: a row for each case, a line in it for each peer."""
    about = machine()
    table = Table(
        title=f"{about['cpu']}, threads: {about['threads']}, {about['kernels']}, "
        f"torch {about['torch']}; medians in ms; (x) = times as long as ours",
        show_lines=True,
    )
    table.add_column("case", overflow="fold")
    for name in ("ours", "peers", "best peer / ours", "floor", "floor reached"):
        table.add_column(name, justify="right", no_wrap=name == "peers")
    for outcome in outcomes:
        ranked = sorted(outcome.peers, key=outcome.ratio)
        peers = "\n".join(
            f"{name}  {_ms(outcome.peers[name].median)} ({outcome.ratio(name):.3g}x)" for name in ranked
        )
        table.add_row(
            outcome.case + (f"\n{outcome.note}" if outcome.note else ""),
            _ms(outcome.ours.median),
            peers,
            f"{outcome.ratio(ranked[0]):.3g}",
            _ms(outcome.floor),
            f"{outcome.floor_reached:.0%}",
        )
    text = io.StringIO()
    Console(file=text, width=132).print(table)
    return text.getvalue()


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def write_results(outcomes: Sequence[Outcome], folder: Path) -> Path:
    """Writes ``folder/<machine>-<commit>.json`` and returns its path. Times are in seconds."""
    about = machine()
    cpu = re.sub(r"\((r|tm)\)|cpu|@.*|processor", "", about["cpu"].lower())
    kernels = re.search(r"\((\w+)\)", about["kernels"])
    words = f"{cpu} {about['threads']} threads {kernels[1] if kernels else 'reference'}"
    slug = re.sub(r"[^a-z0-9]+", "-", words).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug}-{about['commit']}.json"
    cases = {outcome.case: dataclasses.asdict(outcome) for outcome in outcomes}
    path.write_text(json.dumps({"machine": about, "cases": cases}, indent=1) + "\n")
    return path


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "kernels": ops.CPU_KERNELS,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Results of earlier runs do not change what was measured.
        changed = git("status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
