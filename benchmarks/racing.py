"""Interleaved timing: ours and every peer take turns in one run, and medians are compared.

Machines are shared and change speed by the second. Two numbers taken a minute apart compare the
minutes; numbers taken in turns compare the code.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from cxr_fast.benchmarks.place import Place
from cxr_fast.benchmarks.roofline import Probe, Roofline, Work, probes, roofline
from cxr_fast.benchmarks.timers import Run, Timer, timer_for, wall_timer

Check = Callable[[Any, Any], None]

SLICE = 0.01  # seconds that a runner may take in one turn; always one call at least
LEAST_ROUNDS, MOST_ROUNDS = 3, 200
# A case's inputs are copied until they are so many times as large as the GPU's L2 cache.
CACHES = 4
MOST_COPIES = 256


@dataclass(frozen=True)
class Peer:
    """Another way to compute the same thing; ``check(ours, theirs)`` raises where they differ.

    ``run`` is called with what ``prepare`` made of the inputs, outside the time (None: the inputs).
    ``graph``: on a GPU, time it from a CUDA graph, too; for what launches on torch's stream only.
    """

    name: str
    run: Callable[..., Any]
    check: Check
    prepare: Callable[..., tuple[Any, ...]] | None = None
    graph: bool = False


@dataclass(frozen=True)
class Yardstick:
    """Other work, timed in the same turns; ours is given in percent of it. Nothing to be equal."""

    name: str
    run: Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """A race to run. ``inputs`` are tensors; ours, peers and yardsticks are called with them.

    ``work`` None: no floor. ``images``: how many a call takes, to report a rate, too. ``memory``:
    report the peak of memory that tensors hold. ``wall``: time host and device together.
    """

    name: str
    inputs: tuple[Tensor, ...]
    ours: Callable[..., Any]
    peers: Sequence[Peer] = ()
    yardsticks: Sequence[Yardstick] = ()
    work: Work | None = None
    note: str = ""
    images: int = 0
    memory: bool = False
    wall: bool = False


@dataclass(frozen=True)
class Timing:
    """Seconds: the median, the quartiles, and how many samples they come from."""

    median: float
    lower: float
    upper: float
    calls: int


@dataclass(frozen=True)
class Outcome:
    """One case, raced. ``graphs``: the same work replayed from a CUDA graph, for those that can.

    ``floor`` in seconds, None without stated work; ``peak_bytes`` of tensors, where asked.
    """

    case: str
    ours: Timing
    peers: dict[str, Timing] = field(default_factory=dict)
    yardsticks: dict[str, Timing] = field(default_factory=dict)
    graphs: dict[str, Timing] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    roofline: Roofline | None = None
    floor: float | None = field(init=False)
    note: str = ""
    images: int = 0
    best_peer: str | None = field(init=False)

    def __post_init__(self) -> None:
        best = min(self.peers, key=lambda name: self.peers[name].median, default=None)
        object.__setattr__(self, "best_peer", best)
        object.__setattr__(self, "floor", self.roofline and self.roofline.floor)

    def ratio(self, peer: str) -> float:
        """How many times as long the peer takes."""
        return self.peers[peer].median / self.ours.median

    @property
    def floor_reached(self) -> float | None:
        """1 = as fast as the machine moves the bytes or multiplies the numbers.

        From a graph where there is one: a launch by the processor is no work of the device.
        """
        fastest = self.graphs.get("ours", self.ours).median
        return None if self.floor is None else self.floor / fastest


def check_equality(case: Case) -> None:
    """Raises where a peer's result is not ours. Every function has run once after this."""
    result = case.ours(*case.inputs)
    for peer in case.peers:
        prepared = case.inputs if peer.prepare is None else peer.prepare(*case.inputs)
        try:
            peer.check(result, peer.run(*prepared))
        except AssertionError as error:
            error.add_note(f"the result of the peer {peer.name!r} differs from ours")
            raise
    for yardstick in case.yardsticks:
        yardstick.run(*case.inputs)


