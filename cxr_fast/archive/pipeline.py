"""Mining a whole source of images into a run folder.

Images keep their order and are cut into shards, shards into batches; a batch never crosses a shard
and the last one is padded, so that every row depends on the images, the model and the settings alone.

On a processor each worker thread carries a batch from file to findings, with one thread for the
network: no barriers, no waiting, and rows that do not depend on how many cores there are. With GPUs
the workers only read, a few batches ahead, and each GPU has a thread that takes the next batch that
is read. The main thread writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch

from cxr_fast import __version__
from cxr_fast.archive.findings import RunFolder, shard_count
from cxr_fast.archive.images import ImageList, UnreadableImage, read_picture, to_input
from cxr_fast.archive.shard_rows import Outcome, ShardRows, shard_rows
from cxr_fast.archive.stages import Stages
from cxr_fast.mining import Mined, Miner, findings_of, maps_of

# Called after every batch: images done in this run, images to do in all, and what the time went to.
Progress = Callable[[int, int, Stages], None]


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
    notes: tuple[tuple[str, str], ...]
    tags: tuple[tuple[str, Mapping[str, str]], ...]


Inspect = Callable[[Readings, Mined], None]


class RunReport(NamedTuple):
    """What a run did: images of this run, of the archive, unreadable ones, boxes, seconds.

    ``stopped``: it was asked to end after the shard in hand, and shards are left.
    """

    images: int
    total: int
    unreadable: int
    boxes: int
    seconds: float
    stages: Stages
    stopped: bool


class TooManyErrorsError(RuntimeError):
    """More images than allowed were unreadable; what was mined is kept."""


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
    # DICOM values that are kept beside the findings; no other leaves its file.
    keep_tags: tuple[str, ...] = ()

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
        "convolutions": miner.model.convolutions,
        "batch_size": options.batch_size,
        "shard_size": options.shard_size,
        "classes": classes,
        "min_probability": options.min_probability,
        "heatmaps": options.heatmaps,
        "keep_tags": list(options.keep_tags),
        "cxr_fast": __version__,
        "torch": torch.__version__,
    }


def mine_archive(
    images: ImageList,
    miners: Sequence[Miner],
    run: RunFolder,
    options: RunOptions,
    threads: int,
    progress: Progress | None = None,
    inspect: Inspect | None = None,
    *,
    stop: threading.Event | None = None,
    max_errors: int | None = None,
) -> RunReport:
    """Mine every shard that ``run`` lacks and finish it. ``miners`` are one model, a device each.

    ``inspect`` sees every batch after its findings, in any order of batches (it draws overlays). Once
    ``stop`` is set the run ends behind the shard in hand.
    Raises OSError if the folder takes no more, TooManyErrorsError after the shard in which more than
    ``max_errors`` images, those of earlier goes included, were unreadable; what was committed stays,
    and the same call goes on.
    """
    started = time.perf_counter()
    run.write_images(images.image_ids)
    shards = shard_count(len(images), options.shard_size)
    todo = sorted(set(range(shards)) - run.finished_shards())
    total = sum(len(_positions(s, images, options)) for s in todo)
    stages = Stages(threads, 0 if _reads_inline(miners) else len(miners))
    done = boxes = 0
    unreadable = run.count_errors()

    def count(batch: Batch) -> None:
        nonlocal done
        done += batch.last - batch.first
        if progress:
            progress(done, total, stages)

    mined = mine_shards(images, miners, options, threads, todo, stages, count, inspect)
    stopped = False
    with contextlib.closing(mined):
        for position, (shard, rows) in enumerate(mined, 1):
            with stages.timed("write"):
                run.write_shard(shard, rows.findings, rows.errors, rows.maps, rows.beside)
            boxes += rows.findings.num_rows
            unreadable += len(rows.errors)
            if max_errors is not None and unreadable > max_errors:
                raise TooManyErrorsError(
                    f"{unreadable} images are unreadable, more than the {max_errors} that --max-errors "
                    f"allows; {run.path / 'errors'} has the reasons. Mend them, or allow more: the "
                    "same command goes on"
                )
            if stop is not None and stop.is_set() and position < len(todo):
                stopped = True
                break
    if not stopped:
        unreadable = run.finish(shards)
    seconds = time.perf_counter() - started
    return RunReport(done, len(images), unreadable, boxes, seconds, stages, stopped)


def mine_shards(
    images: ImageList,
    miners: Sequence[Miner],
    options: RunOptions,
    threads: int,
    shards: Sequence[int],
    stages: Stages,
    count: Callable[[Batch], None] | None = None,
    inspect: Inspect | None = None,
) -> Generator[tuple[int, ShardRows], None, None]:
    """Give the rows of shards, in their order: a pure function of images, model and options.

    A few batches are under way at a time, so memory stays what it is however long the archive.
    ``count`` is called for every batch in order.
    """
    inline = _reads_inline(miners)
    card = miners[0].card
    # A thread of a device keeps its miner; on a processor all threads share one.
    free: SimpleQueue[Miner] = SimpleQueue()
    own = threading.local()

    def take_miner() -> None:
        own.miner = free.get()

    def read(batch: Batch) -> Readings:
        return read_batch(images, batch, card.input_size, options, stages, not inline)

    def mine(miner: Miner, readings: Readings) -> Outcome:
        with stages.timed("network"):
            mined = miner.mine(readings.images, readings.sizes)
        with stages.timed("rows"):
            mined, broken = _without_broken(mined, readings, images)
            names = tuple(images.image_ids[position] for position in readings.readable)
            wanted = None
            if options.classes_of is not None:
                wanted = [options.classes_of.get(name, ()) for name in names]
            findings = findings_of(mined, wanted, options.min_probability, images=len(names))
            maps = maps_of(mined, readings.sizes, wanted, len(names), options.heatmaps)
        if inspect:
            inspect(readings, mined)
        errors = readings.errors + broken
        return Outcome(findings, maps, names, errors, readings.notes, readings.tags)

    for miner in miners:
        free.put(miner)
    threads_before = torch.get_num_threads()
    waiting: list[Outcome] = []
    try:
        with contextlib.ExitStack() as pools:
            readers = pools.enter_context(
                ThreadPoolExecutor(threads, "reader", _one_thread_each if inline else None)
            )
            if inline:

                def submit(batch: Batch) -> Future[Outcome]:
                    return readers.submit(lambda: mine(miners[0], read(batch)))
            else:
                devices = pools.enter_context(ThreadPoolExecutor(len(miners), "device", take_miner))

                def submit(batch: Batch) -> Future[Outcome]:
                    reading = readers.submit(read, batch)
                    return devices.submit(lambda: mine(own.miner, reading.result()))

            batches = (b for shard in shards for b in _batches(shard, images, options))
            ahead = threads + 2 * len(miners)
            outcomes = pools.enter_context(contextlib.closing(_in_order(submit, batches, ahead)))
            for batch, outcome in outcomes:
                waiting.append(outcome)
                if count:
                    count(batch)
                if batch.last == _positions(batch.shard, images, options).stop:
                    with stages.timed("write"):
                        rows = shard_rows(waiting, card.class_names, options.keep_tags)
                    waiting = []
                    yield batch.shard, rows
    finally:
        # The workers' setting is also what threads to come would start from.
        torch.set_num_threads(threads_before)


def read_batch(
    images: ImageList,
    batch: Batch,
    input_size: int,
    options: RunOptions,
    stages: Stages,
    pinned: bool = False,
) -> Readings:
    """Read and resize a batch; what cannot be read is listed with its reason and left out.

    ``pinned`` memory is what a GPU copies from without waiting.
    """
    pixels = torch.zeros(options.batch_size, input_size, input_size, pin_memory=pinned)
    sizes = torch.ones(options.batch_size, 2, dtype=torch.float64)
    readable: list[int] = []
    errors: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    tags: list[tuple[str, Mapping[str, str]]] = []
    for position in range(batch.first, batch.last):
        try:
            with stages.timed("read"):
                data = images.read(position)
            with stages.timed("decode"):
                picture = read_picture(data, keep_tags=options.keep_tags)
        except UnreadableImage as error:
            errors.append((images.image_ids[position], error.reason))
            continue
        row = len(readable)
        with stages.timed("resize"):
            pixels[row] = torch.from_numpy(to_input(picture.pixels, input_size))
        sizes[row] = torch.tensor(picture.pixels.shape, dtype=torch.float64)
        readable.append(position)
        if picture.note:
            notes.append((images.image_ids[position], picture.note))
        if picture.tags:
            tags.append((images.image_ids[position], picture.tags))
    return Readings(pixels, sizes, tuple(readable), tuple(errors), tuple(notes), tuple(tags))


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


def _reads_inline(miners: Sequence[Miner]) -> bool:
    return miners[0].device.type == "cpu"


def _positions(shard: int, images: ImageList, options: RunOptions) -> range:
    first = shard * options.shard_size
    return range(first, min(first + options.shard_size, len(images)))


def _batches(shard: int, images: ImageList, options: RunOptions) -> Iterator[Batch]:
    positions = _positions(shard, images, options)
    for first in positions[:: options.batch_size]:
        yield Batch(shard, first, min(first + options.batch_size, positions.stop))


def _in_order(
    submit: Callable[[Batch], Future[Outcome]], batches: Iterable[Batch], ahead: int
) -> Generator[tuple[Batch, Outcome], None, None]:
    """Outcomes in the order of the batches, with at most ``ahead`` of them under way."""
    under_way: deque[tuple[Batch, Future[Outcome]]] = deque()
    try:
        for batch in batches:
            under_way.append((batch, submit(batch)))
            if len(under_way) > ahead:
                first, future = under_way.popleft()
                yield first, future.result()
        while under_way:
            first, future = under_way.popleft()
            yield first, future.result()
    finally:
        for _, future in under_way:
            future.cancel()
