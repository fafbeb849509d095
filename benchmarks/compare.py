"""``python benchmarks/compare.py OLD NEW``: two JSON files of results, case by case.

The ratio is old / new of our medians: above 1 is faster now. The floor's ratio stands beside it:
where it is far from 1, the machine changed and not only the code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def compare(old: dict[str, Any], new: dict[str, Any]) -> Table:
    """A row for each case that both files hold."""
    table = Table(title=f"{_source(old)} -> {_source(new)}")
    table.add_column("case", overflow="fold")
    for name in ("old ms", "new ms", "old / new", "floor old / new"):
        table.add_column(name, justify="right")
    for case in (name for name in old["cases"] if name in new["cases"]):
        before, after = old["cases"][case], new["cases"][case]
        times = before["ours"]["median"], after["ours"]["median"]
        table.add_row(
            case,
            *(f"{seconds * 1e3:.3g}" for seconds in times),
            f"{times[0] / times[1]:.2f}",
            f"{before['floor'] / after['floor']:.2f}",
        )
    alone = sorted(old["cases"].keys() ^ new["cases"].keys())
    if alone:
        table.caption = "in one file only: " + ", ".join(alone)
    return table


def _source(results: dict[str, Any]) -> str:
    machine = results["machine"]
    return f"{machine['commit']} ({machine['kernels']}, {machine['threads']} threads)"


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python benchmarks/compare.py OLD.json NEW.json", file=sys.stderr)
        return 2
    old, new = (json.loads(Path(argument).read_text()) for argument in arguments)
    Console().print(compare(old, new))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