def race(case: Case, place: Place) -> Outcome:
    """Times everything in turns for about ``place.seconds``, at least a few turns each."""
    timer = wall_timer(place.device) if case.wall else timer_for(place.device)
    copies = [case.inputs] if case.wall else rotated(case.inputs, place)
    runners = _runners(case, copies)
    floor_probes: dict[str, Probe] = probes(case.work, place) if case.work else {}
    entries = {name: Entry(_in_turn(runs)) for name, runs in runners.items()}
    for name in ("ours", *(f"peer {peer.name}" for peer in case.peers if peer.graph)):
        if replay := timer.captured(runners[name]):
            entries[f"graph {name}"] = Entry(replay, len(runners[name]))
    entries |= {f"probe {name}": Entry(probe.run) for name, probe in floor_probes.items()}
    timings = take_turns(entries, timer, place)

    def of(kind: str) -> dict[str, Timing]:
        return {n.removeprefix(kind): t for n, t in timings.items() if n.startswith(kind)}

    roof = None
    if case.work:
        probed = {name: (floor_probes[name], t.median) for name, t in of("probe ").items()}
        roof = roofline(case.work, probed)
    graphs = {name.removeprefix("peer "): t for name, t in of("graph ").items()}
    return Outcome(
        case.name,
        timings["ours"],
        of("peer "),
        of("beside "),
        graphs,
        _peaks(runners, timer) if case.memory else {},
        roof,
        case.note,
        case.images,
    )


def rotated(inputs: tuple[Tensor, ...], place: Place) -> list[tuple[Tensor, ...]]:
    """The inputs, and on a GPU copies of them: together larger than its cache, as real data is."""
    size = sum(value.numel() * value.element_size() for value in inputs)
    if not place.cuda or place.quick or size == 0:
        return [inputs]
    cache_bytes = torch.cuda.get_device_properties(place.device).L2_cache_size
    return [inputs] + [
        tuple(value.clone() for value in inputs) for _ in range(copies_to_make(size, cache_bytes))
    ]


def copies_to_make(size: int, cache_bytes: int) -> int:
    """How many besides the inputs themselves, at least one."""
    return min(max(-(-CACHES * cache_bytes // size), 2), MOST_COPIES) - 1


def _runners(case: Case, copies: Sequence[tuple[Tensor, ...]]) -> dict[str, list[Run]]:
    """By name, a call for each copy of the inputs."""

    def bound(run: Callable[..., Any], prepare: Callable[..., tuple[Any, ...]] | None) -> list[Run]:
        prepared = copies if prepare is None else [prepare(*copy) for copy in copies]
        return [lambda arguments=arguments: run(*arguments) for arguments in prepared]

    runners = {"ours": bound(case.ours, None)}
    runners |= {f"peer {peer.name}": bound(peer.run, peer.prepare) for peer in case.peers}
    return runners | {f"beside {it.name}": bound(it.run, None) for it in case.yardsticks}


def _in_turn(runs: Sequence[Run]) -> Run:
    following = cycle(runs)
    return lambda: next(following)()


def _peaks(runners: dict[str, list[Run]], timer: Timer) -> dict[str, int]:
    return {
        name.removeprefix("peer ").removeprefix("beside "): timer.peak_bytes(runs[0])
        for name, runs in runners.items()
    }


@dataclass(frozen=True)
class Entry:
    """Something to time; one call of ``run`` does the work ``times`` over."""

    run: Run
    times: int = 1


def take_turns(entries: dict[str, Entry], timer: Timer, place: Place) -> dict[str, Timing]:
    """Medians of all, each sampled for a SLICE in its turn."""
    calls = {name: _calls_in_a_turn(entry, timer) for name, entry in entries.items()}
    taken: dict[str, list[float]] = {name: [] for name in entries}
    order = list(entries)
    least = 2 if place.quick else LEAST_ROUNDS
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + place.seconds
        rounds = 0
        while rounds < least or (rounds < MOST_ROUNDS and time.perf_counter() < end):
            for name in order:
                entry = entries[name]
                seconds = timer.sample(entry.run, calls[name])
                taken[name] += [value / entry.times for value in seconds]
            order.append(order.pop(0))  # nobody always follows the same neighbour's cache
            rounds += 1
    finally:
        gc.enable()
    return {name: _timing(times) for name, times in taken.items()}


def _calls_in_a_turn(entry: Entry, timer: Timer) -> int:
    (seconds,) = timer.sample(entry.run, 1)
    if seconds < 1:  # the first call warms up; calls of seconds need no second one
        (seconds,) = timer.sample(entry.run, 1)
    return min(max(int(SLICE / max(seconds, 1e-9)), 1), timer.most_calls)


def _timing(times: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(times, n=4)
    return Timing(median, lower, upper, len(times))
