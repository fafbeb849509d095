"""The table and the JSON of a run."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from cxr_fast import ops
from cxr_fast.bench import duration
from cxr_fast.benchmarks.place import MISSING, Place
from cxr_fast.benchmarks.racing import Outcome, Timing

# Distributions whose versions the numbers depend on.
PEER_PACKAGES = (
    "numpy", "opencv-python-headless", "connected-components-3d", "scipy", "scikit-image", "triton",
    "pillow", "isal", "imagecodecs", "cupy-cuda13x", "cupy-cuda12x", "kornia", "onnx",
    "onnxruntime", "onnxruntime-openvino", "torchcam", "grad-cam",
)  # fmt: skip


COLUMNS = (
    "case, and below it what it races", "time", "in a graph", "time / ours", "both in a graph",
    "floor", "roofline", "images/s", "peak MiB",
)  # fmt: skip
Row = dict[str, str]


def render(outcomes: Sequence[Outcome], place: Place) -> str:
    """The table as text: a row for each case, below it one for each peer, the fastest first."""
    rows = [list(_rows(outcome)) for outcome in outcomes]
    used = [name for name in COLUMNS if any(name in row for group in rows for row in group)]
    table = Table(title=_title(machine(place), place))
    for name in used:
        first = name == COLUMNS[0]
        table.add_column(name, justify="left" if first else "right", no_wrap=first)
    for group in rows:
        for row in group:
            table.add_row(*(row.get(name, "") for name in used), end_section=row is group[-1])
    text = io.StringIO()
    Console(file=text, width=160).print(table)
    if MISSING:
        text.write(
            f"peers that are not installed and were left out: {', '.join(sorted(MISSING))}"
            " (pip install 'cxr_fast[bench]' brings those that run on a CPU)\n"
        )
    return text.getvalue()


def _rows(outcome: Outcome) -> Iterator[Row]:
    case, _, _, ratio, graph_ratio, floor, roofline, *_ = COLUMNS
    ours, graphs = outcome.ours, outcome.graphs
    row = {case: outcome.case, **_measured(outcome, "ours", ours)}
    if outcome.floor is not None and outcome.floor_reached is not None:
        row |= {floor: duration(outcome.floor), roofline: f"{outcome.floor_reached:.0%}"}
    yield row
    for name in sorted(outcome.peers, key=outcome.ratio):
        row = {case: f"  {name}", **_measured(outcome, name, outcome.peers[name])}
        row[ratio] = f"{outcome.ratio(name):.3g} x"
        if "ours" in graphs and name in graphs:
            row[graph_ratio] = f"{graphs[name].median / graphs['ours'].median:.3g} x"
        yield row
    for name, timing in outcome.yardsticks.items():
        row = {case: f"  beside {name}", **_measured(outcome, name, timing)}
        yield row | {ratio: f"ours = {ours.median / timing.median:.3g} x"}
    if outcome.note:
        yield {case: f"  ({outcome.note})"}


def _measured(outcome: Outcome, name: str, timing: Timing) -> Row:
    _, time, in_a_graph, *_, rate, peak = COLUMNS
    row = {time: duration(timing.median)}
    if name in outcome.graphs:
        row[in_a_graph] = duration(outcome.graphs[name].median)
    if outcome.images:
        row[rate] = f"{outcome.images / timing.median:.3g}"
    if name in outcome.peak_bytes:
        row[peak] = f"{outcome.peak_bytes[name] / 2**20:.0f}"
    return row


def _title(about: dict[str, Any], place: Place) -> str:
    where = (
        f"{about['gpu']}, kernels: {_grouped(about['cuda_kernels'])}"
        if place.cuda
        else f"{about['cpu']}, threads: {about['threads']}, {about['kernels']}"
    )
    quick = "QUICK: tiny cases, a look at whether all of it runs; these are no measurements\n"
    return f"{quick if place.quick else ''}{where}, torch {about['torch']}; medians"


def _grouped(kernels: dict[str, str]) -> str:
    return ", ".join(sorted(set(kernels.values()))) or "reference"


def write_results(outcomes: Sequence[Outcome], place: Place, folder: Path) -> Path:
    """Writes ``folder/<machine>-<commit>.json``, the table beside it as ``.txt``; seconds, bytes."""
    about = machine(place)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_slug(about, place)}-{about['commit']}{'-quick' if place.quick else ''}.json"
    cases = {outcome.case: dataclasses.asdict(outcome) for outcome in outcomes}
    path.write_text(json.dumps({"machine": about, "cases": cases}, indent=1) + "\n")
    path.with_suffix(".txt").write_text(render(outcomes, place))
    return path


def _slug(about: dict[str, Any], place: Place) -> str:
    if place.cuda:
        words = about["gpu"].lower()
    else:
        cpu = re.sub(r"\((r|tm)\)|cpu|@.*|processor", "", about["cpu"].lower())
        kernels = re.search(r"\((\w+)\)", about["kernels"])
        words = f"{cpu} {about['threads']} threads {kernels[1] if kernels else 'reference'}"
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def machine(place: Place) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "kernels": ops.CPU_KERNELS,
        **(_gpu(place.device) if place.cuda else {}),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "peers": dict(filter(None, map(_version, PEER_PACKAGES))),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "cuda": torch.version.cuda,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "cuda_kernels": ops.CUDA_KERNELS,
    }


def _version(name: str) -> tuple[str, str] | None:
    try:
        return name, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """CXR_FAST_COMMIT, or of the working tree that this file lies in, or the package's version."""
    if named := os.environ.get("CXR_FAST_COMMIT"):
        return named

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != Path(__file__).resolve().parents[1]:
            raise OSError("an environment inside somebody else's working tree")
        # Results of earlier runs do not change what was measured.
        changed = git("status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return importlib.metadata.version("cxr_fast")
