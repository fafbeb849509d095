"""The pixels of maps [N, C, H, W] in a graph: their numbers, their coordinates, their count.

Constants where H and W are known when the graph is written, computed from the shape of a map where they
are not. Everything is float32, which holds integers up to 2 ** 24 exactly.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from cxr_fast.export.graph import FLOAT, Graph, Value


class Grid:
    """H x W of ``maps`` [N, C, H, W]; ``size`` is (H, W) where it is fixed."""

    def __init__(self, graph: Graph, maps: Value, size: tuple[int, int] | None) -> None:
        self.graph = graph
        self.maps = maps
        self.size = size

    @cached_property
    def sides(self) -> Value:
        """[H, W] int64."""
        if self.size:
            return self.graph.ints(self.size)
        shape = self.graph.op("Shape", self.maps)
        sides: Value = self.graph.op("Slice", shape, *map(self.graph.ints, ([2], [4], [0])))
        return sides

    @cached_property
    def height(self) -> Value:
        """H, [1] float32."""
        return self._side(0)

    @cached_property
    def width(self) -> Value:
        """W, [1] float32."""
        return self._side(1)

    @cached_property
    def position(self) -> Value:
        """[1, 1, H, W]: 0 to H * W - 1, row-major."""
        if self.size:
            height, width = self.size
            return self.graph.floats(np.arange(height * width).reshape(1, 1, height, width))
        g = self.graph
        y, x = self._axes
        position: Value = g.op("Add", g.op("Mul", y, self.width), x)
        return position

    @cached_property
    def area(self) -> Value:
        """H * W, [1] float32."""
        if self.size:
            return self.graph.floats([math.prod(self.size)])
        area: Value = self.graph.op("Mul", self.height, self.width)
        return area

    @cached_property
    def row_numbers(self) -> tuple[Value, Value]:
        """H - y and y + 1 for each row, [H] float32.

        Of a set of rows, the greatest of each are H - y1 and y2 of its box.
        """
        return self._numbers(0, self.height)

    @cached_property
    def column_numbers(self) -> tuple[Value, Value]:
        """W - x and x + 1 for each column, [W] float32."""
        return self._numbers(1, self.width)

    def _numbers(self, axis: int, side: Value) -> tuple[Value, Value]:
        g = self.graph
        if self.size:
            number = np.arange(self.size[axis])
            return g.floats(self.size[axis] - number), g.floats(number + 1)
        counted = self.count(side)
        return g.op("Sub", side, counted), g.op("Add", counted, g.floats(1.0))

    @property
    def _axes(self) -> tuple[Value, Value]:
        """The numbers of rows [1, 1, H, 1] and of columns [1, 1, 1, W], where no size is fixed."""
        g = self.graph
        y = g.op("Reshape", self.count(self.height), g.ints([1, 1, -1, 1]))
        x = g.op("Reshape", self.count(self.width), g.ints([1, 1, 1, -1]))
        return y, x

    def count(self, end: Value) -> Value:
        """0 to end - 1 for a float32 [1]: float32 [end]."""
        g = self.graph
        scalar = g.op("Squeeze", end, g.ints([0]))
        counted: Value = g.op("Range", g.floats(0.0), scalar, g.floats(1.0))
        return counted

    def _side(self, axis: int) -> Value:
        if self.size:
            return self.graph.floats([self.size[axis]])
        side = self.graph.op("Gather", self.sides, self.graph.ints([axis]), axis=0)
        return self.graph.cast(side, FLOAT)
