"""The least time a machine needs, from rates measured in the same turns as the race.

On a CPU the bandwidth is that of reading a buffer as large as the case (so that it lies in the same
level of cache), by the faster of two readers. On a GPU it is that of a device-to-device copy far
larger than its cache, counting bytes read and bytes written. The rate of operations is that of a
large matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch

from cxr_fast.benchmarks.place import Place
from cxr_fast.benchmarks.timers import Run

COPIED_BYTES = 1 << 28  # by one device-to-device copy
PRODUCT_SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices


@dataclass(frozen=True)
class Work:
    """What a case cannot do without: bytes read and written once, and floating-point operations.

    ``dtype`` is that of the products, as far as the hardware has units for it: on a GPU the rate is
    measured in it, on a CPU always in float32.
    """

    moved_bytes: int
    flops: int = 0
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Probe:
    """A call that moves ``amount`` bytes, or does ``amount`` operations."""

    kind: Literal["bytes", "operations"]
    amount: int
    run: Run


@dataclass(frozen=True)
class Roofline:
    """Rates a second, and the floor in seconds: the larger of the two times that the work takes."""

    bandwidth: float
    operations: float
    floor: float


def probes(work: Work, place: Place) -> dict[str, Probe]:
    """By name, what to time beside a case."""
    chosen = _copy(place.device, place.quick) if place.cuda else _readers(work.moved_bytes)
    if work.flops:
        side = 128 if place.quick else PRODUCT_SIDE[place.device.type]
        dtype = work.dtype if place.cuda else torch.float32
        chosen = chosen | {"product": _product(place.device, dtype, side)}
    return chosen


def roofline(work: Work, timed: Mapping[str, tuple[Probe, float]]) -> Roofline:
    """From the median seconds of every probe; the fastest of a kind counts."""
    rates: dict[str, float] = {"bytes": 0.0, "operations": 0.0}
    for probe, seconds in timed.values():
        rates[probe.kind] = max(rates[probe.kind], probe.amount / seconds)
    floor = work.moved_bytes / rates["bytes"]
    if work.flops:
        floor = max(floor, work.flops / rates["operations"])
    return Roofline(rates["bytes"], rates["operations"], floor)


def _readers(size: int) -> dict[str, Probe]:
    rows = torch.ones(max(size // 4096, 1), 1024)
    amount = rows.numel() * rows.element_size()
    return {
        "sum": Probe("bytes", amount, partial(torch.sum, rows)),
        "mv": Probe("bytes", amount, lambda: torch.mv(rows, rows[0])),
    }


@cache
def _copy(device: torch.device, quick: bool) -> dict[str, Probe]:
    size = 1 << 20 if quick else COPIED_BYTES
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {"copy": Probe("bytes", 2 * size, lambda: target.copy_(source))}


@cache
def _product(device: torch.device, dtype: torch.dtype, side: int) -> Probe:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return Probe("operations", 2 * side**3, lambda: torch.matmul(a, b, out=out))
