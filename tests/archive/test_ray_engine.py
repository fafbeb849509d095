"""Shards worked on by a Ray cluster of several nodes, all of them processes of this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from elsewhere import elsewhere
from runs import contents, write_noisy_archive

from cxr_fast.archive.batches import RunOptions
from cxr_fast.archive.findings import open_run
from cxr_fast.archive.images import ImageList, UnreadableImage, list_images
from cxr_fast.archive.pipeline import LocalEngine
from cxr_fast.archive.run import Engine, RunReport, mine_archive, run_settings
from cxr_fast.mining import load_miners

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from cxr_fast.archive import ray_engine as engines  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
COUNT, SHARD = 120, 8
CLASSES = {f"{i:04d}.png": (i % 3,) if i % 4 else () for i in range(COUNT)}
OPTIONS = RunOptions(batch_size=4, shard_size=SHARD, classes_of=CLASSES, heatmaps=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_noisy_archive(folder, COUNT, every=25)
    return folder


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head that works on nothing, as clusters have it, and two nodes of one processor."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    few = {"object_store_memory": 10**8, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **few})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=10**8)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
    finally:
        cluster.shutdown()


def mine(images: ImageList, engine: Engine, out: Path, **rest: Any) -> RunReport:
    with open_run(out, run_settings(images, engine.network, "model", OPTIONS)) as run:
        return mine_archive(images, engine, run, OPTIONS, **rest)


@pytest.fixture(scope="module")
def local(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "run"
    engine = LocalEngine(load_miners(archive / "model.safetensors", None, "float32", [CPU]), 2)
    mine(list_images(archive / "images"), engine, out)
    return out


CPU = torch.device("cpu")


def test_the_cluster_writes_the_bytes_that_this_machine_writes(
    archive: Path, local: Path, cluster: Cluster, tmp_path: Path
) -> None:
    images = list_images(archive / "images")
    model = archive / "model.safetensors"
    seen: list[int] = []
    stop = threading.Event()

    def watch(done: int, total: int, stages: object) -> None:
        seen.append(done)
        if done > COUNT // 3:
            stop.set()

    with engines.ray_engine(model, "float32") as engine:
        assert (engine.threads, engine.network.device) == (1, "cpu")
        first = mine(images, engine, tmp_path / "run", progress=watch, stop=stop)
        assert first.stopped
        second = mine(images, engine, tmp_path / "run")
        assert not second.stopped
    assert first.images + second.images == COUNT
    assert seen == sorted(seen)
    assert contents(tmp_path / "run") == contents(local)
    assert first.stages.profile()["stages"]["network"]["seconds"] > 0


@pytest.mark.slow
def test_what_goes_wrong_on_a_node_is_tried_again_or_said(
    archive: Path, local: Path, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = archive / "images"
    with engines.ray_engine(archive / "model.safetensors", "float32") as engine:
        # A lost network on one node is no reason to end: its shard is tried again.
        flaky = elsewhere(
            archive / "images", tmp_path / "note", OSError(5, "the network is gone"), once=True
        )
        mine(flaky, engine, tmp_path / "flaky")
        # A folder that is not mounted there is no fault of the images.
        for every in (1, SHARD):
            gone = UnreadableImage("does not exist")
            blind = elsewhere(files, tmp_path / "other", gone, every=every)
            with pytest.raises(OSError, match=r"could not read 0.*not exist.* every node needs"):
                mine(blind, engine, tmp_path / f"blind {every}")
            assert not os.listdir(tmp_path / f"blind {every}" / "findings")
        away = elsewhere(files, tmp_path / "away", OSError(5, "the network is gone"))
        with pytest.raises(OSError, match="the network is gone"):
            mine(away, engine, tmp_path / "away")
        with monkeypatch.context() as patched:
            patched.setattr(engines, "__version__", "0.0.1")
            with pytest.raises(ValueError, match=r"would give other rows .*cxr_fast: .0\.0\.1. -> "):
                mine(list_images(files), engine, tmp_path / "version")
    assert (tmp_path / "note").exists(), "nothing went wrong"
    assert contents(tmp_path / "flaky") == contents(local)


@pytest.mark.slow
def test_a_node_that_is_killed_costs_time_and_no_row(
    archive: Path, local: Path, cluster: Cluster, tmp_path: Path
) -> None:
    workers = list(cluster.worker_nodes)
    killed: list[int] = []

    def kill(done: int, total: int, stages: object) -> None:
        if done >= 3 * SHARD and not killed:
            killed.append(done)
            cluster.remove_node(workers[0], allow_graceful=False)

    with engines.ray_engine(archive / "model.safetensors", "float32") as engine:
        report = mine(list_images(archive / "images"), engine, tmp_path / "run", progress=kill)
    assert killed
    assert killed[0] < COUNT - 2 * SHARD
    assert report.images == COUNT
    assert contents(tmp_path / "run") == contents(local)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:9", r"no Ray cluster answers at 127.0.0.1:9 .*refused"),
        ("[::1]:9", r"no Ray cluster answers at \[::1\]:9 "),
        ("somewhere", r"no Ray cluster answers at somewhere .*Invalid address"),
    ],
)
def test_a_cluster_that_is_not_there_is_said_at_once(
    archive: Path, monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=said), engines.ray_engine(archive / "model.safetensors"):
        pass


def test_shares_of_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    def nodes(*resources: dict[str, float]) -> Sequence[dict[str, Any]]:
        return [{"Alive": True, "Resources": one} for one in resources]

    head: dict[str, float] = {"memory": 1e9}
    both = nodes(head, {"CPU": 17, "GPU": 4}, {"CPU": 6, "GPU": 1}, {"CPU": 2})
    monkeypatch.setattr(ray, "nodes", lambda: both)
    assert engines._share(gpus=1) == 4
    assert engines._share(gpus=0) == 2
    monkeypatch.setattr(ray, "nodes", lambda: nodes(head))
    with pytest.raises(ValueError, match=r"no node yet with processors; say .* --threads"):
        engines._share(gpus=0)
    with pytest.raises(ValueError, match=r"for each of its GPUs"):
        engines._share(gpus=1)
