"""A line that moves on a terminal, and nothing at all in a file or a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def moving(label: str, total: int, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """A bar on stderr while a block runs; the function that is given moves it by one."""
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)
