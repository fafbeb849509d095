"""One run over an archive: which shards are left, who works on them, and what is written.

The rows of a shard are a pure function of the images, the model and the options, whichever engine
worked on it. One process, the one that holds the folder, writes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol

from cxr_fast import __version__
from cxr_fast.archive.batches import RunOptions, positions_of
from cxr_fast.archive.findings import RunFolder, shard_count
from cxr_fast.archive.images import ImageList
from cxr_fast.archive.shard_rows import ShardRows
from cxr_fast.archive.stages import Stages
from cxr_fast.rows import Network

# Called after every batch: images done in this run, images to do in all, and what the time went to.
Progress = Callable[[int, int, Stages], None]


class Engine(Protocol):
    """Who works on shards."""

    @property
    def network(self) -> Network:
        """What of the model and its device decides the rows."""

    @property
    def where(self) -> str:
        """Devices and threads, for the person who waits."""

    def stages(self) -> Stages:
        """Return a new record of where the time of a run of this engine goes."""

    def mine(
        self,
        images: ImageList,
        options: RunOptions,
        shards: Sequence[int],
        stages: Stages,
        count: Callable[[int], None],
    ) -> Generator[tuple[int, ShardRows], None, None]:
        """Give the rows of each of ``shards``, in any order; ``count`` is told how many images came.

        Closing the generator ends the work on the shards that are left.
        """


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


def run_settings(
    images: ImageList, network: Network, model_digest: str, options: RunOptions
) -> dict[str, Any]:
    """What run.json records: two runs with equal settings, on one kind of machine, have equal rows.

    Images are told by id and size in bytes: the same names with other pictures are another archive.
    """
    classes = "all"
    if options.classes_of is not None:
        classes = f"labels {_digest_of_classes(options.classes_of)}"
    return {
        "images": {"count": len(images), "sha256_of_ids_and_sizes": images.digest()},
        "model": {"sha256": model_digest, "class_names": list(network.class_names)},
        "mining": asdict(network.settings),
        "precision": network.precision,
        "device": network.device,
        "batch_size": options.batch_size,
        "shard_size": options.shard_size,
        "classes": classes,
        "min_probability": options.min_probability,
        "heatmaps": options.heatmaps,
        "keep_tags": list(options.keep_tags),
        "cxr_fast": __version__,
        **network.libraries,
    }


def _digest_of_classes(classes_of: Mapping[str, Sequence[int]]) -> str:
    """SHA-256 of a Python list of pairs (image_id, class indices), sorted, as it is written in code."""
    digest = hashlib.sha256(b"[")
    between = ""  # piece by piece: the whole text takes hundreds of bytes an image
    for image_id in sorted(classes_of):
        digest.update(f"{between}{(image_id, sorted(classes_of[image_id]))!r}".encode())
        between = ", "
    digest.update(b"]")
    return digest.hexdigest()


def mine_archive(
    images: ImageList,
    engine: Engine,
    run: RunFolder,
    options: RunOptions,
    progress: Progress | None = None,
    *,
    stop: threading.Event | None = None,
    max_errors: int | None = None,
) -> RunReport:
    """Mine every shard that ``run`` lacks and finish it.

    Once ``stop`` is set the run ends behind the shard in hand.
    Raises OSError if the folder takes no more, TooManyErrorsError after the shard in which more than
    ``max_errors`` images, those of earlier goes included, were unreadable; what was committed stays,
    and the same call goes on.
    """
    started = time.perf_counter()
    run.write_images(images.image_ids)
    shards = shard_count(len(images), options.shard_size)
    todo = sorted(set(range(shards)) - run.finished_shards())
    total = sum(len(positions_of(s, images, options)) for s in todo)
    stages = engine.stages()
    done = boxes = 0
    unreadable = run.count_errors()

    def require_few_errors() -> None:
        if max_errors is not None and unreadable > max_errors:
            raise TooManyErrorsError(
                f"{unreadable} images are unreadable, more than the {max_errors} that --max-errors "
                f"allows; {run.path / 'errors'} has the reasons. Mend them, or allow more: the "
                "same command goes on"
            )

    def count(mined: int) -> None:
        nonlocal done
        done += mined
        if progress:
            progress(done, total, stages)

    stopped = False
    require_few_errors()
    with contextlib.closing(engine.mine(images, options, todo, stages, count)) as mined:
        for position, (shard, rows) in enumerate(mined, 1):
            with stages.timed("write"):
                run.write_shard(shard, rows.findings, rows.errors, rows.maps, rows.beside)
            boxes += rows.findings.num_rows
            unreadable += len(rows.errors)
            require_few_errors()
            if stop is not None and stop.is_set() and position < len(todo):
                stopped = True
                break
    if not stopped:
        unreadable = run.finish(shards)
    seconds = time.perf_counter() - started
    return RunReport(done, len(images), unreadable, boxes, seconds, stages, stopped)
