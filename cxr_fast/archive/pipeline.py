"""Mining a whole source of images into a run folder.

Images keep their order and are cut into shards, shards into batches; a batch never crosses a shard
and the last one is padded, so that every row depends on the images, the model and the settings alone.

On a processor each worker thread carries a batch from file to findings, with one thread for the
network: no barriers, no waiting, and rows that do not depend on how many cores there are. On a GPU
the workers only read, a few batches ahead, and the main thread feeds the device.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from cxr_fast import __version__
from cxr_fast.archive.findings import RunFolder
from cxr_fast.archive.images import ImageList, UnreadableImage, read_image, to_input
from cxr_fast.mining import Findings, Maps, Mined, Miner, findings_of, maps_of

# Called after every batch: images done in this run, images to do in all, and what the time went to.
Progress = Callable[[int, int, "Stages"], None]


class Batch(NamedTuple):
    """Positions [first, last) of the image list, all of one shard."""

    shard: int
    first: int
    last: int


class Readings(NamedTuple):
    """A batch as the network takes it: images float32 [B, S, S] (padding is 0), sizes [B, 2]."""

    images: torch.Tensor
    sizes: torch.Tensor
    readable: tuple[int, ...]  # positions in the image list, in order
    errors: tuple[tuple[str, str], ...]


class Outcome(NamedTuple):
    """What is kept of a batch until its shard is written: rows, whose images, what failed."""

    findings: Findings
    maps: Maps
    readable: tuple[int, ...]
    errors: tuple[tuple[str, str], ...]


@dataclass
class Stages:
    """Seconds that workers spent on each stage, summed over threads."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("read", "network"), 0.0))
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, stage: str, seconds: float) -> None:
        """Thread-safe."""
        with self._lock:
            self.seconds[stage] += seconds

    def limit(self) -> str:
        """The stage that most time goes to, with its share."""
        total = sum(self.seconds.values())
        if total == 0:
            return "starting"
        stage = max(self.seconds, key=lambda name: self.seconds[name])
        label = {"read": "reading images", "network": "the network"}[stage]
        return f"{label} ({self.seconds[stage] / total:.0%} of the time)"


class RunReport(NamedTuple):
    """What a run did: images of this run, of the archive, unreadable ones, boxes, seconds."""

    images: int
    total: int
    unreadable: int
    boxes: int
    seconds: float
    stages: Stages


@dataclass(frozen=True)
class RunOptions:
    """What decides a run's rows besides the images and the model."""

    batch_size: int = 8
    shard_size: int = 1024
    min_probability: float = 0.0
    # Class indices of each image_id, or None for all classes of all images.
    classes_of: Mapping[str, Sequence[int]] | None = None
    # Whether the heatmaps themselves are kept beside their peaks.
    heatmaps: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.shard_size < 1:
            raise ValueError(
                f"batch_size and shard_size must be at least 1, but are {self.batch_size} and "
                f"{self.shard_size}"
            )
        if not 0.0 <= self.min_probability <= 1.0:
            raise ValueError(f"min_probability must be from 0 to 1, but is {self.min_probability}")


def run_settings(
    images: ImageList, miner: Miner, model_digest: str, options: RunOptions
) -> dict[str, Any]:
    """What run.json records: two runs with equal settings, on one kind of machine, have equal rows.

    Images are told by id and size in bytes: the same names with other pictures are another archive.
    """
    digest = hashlib.sha256()
    for index, image_id in enumerate(images.image_ids):
        digest.update(f"{image_id}\0{images.size(index)}\0".encode())
    classes = "all"
    if options.classes_of is not None:
        chosen = sorted((name, sorted(c)) for name, c in options.classes_of.items())
        classes = "labels " + hashlib.sha256(repr(chosen).encode()).hexdigest()
    return {
        "images": {"count": len(images), "sha256_of_ids_and_sizes": digest.hexdigest()},
        "model": {"sha256": model_digest, "class_names": list(miner.card.class_names)},
        "mining": asdict(miner.settings),
        "precision": str(miner.dtype).removeprefix("torch."),
        "device": miner.device.type,
        "batch_size": options.batch_size,
        "shard_size": options.shard_size,
        "classes": classes,
        "min_probability": options.min_probability,
        "heatmaps": options.heatmaps,
        "cxr_fast": __version__,
        "torch": torch.__version__,
    }


