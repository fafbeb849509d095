"""Raw pixels in a graph: grey bytes of any size to a network's normalised input.

The definition of ``archive.images.resize``, as two products with matrices of weights that the graph
computes from the picture's size: the weight of pixel j in output i is proportional to

    max(0, 2 max(n, size) - |(2 j + 1) size - (2 i + 1) n|)          for an axis of n pixels,

whole numbers, so that nothing but one division is rounded. ONNX has ``Resize`` with antialiasing for
this, from opset 18, but is not among the operators that TensorRT was seen to build.
"""

from __future__ import annotations

from collections.abc import Sequence

from cxr_fast.config import LEAST_DEVIATION
from cxr_fast.export.graph import FLOAT, Graph, Value
from cxr_fast.export.network import Maps


def as_input(g: Graph, pixels: Value, size: int) -> Maps:
    """uint8 [N, H, W] -> float32 [N, 1, size, size] from 0 to 1."""
    shape = g.op("Shape", pixels)
    grey = g.cast(pixels, FLOAT)
    rows = _weights(g, _side(g, shape, 1), size)
    columns = g.op("Transpose", _weights(g, _side(g, shape, 2), size), perm=[1, 0])
    resized = g.op("MatMul", g.op("MatMul", rows, grey), columns)
    scaled = g.op("Mul", resized, g.floats(1 / 255))
    return Maps(g.op("Unsqueeze", scaled, g.ints([1])), (size, size))


def picture_size(g: Graph, pixels: Value) -> Value:
    """[1, 2] float32: height and width of pictures [N, H, W]."""
    sides = g.op("Slice", g.op("Shape", pixels), *map(g.ints, ([1], [3], [0])))
    size: Value = g.op("Unsqueeze", g.cast(sides, FLOAT), g.ints([0]))
    return size


def normalised(
    g: Graph, images: Maps, mean: Sequence[float], std: Sequence[float], standardise: bool
) -> Maps:
    """``models.inputs.normalise``: [N, 1, S, S] -> [N, 1 or 3, S, S], as many as means."""
    x = images.value
    if standardise:
        centred = g.op("Sub", x, g.reduce("ReduceMean", x, 1, 2, 3))
        variance = g.reduce("ReduceMean", g.op("Mul", centred, centred), 1, 2, 3)
        deviation = g.op("Max", g.op("Sqrt", variance), g.floats(LEAST_DEVIATION))
        return images._replace(value=g.op("Div", centred, deviation))
    means, deviations = (g.floats([[[[v]] for v in values]]) for values in (mean, std))
    return images._replace(value=g.op("Div", g.op("Sub", x, means), deviations))


def _side(g: Graph, shape: Value, axis: int) -> Value:
    """A scalar int64 of a shape."""
    side: Value = g.op("Gather", shape, g.ints(axis), axis=0)
    return side


def _weights(g: Graph, side: Value, size: int) -> Value:
    """[size, side] float32; rows sum to 1."""
    one, two = g.ints(1), g.ints(2)
    pixel = g.op("Range", g.ints(0), side, one)
    pixel = g.op("Mul", g.op("Add", g.op("Mul", pixel, two), one), g.ints(size))  # [side]
    centre = g.op("Mul", g.ints([[2 * i + 1] for i in range(size)]), side)  # [size, 1]
    reach = g.op("Mul", g.op("Max", side, g.ints(size)), two)
    left = g.op("Sub", reach, g.op("Abs", g.op("Sub", pixel, centre)))
    weight = g.cast(g.op("Max", left, g.ints(0)), FLOAT)
    weights: Value = g.op("Div", weight, g.reduce("ReduceSum", weight, 1))
    return weights
