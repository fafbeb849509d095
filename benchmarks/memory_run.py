"""Resident memory of `cxr-fast mine` over a long run: at its beginning and at its last image.

    python benchmarks/memory_run.py IMAGES MODEL [--count 5000]

The run is over COUNT links to IMAGES, taken in turn. `cxr-fast bench --only pipeline` has its speed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from cxr_fast import _numpy_ops
from cxr_fast.archive.images import list_images
from cxr_fast.archive.stages import Stages
from cxr_fast.benchmarks.bench_pipeline import whole_run
from cxr_fast.machine import cores
from cxr_fast.mining import load_miner

MARKS = (104, 504, 1000, 2000, 3000, 4000)


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("model")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--count", type=int, default=5000)
    arguments = parser.parse_args()
    _numpy_ops.keep_freed_memory()  # as the command does
    miner = load_miner(arguments.model)
    images = list_images(arguments.images)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.count):
            Path(folder, f"{i:06d}.png").symlink_to(Path(images.path(i % len(images))).resolve())
        seen: dict[int, float] = {}

        def progress(done: int, total: int, stages: Stages) -> None:
            for mark in (*MARKS, total):
                if done >= mark and mark not in seen:
                    seen[mark] = resident_mib()

        report = whole_run(list_images(folder), miner, arguments.batch_size, cores(), progress)
    for mark, mib in seen.items():
        print(f"after {mark:6d} images  {mib:8.1f} MiB resident")
    print(f"{report.images / report.seconds:.1f} images/s")


if __name__ == "__main__":
    main()