def mine_archive(
    images: ImageList,
    miner: Miner,
    run: RunFolder,
    options: RunOptions,
    threads: int,
    progress: Progress | None = None,
    inspect: Callable[[Readings, Mined], None] | None = None,
) -> RunReport:
    """Mine every shard that ``run`` lacks and finish it.

    ``inspect`` sees every batch after its findings, in any order of batches (it draws overlays).
    Raises OSError if the folder takes no more; what was committed stays, and the same call goes on.
    """
    started = time.perf_counter()
    run.write_images(images.image_ids)
    shards = -(-len(images) // options.shard_size)
    todo = sorted(set(range(shards)) - run.finished_shards())
    total = sum(_shard_end(s, images, options) - s * options.shard_size for s in todo)
    stages = Stages()
    inline = miner.device.type == "cpu"

    def read(batch: Batch) -> Readings:
        with _Timed(stages, "read"):
            return read_batch(images, batch, miner.card.input_size, options.batch_size)

    def mine(readings: Readings) -> Outcome:
        with _Timed(stages, "network"):
            mined = miner.mine(readings.images, readings.sizes)
            mined, broken = _without_broken(mined, readings, images)
            wanted = None
            if options.classes_of is not None:
                names = (images.image_ids[position] for position in readings.readable)
                wanted = [options.classes_of.get(name, ()) for name in names]
            count = len(readings.readable)
            findings = findings_of(mined, wanted, options.min_probability, images=count)
            maps = maps_of(mined, readings.sizes, wanted, count, options.heatmaps)
        if inspect:
            inspect(readings, mined)
        return Outcome(findings, maps, readings.readable, readings.errors + broken)

    def work(batch: Batch) -> Outcome | Readings:
        return mine(read(batch)) if inline else read(batch)

    done = boxes = 0
    waiting: list[Outcome] = []
    batches = (b for shard in todo for b in _batches(shard, images, options))
    threads_before = torch.get_num_threads()
    try:
        with (
            ThreadPoolExecutor(threads, initializer=_one_thread_each if inline else None) as pool,
            contextlib.closing(_in_order(pool, work, batches, ahead=threads + 2)) as outcomes,
        ):
            for batch, outcome in outcomes:
                waiting.append(mine(outcome) if isinstance(outcome, Readings) else outcome)
                done += batch.last - batch.first
                boxes += len(waiting[-1].findings.rank)
                if batch.last == _shard_end(batch.shard, images, options):
                    _write(run, batch.shard, waiting, images, miner)
                    waiting = []
                if progress:
                    progress(done, total, stages)
    finally:
        # The workers' setting is also what threads to come would start from.
        torch.set_num_threads(threads_before)
    unreadable = run.finish(shards)
    return RunReport(done, len(images), unreadable, boxes, time.perf_counter() - started, stages)


def read_batch(images: ImageList, batch: Batch, input_size: int, batch_size: int) -> Readings:
    """Read and resize a batch; what cannot be read is listed with its reason and left out."""
    pixels = torch.zeros(batch_size, input_size, input_size)
    sizes = torch.ones(batch_size, 2, dtype=torch.float64)
    readable: list[int] = []
    errors: list[tuple[str, str]] = []
    for position in range(batch.first, batch.last):
        try:
            image = read_image(images.read(position))
        except UnreadableImage as error:
            errors.append((images.image_ids[position], error.reason))
            continue
        row = len(readable)
        pixels[row] = torch.from_numpy(to_input(image, input_size))
        sizes[row] = torch.tensor(image.shape, dtype=torch.float64)
        readable.append(position)
    return Readings(pixels, sizes, tuple(readable), tuple(errors))


def _without_broken(
    mined: Mined, readings: Readings, images: ImageList
) -> tuple[Mined, tuple[tuple[str, str], ...]]:
    """Images whose CAMs overflowed get no rows (their probability becomes NaN) but an error each."""
    broken = mined.result.mined.extent.isnan().flatten(1).any(1)
    probability = mined.probability.masked_fill(broken[:, None], torch.nan)
    reason = "the network's output is not finite; try --precision float32"
    named = zip(readings.readable, broken.tolist(), strict=False)  # padding has no name
    errors = tuple((images.image_ids[position], reason) for position, is_broken in named if is_broken)
    return mined._replace(probability=probability), errors


def _one_thread_each() -> None:
    # The number of threads inside an operator belongs to the thread that calls it.
    torch.set_num_threads(1)


def _shard_end(shard: int, images: ImageList, options: RunOptions) -> int:
    return min((shard + 1) * options.shard_size, len(images))


def _batches(shard: int, images: ImageList, options: RunOptions) -> Iterator[Batch]:
    end = _shard_end(shard, images, options)
    for first in range(shard * options.shard_size, end, options.batch_size):
        yield Batch(shard, first, min(first + options.batch_size, end))


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[Batch], Any],
    batches: Iterable[Batch],
    ahead: int,
) -> Generator[tuple[Batch, Any], None, None]:
    """Outcomes in the order of the batches, with at most ``ahead`` of them under way: memory stays
    what it is however long the archive.
    """
    under_way: deque[tuple[Batch, Future[Any]]] = deque()
    try:
        for batch in batches:
            under_way.append((batch, pool.submit(work, batch)))
            if len(under_way) > ahead:
                first, future = under_way.popleft()
                yield first, future.result()
        while under_way:
            first, future = under_way.popleft()
            yield first, future.result()
    finally:
        for _, future in under_way:
            future.cancel()


