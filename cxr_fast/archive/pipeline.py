"""From a list of images to the rows of its shards, on this machine.

Images keep their order and are cut into shards, shards into batches; a batch never crosses a shard
and the last one is padded, so that every row depends on the images, the model and the settings alone.

On a processor each worker thread carries a batch from file to findings, with one thread for the
network: no barriers, no waiting, and rows that do not depend on how many cores there are. With GPUs
the workers only read, a few batches ahead, and each GPU has a thread that takes the next batch that
is read. The main thread joins the rows of a shard.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

from cxr_fast import _numpy_ops
from cxr_fast.archive.batches import (
    Batch,
    Readings,
    RunOptions,
    batches_of,
    positions_of,
    read_batch,
)
from cxr_fast.archive.images import ImageList
from cxr_fast.archive.shard_rows import Outcome, ShardRows, shard_rows
from cxr_fast.archive.stages import Stages
from cxr_fast.rows import BatchMiner, MinedBatch, Network, findings_of, maps_of

# The reason of an image whose CAMs overflowed.
NOT_FINITE = "the network's output is not finite; try --precision float32"

Inspect = Callable[[Readings, MinedBatch], None]


@dataclass(frozen=True)
class LocalEngine:
    """One machine: ``threads`` that read, and a model, of which ``miners`` has one a device.

    ``inspect`` sees every batch after its findings, in any order of batches (it draws overlays).
    """

    miners: Sequence[BatchMiner]
    threads: int
    inspect: Inspect | None = None

    @property
    def network(self) -> Network:
        """See ``Engine``."""
        return self.miners[0].network

    @property
    def where(self) -> str:
        """See ``Engine``."""
        return f"{', '.join(miner.where for miner in self.miners)}, {self.threads} threads"

    def stages(self) -> Stages:
        """See ``Engine``."""
        return Stages(self.threads, 0 if self.miners[0].reads_inline else len(self.miners))

    def mine(
        self,
        images: ImageList,
        options: RunOptions,
        shards: Sequence[int],
        stages: Stages,
        count: Callable[[int], None] | None = None,
    ) -> Generator[tuple[int, ShardRows], None, None]:
        """See ``Engine``; in the order of ``shards``.

        A few batches are under way at a time, so memory stays what it is however long the archive.
        ``count`` is told the images of every batch, in order.
        """
        miners, inline = self.miners, self.miners[0].reads_inline
        # A thread of a device keeps its miner; on a processor all threads share one.
        free: SimpleQueue[BatchMiner] = SimpleQueue()
        own = threading.local()

        def take_miner() -> None:
            own.miner = free.get()

        def read(batch: Batch) -> Readings:
            return read_batch(images, batch, miners[0].empty(options.batch_size), options, stages)

        def mine(miner: BatchMiner, readings: Readings) -> Outcome:
            with stages.timed("network"):
                mined = miner.mine_batch(readings.images, readings.sizes, options.heatmaps)
            with stages.timed("rows"):
                names = tuple(images.image_ids[position] for position in readings.readable)
                wanted = None
                if options.classes_of is not None:
                    wanted = [options.classes_of.get(name, ()) for name in names]
                findings = findings_of(mined, len(names), wanted, options.min_probability)
                maps = maps_of(mined, readings.sizes, len(names), wanted)
                # An image whose CAMs overflowed has no rows, but an error.
                finite = zip(names, mined.finite.tolist(), strict=False)  # padding has no name
                broken = tuple((name, NOT_FINITE) for name, is_finite in finite if not is_finite)
            if self.inspect:
                self.inspect(readings, mined)
            errors = readings.errors + broken
            return Outcome(findings, maps, names, errors, readings.notes, readings.tags)

        for miner in miners:
            free.put(miner)
        waiting: list[Outcome] = []
        with contextlib.ExitStack() as pools:
            begin = pools.enter_context(miners[0].in_threads())
            readers = pools.enter_context(
                ThreadPoolExecutor(self.threads, "reader", begin if inline else None)
            )
            if inline:

                def submit(batch: Batch) -> Future[Outcome]:
                    return readers.submit(lambda: mine(miners[0], read(batch)))
            else:
                devices = pools.enter_context(ThreadPoolExecutor(len(miners), "device", take_miner))

                def submit(batch: Batch) -> Future[Outcome]:
                    reading = readers.submit(read, batch)
                    return devices.submit(lambda: mine(own.miner, reading.result()))

            batches = (b for shard in shards for b in batches_of(shard, images, options))
            ahead = self.threads + 2 * len(miners)
            outcomes = pools.enter_context(contextlib.closing(_in_order(submit, batches, ahead)))
            for batch, outcome in outcomes:
                waiting.append(outcome)
                if count:
                    count(batch.last - batch.first)
                if batch.last == positions_of(batch.shard, images, options).stop:
                    with stages.timed("write"):
                        rows = shard_rows(waiting, self.network.class_names, options.keep_tags)
                    waiting = []
                    # What is in use stays the same, but freed pages pile up: seen over 20,000 images.
                    _numpy_ops.give_back_memory()
                    yield batch.shard, rows


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
