"""Interleaved timing: ours and every peer take turns in one run, and medians are compared.

Machines are shared and change speed by the second. Two numbers taken a minute apart compare the
minutes; numbers taken in turns compare the code. The floor of a case is measured in the same turns:
a plain read of as many bytes as the operator must move, and a large matrix product for the rate of
fused multiply-adds.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

Run = Callable[[], Any]
Check = Callable[[Any, Any], None]

SLICE = 0.01  # seconds that a runner may take in one turn; always one call at least
MOST_CALLS = 50  # in one turn
LEAST_ROUNDS, MOST_ROUNDS = 5, 200
# Two ways to read float32 rows once; the faster one counts.
READERS = {"sum": torch.sum, "mv": lambda rows: torch.mv(rows, rows[0])}
PRODUCT_SIDE = 1024  # of the square matrices that show the rate of multiply-adds


@dataclass(frozen=True)
class Peer:
    """Another way to compute the same thing; ``check(ours, theirs)`` raises where they differ."""

    name: str
    run: Run
    check: Check


@dataclass(frozen=True)
class Work:
    """What a case cannot do without: bytes read and written once, and floating-point operations."""

    moved_bytes: int
    flops: int = 0


@dataclass(frozen=True)
class Timing:
    """Seconds: the median, the quartiles, and how many calls they come from."""

    median: float
    lower: float
    upper: float
    calls: int


@dataclass(frozen=True)
class Outcome:
    """One case, raced: timings of ours and each peer, and the floor in seconds."""

    case: str
    ours: Timing
    peers: dict[str, Timing]
    floor: float
    note: str = ""
    best_peer: str = field(init=False)

    def __post_init__(self) -> None:
        best = min(self.peers, key=lambda name: self.peers[name].median)
        object.__setattr__(self, "best_peer", best)

    def ratio(self, peer: str) -> float:
        """How many times as long the peer takes."""
        return self.peers[peer].median / self.ours.median

    @property
    def floor_reached(self) -> float:
        """1 = as fast as the machine moves the bytes or multiplies the numbers."""
        return self.floor / self.ours.median


def race(
    case: str, ours: Run, peers: Sequence[Peer], work: Work, seconds: float, note: str = ""
) -> Outcome:
    """Times everything in turns for about ``seconds``, at least LEAST_ROUNDS turns each."""
    runs = {"ours": ours} | {f"peer {peer.name}": peer.run for peer in peers} | _floor_runs(work)
    timings = _take_turns(runs, seconds)
    floor = min(timings[reader].median for reader in READERS)
    if work.flops:
        rate = 2 * PRODUCT_SIDE**3 / timings["flops"].median
        floor = max(floor, work.flops / rate)
    by_peer = {peer.name: timings[f"peer {peer.name}"] for peer in peers}
    return Outcome(case, timings["ours"], by_peer, floor, note)


def _floor_runs(work: Work) -> dict[str, Run]:
    # The buffer is as large as the case, so that it lies in the same level of cache.
    rows = torch.ones(max(work.moved_bytes // 4096, 1), 1024)
    runs: dict[str, Run] = {name: partial(read, rows) for name, read in READERS.items()}
    if work.flops:
        a, b = torch.randn(2, PRODUCT_SIDE, PRODUCT_SIDE)
        runs["flops"] = lambda: torch.matmul(a, b)
    return runs


def _take_turns(runs: dict[str, Run], seconds: float) -> dict[str, Timing]:
    calls = {name: _calls_in_a_turn(run) for name, run in runs.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        rounds = 0
        while rounds < LEAST_ROUNDS or (rounds < MOST_ROUNDS and time.perf_counter() < end):
            for name in order:
                taken[name] += [_time(runs[name]) for _ in range(calls[name])]
            order.append(order.pop(0))  # nobody always follows the same neighbour's cache
            rounds += 1
    finally:
        gc.enable()
    return {name: _timing(times) for name, times in taken.items()}


def _calls_in_a_turn(run: Run) -> int:
    return min(max(int(SLICE / _time(run)), 1), MOST_CALLS)


def _time(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _timing(times: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(times, n=4)
    return Timing(median, lower, upper, len(times))
