"""``cxr-fast mine`` from end to end beside the bare network on pictures that lie in memory.

Nothing here computes the same: ours is a whole run over an archive of phantoms (read, decode, resize,
network, operators, Parquet), the yardsticks are the network alone on as many images, in the run's
precision and batch size, as one stream on all threads and (on a CPU) as one stream a thread. Of the two
the faster one counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cxr_fast.archive import pipeline
from cxr_fast.archive.batches import RunOptions
from cxr_fast.archive.findings import open_run
from cxr_fast.archive.images import ImageList, list_images
from cxr_fast.archive.run import Progress, RunReport, mine_archive, run_settings
from cxr_fast.benchmarks.place import Place
from cxr_fast.benchmarks.racing import Case, Yardstick
from cxr_fast.config import BOXED_FINDINGS
from cxr_fast.machine import cores
from cxr_fast.mining import Miner, load_miner
from cxr_fast.models import Architecture, ModelCard, build, save_checkpoint
from cxr_fast.phantom import PhantomSettings, write_archive

MODELS = {"demo": "the bundled model", "resnet50": "ResNet-50 MSA 512x512"}


def pipeline_cases(place: Place) -> list[str]:
    return ["demo"] if place.quick else list(MODELS)


@pytest.fixture(scope="module")
def images(place: Place, tmp_path_factory: pytest.TempPathFactory) -> ImageList:
    folder = tmp_path_factory.mktemp("phantoms") / "archive"
    count, size = (4, 128) if place.quick else (512 if place.cuda else 24, 1024)
    write_archive(folder, PhantomSettings(images=count, size=size), workers=cores())
    return list_images(folder / "images")


@pytest.fixture
def miner(case: str, place: Place, tmp_path: Path) -> Miner:
    model = case
    if case != "demo":
        torch.manual_seed(0)
        card = ModelCard(Architecture("resnet50", "bilinear", in_channels=1), BOXED_FINDINGS, 512)
        model = str(tmp_path / "random.safetensors")
        save_checkpoint(Path(model), build(card), card)
    return load_miner(model, device=str(place.device))


def test_pipeline(
    case: str, race: Callable[[Case], None], place: Place, images: ImageList, miner: Miner
) -> None:
    batch = 2 if place.quick else 64 if place.cuda else 8
    run = partial(whole_run, images, miner, batch, cores())
    pixels = miner.prepare(torch.rand(batch, miner.card.input_size, miner.card.input_size))
    streams = {1} if place.cuda else {1, cores()}
    sticks = [
        Yardstick(
            f"the network alone, {count} stream{'s' if count > 1 else ''}",
            partial(bare_network, miner, pixels, len(images), count, cores() // count),
        )
        for count in sorted(streams)
    ]
    name = f"pipeline {MODELS[case]}, {len(images)} phantoms, batches of {batch}"
    race(Case(name, (), run, yardsticks=sticks, wall=True, images=len(images)))


def bare_network(miner: Miner, pixels: Tensor, images: int, streams: int, threads: int) -> None:
    """The network on so many images, rounded up to whole batches, the same batch every time."""
    before = torch.get_num_threads()

    def one(_: int) -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            miner.model(pixels)

    try:
        with ThreadPoolExecutor(streams) as pool:
            list(pool.map(one, range(-(-images // len(pixels)))))
    finally:
        torch.set_num_threads(before)


def whole_run(
    images: ImageList,
    miner: Miner,
    batch: int,
    threads: int,
    progress: Progress | None = None,
) -> RunReport:
    """Into a folder that is deleted again."""
    options = RunOptions(batch_size=batch)
    with tempfile.TemporaryDirectory() as folder:
        settings = run_settings(images, miner.network, "benchmark", options)
        with open_run(Path(folder) / "run", settings) as run:
            report = mine_archive(
                images, pipeline.LocalEngine((miner,), threads), run, options, progress
            )
    assert report.images == len(images)
    assert report.unreadable == 0
    return report
