"""Shards worked on by a Ray cluster, through Ray Data: needs the extra ``ray``.

An item is a shard: the part of the image list that it is, and which classes to mine. Actors, one a GPU
(or one a share of processors), each hold the model and do with a shard what ``LocalEngine`` does here.
Ray starts as many as the cluster has room for, asks its autoscaler for more, holds back when results
wait, and does again what a lost node had in hand. Rows come back to this process, which writes them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import pyarrow as pa
import ray
import ray.data
from ray import ObjectRef

from cxr_fast import __version__, _numpy_ops
from cxr_fast.archive.batches import RunOptions, positions_of
from cxr_fast.archive.images import ImageList, UnreadableImage, read_picture
from cxr_fast.archive.pipeline import NOT_FINITE, LocalEngine
from cxr_fast.archive.shard_rows import ShardRows
from cxr_fast.archive.stages import Stages
from cxr_fast.files import differences
from cxr_fast.mining import Miner, Precision, load_miner
from cxr_fast.model_files import model_path
from cxr_fast.rows import Network

# A lost network or a full disk on one node is tried again elsewhere; so many shards in succession
# are no node's bad day.
_ATTEMPTS = 3
_MOST_FAILURES = 8
# Seconds for a cluster to start a node, or to have one free.
_PATIENCE = 1800.0

Device = Literal["auto", "cpu", "cuda"]


class _Plan(NamedTuple):
    """What a worker needs besides shards."""

    model: bytes
    network: Network
    threads: int
    version: str


class _Task(NamedTuple):
    """One shard: its images, and RunOptions.classes_of of these alone."""

    images: ImageList
    options: RunOptions


class _Done(NamedTuple):
    """What came of a shard: rows, or what went wrong; who did it, and what the time went to."""

    worker: str
    rows: ShardRows | None
    failure: Exception | None
    seconds: dict[Any, float]


@dataclass(frozen=True)
class RayEngine:
    """A Ray cluster that this process is connected to. Made by ``ray_engine``."""

    network: Network
    model: bytes
    threads: int

    @property
    def where(self) -> str:
        """See ``Engine``."""
        nodes = len(_nodes())
        device = "a GPU and " if self._gpus else ""
        return f"Ray ({nodes} nodes now; a worker has {device}{self.threads} processors)"

    def stages(self) -> Stages:
        """See ``Engine``."""
        return Stages(self.threads, self._gpus)

    @property
    def _gpus(self) -> int:
        return int(self.network.device == "cuda")

    def mine(
        self,
        images: ImageList,
        options: RunOptions,
        shards: Sequence[int],
        stages: Stages,
        count: Callable[[int], None],
    ) -> Generator[tuple[int, ShardRows], None, None]:
        """See ``Engine``; in the order in which they are done.

        Raises what a worker raised: at once where it could not begin, for an OSError only after the
        shard was tried again behind the others, or many in succession were tried in vain.
        """
        left = list(shards)
        attempts: Counter[int] = Counter()
        in_succession = 0
        while left:
            failed: list[int] = []
            for shard, done in self._results(images, options, left):
                stages.merge(done.worker, done.seconds)
                positions = positions_of(shard, images, options)
                failure = done.failure or _blind(images, positions, options, done)
                if failure is None:
                    assert done.rows is not None
                    in_succession = 0
                    count(len(positions))
                    yield shard, done.rows
                    continue
                failed.append(shard)
                attempts[shard] += 1
                in_succession += 1
                tried_enough = attempts[shard] == _ATTEMPTS or in_succession == _MOST_FAILURES
                if tried_enough or not isinstance(failure, OSError):
                    raise failure
            left = failed

    def _results(
        self, images: ImageList, options: RunOptions, shards: Sequence[int]
    ) -> Iterator[tuple[int, _Done]]:
        plan = _Plan(self.model, self.network, self.threads, __version__)
        tasks: list[Any] = [_put_task(images, options, shard) for shard in shards]
        pool = ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=len(tasks),
            # With a GPU, the next shard is read while the last batches of this one are mined.
            max_concurrent_calls_per_actor=1 + self._gpus,
            enable_true_multi_threading=bool(self._gpus),
        )
        done = ray.data.from_arrow_refs(tasks).map_batches(
            _Worker,
            batch_size=None,
            batch_format="pyarrow",
            compute=pool,
            fn_constructor_args=(plan,),  # Ray Data puts it into its object store, once
            num_cpus=self.threads,
            num_gpus=self._gpus,
        )
        done.context.enable_progress_bars = False
        tables = done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for table in cast(Iterator[pa.Table], tables):
            for row in table.to_pylist():
                yield row["shard"], pickle.loads(row["done"])


class _Worker:
    """An actor: the model on one device, and a shard at a time."""

    def __init__(self, plan: _Plan) -> None:
        _numpy_ops.keep_freed_memory()  # see the command mine
        # Ray would start an actor that cannot begin again and again, and print its trace each time.
        self._failure: Exception | None = None
        try:
            self._begin(plan)
        except (OSError, ValueError, RuntimeError) as error:
            self._failure = error

    def _begin(self, plan: _Plan) -> None:
        miner = _miner(plan.model, cast(Precision, plan.network.precision), plan.network.device)
        here, there = (
            {"cxr_fast": version, "precision": network.precision, **network.libraries}
            for version, network in (
                (__version__, miner.network),
                (plan.version, plan.network),
            )
        )
        if here != there:
            raise ValueError(
                f"the node {_node()} would give other rows than the node that was asked first "
                f"({'; '.join(differences(there, here))}); install the same on every node, and take "
                "nodes of one kind"
            )
        self._engine = LocalEngine([miner], plan.threads)

    def __call__(self, tasks: pa.Table) -> pa.Table:
        done = [pickle.dumps(self._mine(pickle.loads(task))) for task in tasks["task"].to_pylist()]
        return pa.table({"shard": tasks["shard"], "done": pa.array(done, pa.large_binary())})

    def _mine(self, task: _Task) -> _Done:
        worker = f"{_node()}, process {os.getpid()}"
        if self._failure is not None:
            return _Done(worker, None, self._failure, {})
        stages = self._engine.stages()
        try:
            ((_, rows),) = self._engine.mine(task.images, task.options, [0], stages)
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            return _Done(worker, None, error, stages.seconds)
        return _Done(worker, rows, None, stages.seconds)


@contextmanager
def ray_engine(
    model: str | Path,
    precision: Precision = "auto",
    device: Device = "auto",
    threads: int | None = None,
) -> Iterator[RayEngine]:
    """Connect to the cluster of RAY_ADDRESS, or else begin one on this machine.

    ``device`` ``auto`` is the GPUs where the cluster has any; each worker takes one and ``threads``
    processors. ``threads`` defaults to a GPU's share of its node, or without GPUs to a whole node, as
    the smallest node has it. ``auto`` precision is decided by the first node that is free.

    Raises ValueError where no cluster answers, or it has not what was asked for.
    """
    begun_here = not ray.is_initialized()
    if begun_here:
        _connect()
    # Ray prints what happens to nodes and workers, but where the report is to be.
    with contextlib.ExitStack() as up:
        up.enter_context(contextlib.redirect_stdout(sys.stderr))
        if begun_here:
            up.callback(ray.shutdown)
        if device == "auto":
            device = "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
        gpus = int(device == "cuda")
        threads = threads or _share(gpus)
        content = model_path(model).read_bytes()
        ask = ray.remote(num_cpus=threads, num_gpus=gpus)(_network)
        try:
            network = ray.get(ask.remote(content, precision, device), timeout=_patience(threads, gpus))
        except ray.exceptions.GetTimeoutError as error:
            raise ValueError(
                f"the Ray cluster has no node with {threads} processors free"
                + (" and a GPU" if gpus else "")
                + ", which is what a worker takes; see --threads and --device"
            ) from error
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        yield RayEngine(network, content, threads)


def _connect() -> None:
    # The archive's owner decides what leaves the machine.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray Data's actors are made in a way that Ray's core warns of.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Not Ray's own default, which takes whatever cluster was last begun here, even one that is gone.
    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        host, _, port = address.rpartition(":")
        if port.isdigit() and "/" not in host:
            # Ray would try for a quarter of an hour.
            socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no Ray cluster answers at {address} ({error}); start one (`ray start --head`), for one "
            "that asks for tokens set RAY_AUTH_MODE=token, or unset RAY_ADDRESS to use this machine "
            "alone"
        ) from error


def _patience(threads: int, gpus: int) -> float:
    """Seconds to wait for the first worker: nodes of a cluster may be busy, or still to be started."""
    nodes = _nodes()
    fits = any(node.get("CPU", 0) >= threads and node.get("GPU", 0) >= gpus for node in nodes)
    if not fits and len(nodes) > 1:
        logging.getLogger(__name__).warning(
            "no node of the Ray cluster has %d processors%s; waiting up to %d minutes for one that has",
            threads,
            " and a GPU" if gpus else "",
            _PATIENCE // 60,
        )
    return _PATIENCE if fits or len(nodes) > 1 else 0.0


def _nodes() -> list[dict[str, float]]:
    """What each node of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _share(gpus: int) -> int:
    """How many processors of the smallest node go to a worker, one worker a GPU or a node."""
    nodes = _nodes()
    if gpus:
        shares = [int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
    else:
        shares = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not shares or min(shares) < 1:
        raise ValueError(
            "the Ray cluster has no node yet with processors"
            + (" for each of its GPUs" if gpus else "")
            + "; say how many a worker takes with --threads"
        )
    return min(shares)


def _network(model: bytes, precision: Precision, device: str) -> Network:
    return _miner(model, precision, device).network


def _miner(model: bytes, precision: Precision, device: str) -> Miner:
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(model)
        file.flush()
        return load_miner(file.name, precision=precision, device=device)


def _put_task(images: ImageList, options: RunOptions, shard: int) -> ObjectRef[pa.Table]:
    positions = positions_of(shard, images, options)
    part = images.part(positions.start, positions.stop)
    if options.classes_of is not None:
        known = {
            name: options.classes_of[name] for name in part.image_ids if name in options.classes_of
        }
        options = replace(options, classes_of=known)
    task = pickle.dumps(_Task(part, options))
    return ray.put(pa.table({"shard": [shard], "task": pa.array([task], pa.large_binary())}))


def _blind(images: ImageList, positions: range, options: RunOptions, done: _Done) -> OSError | None:
    """What to say where a node could not read an image that this machine reads, or otherwise not.

    A folder that is not mounted there would otherwise make errors, for good, of good images.
    """
    assert done.rows is not None
    errors = {name: reason for name, reason in done.rows.errors if reason != NOT_FINITE}
    for position in positions if errors else ():
        image_id = images.image_ids[position]
        if image_id not in errors:
            continue
        try:
            read_picture(images.read(position), keep_tags=options.keep_tags)
            here = "can"
        except UnreadableImage as error:
            if error.reason == errors[image_id]:
                continue
            here = f"says: {error.reason}"
        return OSError(
            f"the node {done.worker} could not read {image_id} ({errors[image_id]}), but this machine "
            f"{here}; every node needs the files of {images.root} under the same path"
        )
    return None


def _node() -> str:
    return str(ray.util.get_node_ip_address())
