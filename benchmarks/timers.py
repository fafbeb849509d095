"""One way to ask how long calls take, with an implementation for each kind of device.

On a CPU every call is timed by itself. On a GPU calls return before their work is done, so many of
them go between two events, and the same work is timed once more from a CUDA graph: calls between
events include what the processor needs to launch them, replays of a graph do not.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

Run = Callable[[], Any]


class Timer(Protocol):
    """Times calls on one device."""

    most_calls: int  # that one sample may hold

    def sample(self, run: Run, calls: int) -> list[float]:
        """Seconds a call: one figure for each call, or one for all of them, as the device can."""

    def captured(self, runs: Sequence[Run]) -> Run | None:
        """One function that does all of ``runs`` without launching them, or None where none can."""

    def peak_bytes(self, run: Run) -> int:
        """The most memory of tensors on the device that a call holds above what lay there."""


class CpuTimer:
    """By the wall clock. ``settle`` waits for work that a call has only begun."""

    most_calls = 50

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, settle: Run = lambda: None
    ) -> None:
        self._clock, self._settle = clock, settle

    def sample(self, run: Run, calls: int) -> list[float]:
        return [self._time(run) for _ in range(calls)]

    def captured(self, runs: Sequence[Run]) -> None:
        return None

    def peak_bytes(self, run: Run) -> int:
        run()  # what is made once (an optimizer's state) is not the call's
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiled:
            run()
        events = profiled.profiler.kineto_results.events()
        steps = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        held = itertools.accumulate(size for _, size in sorted(steps, key=lambda step: step[0]))
        return max(held, default=0)

    def _time(self, run: Run) -> float:
        self._settle()
        start = self._clock()
        run()
        self._settle()
        return self._clock() - start


class CudaTimer:
    """By CUDA events. ``cuda`` is ``torch.cuda``, or stands in for it in a test."""

    most_calls = 200

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device, self._cuda = device, cuda

    def sample(self, run: Run, calls: int) -> list[float]:
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._cuda.synchronize(self._device)
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return [start.elapsed_time(end) / 1e3 / calls]

    def captured(self, runs: Sequence[Run]) -> Run | None:
        if not self._runs_without_waiting(runs[0]):
            return None
        graph = self._cuda.CUDAGraph()
        try:
            with self._cuda.graph(graph):
                for run in runs:
                    run()
        except RuntimeError:  # a kernel of ours may do what torch cannot see
            return None
        return graph.replay

    def peak_bytes(self, run: Run) -> int:
        self._cuda.synchronize(self._device)
        before = self._cuda.memory_allocated(self._device)
        self._cuda.reset_peak_memory_stats(self._device)
        run()
        self._cuda.synchronize(self._device)
        return int(self._cuda.max_memory_allocated(self._device)) - int(before)

    def _runs_without_waiting(self, run: Run) -> bool:
        # Asked beforehand: a capture that fails leaves torch's allocator in the middle of it.
        mode = self._cuda.get_sync_debug_mode()
        self._cuda.set_sync_debug_mode("error")
        try:
            run()
        except RuntimeError:
            return False
        finally:
            self._cuda.set_sync_debug_mode(mode)
        return True


def timer_for(device: torch.device) -> Timer:
    """The timer of a device's own work."""
    return CudaTimer(device) if device.type == "cuda" else CpuTimer()


def wall_timer(device: torch.device) -> Timer:
    """The wall clock, for work of host and device together."""
    if device.type == "cuda":
        return CpuTimer(settle=lambda: torch.cuda.synchronize(device))
    return CpuTimer()
