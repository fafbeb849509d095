"""`cxr-fast mine` as a whole: images/s beside the bare network's, and memory over a long run.

    python benchmarks/mining_run.py speed IMAGES MODEL [--rounds 3]
    python benchmarks/mining_run.py memory IMAGES MODEL [--images 5000]

speed: the network alone, fed from memory, in the pipeline's precision and batch size, as one stream on
all threads and as one stream a thread (the better one counts), in alternation with whole runs.
memory: resident memory at image 100 and at the last one, over links to IMAGES.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from cxr_fast.archive import pipeline
from cxr_fast.archive.findings import open_run
from cxr_fast.archive.images import ImageList, list_images
from cxr_fast.mining import Miner, load_miner


def bare_network(miner: Miner, images: int, batch: int, streams: int, threads: int) -> float:
    """Images/s of the network alone on batches that lie in memory."""
    size = miner.card.input_size
    pixels = miner.prepare(torch.rand(batch, size, size))

    def one(_: int) -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            miner.model(pixels)

    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(one, range(streams)))
        started = time.perf_counter()
        list(pool.map(one, range(images // batch)))
        return images // batch * batch / (time.perf_counter() - started)


def whole_run(
    images: ImageList, miner: Miner, batch: int, threads: int, progress: pipeline.Progress | None = None
) -> pipeline.RunReport:
    options = pipeline.RunOptions(batch_size=batch)
    with tempfile.TemporaryDirectory() as folder:
        settings = pipeline.run_settings(images, miner, "benchmark", options)
        with open_run(Path(folder) / "run", settings) as run:
            return pipeline.mine_archive(images, miner, run, options, threads, progress)


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("images")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--count", type=int, default=5000)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    miner = load_miner(arguments.model)
    images, batch = list_images(arguments.images), arguments.batch_size
    if arguments.what == "speed":
        bare, one, whole = [], [], []
        for _ in range(arguments.rounds):
            one.append(bare_network(miner, 64, batch, 1, cores))
            bare.append(bare_network(miner, 64, batch, cores, 1))
            report = whole_run(images, miner, batch, cores)
            whole.append(report.images / report.seconds)
        best = max(statistics.median(one), statistics.median(bare))
        print(f"network alone, one stream on {cores} threads   {statistics.median(one):6.2f} images/s")
        print(
            f"network alone, {cores} streams on a thread each {statistics.median(bare):6.2f} images/s"
        )
        print(
            f"cxr-fast mine, {len(images)} images            {statistics.median(whole):6.2f} images/s"
        )
        print(f"share of the better one                {statistics.median(whole) / best:6.3f}")
        print(f"time of the workers: {report.stages.seconds}")
        return
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.count):
            Path(folder, f"{i:06d}.png").symlink_to(Path(images.path(i % len(images))).resolve())
        seen: dict[int, float] = {}

        def progress(done: int, total: int, stages: pipeline.Stages) -> None:
            for mark in (104, 504, 1000, 2000, 3000, 4000, total):
                if done >= mark and mark not in seen:
                    seen[mark] = resident_mib()

        report = whole_run(list_images(folder), miner, batch, cores, progress)
        for mark, mib in seen.items():
            print(f"after {mark:6d} images  {mib:8.1f} MiB resident")
        print(f"{report.images / report.seconds:.1f} images/s")


if __name__ == "__main__":
    main()
