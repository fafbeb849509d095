"""The command ``bench``: races the operators on this machine, and compares two results.

The races themselves are ``cxr_fast.benchmarks`` (the folder ``benchmarks`` of the source), which pytest
runs; this is the way in. Comparing needs neither torch nor pytest.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from rich.table import Table

# What the benchmarks cannot run without; the peers are optional.
_NEEDED = ("torch", "pytest", "pytest_benchmark")


def run_benchmarks(
    device: str = "auto",
    only: str | None = None,
    seconds: float = 2.0,
    out: Path | None = None,
    quick: bool = False,
) -> int:
    """Race what ``only`` selects (all of it by default); the exit status, 0 if all peers agree.

    ``only`` is an expression of pytest's ``-k``, such as ``"cam or label_components"``; ``seconds`` is
    the time for each case. ``out``: a folder that gets the results as JSON and the table as text.
    ``quick``: tiny cases, to see that everything runs and agrees here.

    RuntimeError where pytest is missing, ValueError for a device that is not there or if ``only``
    selects nothing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"the benchmarks need {', '.join(missing)}, which is not installed; install it with: "
            "pip install 'cxr_fast[bench]'"
        )
    import pytest

    from cxr_fast.mining import resolve_device

    resolve_device(device)  # a wrong name is refused here, in a sentence
    folder = _benchmarks()
    arguments = [str(folder), "-c", str(folder / "pytest.ini"), "--rootdir", str(folder),
                 "-p", "no:cacheprovider", "--device", device, "--seconds", str(seconds)]  # fmt: skip
    arguments += ["-k", only] if only else []
    arguments += ["--out", str(out.resolve())] if out else []
    arguments += ["--quick"] if quick else []
    status = pytest.main(arguments)
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise ValueError(f"no benchmark matches {only!r}; the operators' names are a good choice")
    return int(status)


def _benchmarks() -> Path:
    spec = importlib.util.find_spec("cxr_fast.benchmarks")
    if spec is None or spec.origin is None:
        raise RuntimeError("cxr_fast was installed without its benchmarks; install the wheel again")
    return Path(spec.origin).parent


def compare(old: str | Path, new: str | Path) -> Table:
    """Two JSON files of results, case by case: a row for each case that both hold.

    ``old / new`` of our medians is above 1 where it is faster now. The same of the floor stands
    beside it: where that is far from 1, the machine changed and not only the code. Cases of one file
    alone are named below the table.

    FileNotFoundError, or ValueError for a file that ``cxr-fast bench`` did not write.
    """
    before, after = _read(old), _read(new)
    table = Table(title=f"{_source(before)} -> {_source(after)}")
    table.add_column("case", overflow="fold")
    for name in ("old", "new", "old / new", "floor old / new"):
        table.add_column(name, justify="right")
    for case in (name for name in before["cases"] if name in after["cases"]):
        sides = before["cases"][case], after["cases"][case]
        floors = [side["floor"] for side in sides]
        ratio = f"{floors[0] / floors[1]:.2f}" if all(floors) else ""
        table.add_row(case, *_times([side["ours"] for side in sides]), ratio)
        replays = [side.get("graphs", {}).get("ours") for side in sides]
        if all(replays):
            table.add_row("  in a graph", *_times(replays), "")
    alone = sorted(before["cases"].keys() ^ after["cases"].keys())
    if alone:
        table.caption = "in one file only: " + ", ".join(alone)
    return table


def duration(seconds: float) -> str:
    """Three digits and a unit: ``12.3 us``, ``4.56 ms``, ``7.89 s``."""
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def _times(timings: list[dict[str, float]]) -> list[str]:
    old, new = (timing["median"] for timing in timings)
    return [duration(old), duration(new), f"{old / new:.2f}"]


def _read(path: str | Path) -> dict[str, Any]:
    try:
        results = json.loads(Path(path).read_text())
        _source(results)
        for case in results["cases"].values():
            case["ours"]["median"], case["floor"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no results of cxr-fast bench; give the .json that --out wrote"
        ) from error
    return dict(results)


def _source(results: dict[str, Any]) -> str:
    machine = results["machine"]
    where = machine.get("gpu") or f"{machine['kernels']}, {machine['threads']} threads"
    return f"{machine['commit']} ({where})"