class _Timed:
    """Adds the time of a ``with`` block to a stage."""

    def __init__(self, stages: Stages, stage: str) -> None:
        self.stages, self.stage = stages, stage

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.stages.add(self.stage, time.perf_counter() - self.started)


def _write(
    run: RunFolder,
    shard: int,
    outcomes: Sequence[Outcome],
    images: ImageList,
    miner: Miner,
) -> None:
    findings = _joined([o.findings for o in outcomes])
    maps = _joined([o.maps for o in outcomes])
    readable = [o.readable for o in outcomes]
    of_boxes = _names(images, miner, readable, [o.findings for o in outcomes])
    of_maps = _names(images, miner, readable, [o.maps for o in outcomes])
    edges = {edge: findings["boxes"][:, i] for i, edge in enumerate(("x1", "y1", "x2", "y2"))}
    rows = {**of_boxes, **edges, **{n: findings[n] for n in ("rank", "score", "probability")}}
    peak_x, peak_y = (pa.array(axis, from_pandas=True) for axis in maps["peak"].T)  # NaN is null
    height, width = maps["image_size"].T
    mapped = {
        **of_maps,
        "probability": maps["probability"],
        "peak_x": peak_x,
        "peak_y": peak_y,
        "image_height": height,
        "image_width": width,
    }
    if "heatmap" in maps:
        mapped |= _heatmap_columns(maps["heatmap"])
    run.write_shard(shard, rows, [error for o in outcomes for error in o.errors], mapped)


def _joined(batches: Sequence[Findings] | Sequence[Maps]) -> dict[str, np.ndarray]:
    """The columns of several batches, one behind the other; without those that were not asked for."""
    columns = zip(batches[0]._fields, zip(*batches, strict=True), strict=True)
    return {name: np.concatenate(parts) for name, parts in columns if parts[0] is not None}


def _names(
    images: ImageList,
    miner: Miner,
    readable: Sequence[tuple[int, ...]],
    batches: Sequence[Findings | Maps],
) -> dict[str, pa.Array]:
    """The columns image_id and class, from the rows and indices within each batch."""
    first = np.cumsum([0, *(len(positions) for positions in readable)])
    ids = pa.array([images.image_ids[p] for positions in readable for p in positions], pa.string())
    row = np.concatenate([b.image + start for b, start in zip(batches, first, strict=False)])
    index = np.concatenate([b.class_index for b in batches]).astype(np.int32)
    classes = pa.DictionaryArray.from_arrays(index, pa.array(miner.card.class_names, pa.string()))
    return {"image_id": ids.take(pa.array(row)), "class": classes}


def _heatmap_columns(heatmap: np.ndarray) -> dict[str, Any]:
    """Heatmaps uint8 [M, H, W] as bytes, without copying each."""
    count, height, width = heatmap.shape
    ends = np.arange(count + 1, dtype=np.int64) * (height * width)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(heatmap))]
    return {
        "height": np.full(count, height, np.int16),
        "width": np.full(count, width, np.int16),
        "heatmap": pa.Array.from_buffers(pa.large_binary(), count, buffers),
    }
