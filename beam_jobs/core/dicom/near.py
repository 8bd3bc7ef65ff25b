"""Vectors that mean one thing though decimal strings write them differently."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

_MOST = 1e9


class Near:
    """Numbers vectors, the same number for those that differ by rounding.

    Cells of a grid are looked up, so that any number of different vectors costs linear time.

    Args:
      tolerance: by which each component may differ, greater than 0.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._exact: dict[tuple[float, ...], int] = {}
        self._cells: dict[tuple[int, ...], list[tuple[tuple[float, ...], int]]] = defaultdict(list)
        self._count = 0

    def number(self, vector: Sequence[float]) -> int:
        """The vector's number: that of a known one within the tolerance, else a new one.

        -1 is that of all vectors that are not finite, or larger than anything in a room.
        """
        exact = tuple(vector)
        found = self._exact.get(exact)
        if found is None:
            found = self._exact[exact] = self._found(exact)
        return found

    def _found(self, vector: tuple[float, ...]) -> int:
        if not all(abs(x) < _MOST for x in vector):
            return -1
        # Cells of twice the tolerance: what is near lies in two neighbours along each axis.
        width = 2 * self._tolerance
        around = [
            range(
                math.floor((x - self._tolerance) / width),
                math.floor((x + self._tolerance) / width) + 1,
            )
            for x in vector
        ]
        for cell in itertools.product(*around):
            for known, number in self._cells.get(cell, ()):
                if all(abs(x - y) <= self._tolerance for x, y in zip(vector, known, strict=True)):
                    return number
        self._cells[tuple(math.floor(x / width) for x in vector)].append((vector, self._count))
        self._count += 1
        return self._count - 1
