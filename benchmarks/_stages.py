"""Where the time from files to a volume goes: clocks around the project's own functions.

A stage's time is its own: what it calls that has a clock too is not in it.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
from scipy.linalg import blas

from beam_jobs.core import preprocess, reduction, resample
from beam_jobs.core.dicom import pixels

HEADER, ORDER, READ, BLANK = "header", "order", "read", "blank, box"
CONVERT, ROWS, SLICES, COLUMNS = "to float", "row product", "slices", "columns"
GRID, SCALING, REST = "weights, grid", "scaling", "rest"
STAGES = (HEADER, ORDER, READ, BLANK, CONVERT, ROWS, SLICES, COLUMNS, GRID, SCALING, REST)

# Where a stage's functions are looked up when they are called.
_CLOCKED: tuple[tuple[Any, str, str], ...] = (
    (pixels._NativeReader, "read", READ),
    (pixels, "is_blank", BLANK),
    (reduction, "_grown", BLANK),
    (blas, "sgemm", ROWS),
    (blas, "saxpy", SLICES),
    (resample, "reduce_stack", SLICES),
    (resample, "axis_weights", GRID),
    (resample, "_crop", GRID),
    (preprocess, "grid_centre", GRID),
    (preprocess, "_scale", SCALING),
)


class Stages:
    """Seconds a stage, added up as long as `clocked`."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._open = [REST]
        self._since = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The block's time is the stage's."""
        self._turn(name)
        try:
            yield
        finally:
            self._turn(None)

    @contextlib.contextmanager
    def clocked(self) -> Iterator[None]:
        """Clocks around the project's functions while the block runs."""
        passes = reduction._Banded.__call__
        with contextlib.ExitStack() as stack:
            for owner, name, stage in _CLOCKED:
                around = self._around(getattr(owner, name), stage)
                stack.enter_context(mock.patch.object(owner, name, around))
            stack.enter_context(
                mock.patch.object(reduction._Banded, "__call__", self._passes(passes))
            )
            self._since = time.perf_counter()
            yield

    def _around(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def clocked(*args: Any, **kwargs: Any) -> Any:
            # Of the columns' pass no part is another stage's.
            self._turn(COLUMNS if self._open[-1] == COLUMNS else stage)
            try:
                return function(*args, **kwargs)
            finally:
                self._turn(None)

        return clocked

    def _passes(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(banded: Any, matrix: Any) -> Any:
            # Rows are of stored integers, columns of the rows' results.
            self._turn(COLUMNS if matrix.dtype == np.float32 else CONVERT)
            try:
                return function(banded, matrix)
            finally:
                self._turn(None)

        return clocked

    def _turn(self, stage: str | None) -> None:
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now
        if stage is None:
            self._open.pop()
        else:
            self._open.append(stage)
