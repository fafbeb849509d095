"""Where the time of a run goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

Stage = Literal["read", "decode", "resize", "network", "rows", "write"]

_LABELS: dict[Stage, str] = {
    "read": "reading files",
    "decode": "decoding",
    "resize": "resizing",
    "network": "the network",
    "rows": "making rows",
    "write": "writing",
}
# Who does what, where the network has a device to itself; on a processor the readers do both.
_READERS: tuple[Stage, ...] = ("read", "decode", "resize")
_DEVICES: tuple[Stage, ...] = ("network", "rows")
_WRITER: tuple[Stage, ...] = ("write",)


class Stages:
    """Seconds that workers spent on each stage, summed over threads.

    ``readers`` threads read; ``devices`` have a thread each, or are 0 where the readers run the
    network, too; one thread writes. Where workers elsewhere do the work, each has as many.
    """

    def __init__(self, readers: int = 1, devices: int = 0) -> None:
        self.seconds: dict[Stage, float] = dict.fromkeys(_LABELS, 0.0)
        self._readers = readers
        self._devices = devices
        self._workers: set[str] = set()
        self._started = time.perf_counter()
        self._lock = threading.Lock()

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Add the time of the block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    def add(self, stage: Stage, seconds: float) -> None:
        """Thread-safe."""
        with self._lock:
            self.seconds[stage] += seconds

    def merge(self, worker: str, seconds: Mapping[Stage, float]) -> None:
        """Add what a worker elsewhere spent on a shard; it joined the rows, and wrote nothing."""
        with self._lock:
            self._workers.add(worker)
            for stage, spent in seconds.items():
                self.seconds["rows" if stage == "write" else stage] += spent

    def _crews(self) -> list[tuple[tuple[Stage, ...], int]]:
        """Stages and how many threads work on them."""
        workers = max(1, len(self._workers))
        if self._devices:
            crews = [(_READERS, self._readers * workers), (_DEVICES, self._devices * workers)]
        else:
            crews = [(_READERS + _DEVICES, self._readers * workers)]
        return [*crews, (_WRITER, 1)]

    def limit(self) -> str:
        """Name the stage that limits the run: most of the time of the crew that rests least."""
        busy, crew = max(
            (sum(self.seconds[s] for s in crew) / count, crew) for crew, count in self._crews()
        )
        if busy == 0:
            return "starting"
        stage = max(crew, key=lambda name: self.seconds[name])
        share = self.seconds[stage] / sum(self.seconds[s] for s in crew)
        return f"{_LABELS[stage]} ({share:.0%} of its threads' time)"

    def profile(self) -> dict[str, Any]:
        """What ``--profile`` writes: by stage the seconds and how busy its threads were with it."""
        wall = time.perf_counter() - self._started
        return {
            "wall_seconds": wall,
            "workers": max(1, len(self._workers)),
            "limited_by": self.limit(),
            "stages": {
                stage: {
                    "seconds": self.seconds[stage],
                    "threads": count,
                    "busy": self.seconds[stage] / (wall * count),
                }
                for crew, count in self._crews()
                for stage in crew
            },
        }
