"""How a network wants its pixels, in the terms of ``InputContract``. Imports nothing of ours."""

from __future__ import annotations


def scaling(
    pixels: tuple[float, float] | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std for grey levels from 0 to 1, of a network that takes (p - mean) / std.

    ``pixels`` are p for black and for white, (0, 1) by default; without mean and std the network takes
    p itself. None where nothing is given, ValueError for what cannot be.
    """
    if (mean is None) != (std is None):
        raise ValueError("--mean and --std go together: give both, or neither")
    if pixels is None and mean is None:
        return None
    low, high = pixels or (0.0, 1.0)
    if not low < high:
        raise ValueError(f"--range must be LOW,HIGH with LOW below HIGH, but is {low:g},{high:g}")
    span = high - low
    return tuple((m - low) / span for m in mean or (0.0,)), tuple(s / span for s in std or (1.0,))
