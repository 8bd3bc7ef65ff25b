"""One line on a terminal while patients are predicted; nothing where nobody looks."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator

from beam_jobs.ticks import Ticks, count

_EVERY_S = 0.2


@contextlib.contextmanager
def predicting(total: int | None, *, here: bool) -> Iterator[str]:
    """Shows how many patients were answered for, until the block ends.

    Args:
      total: how many there are, None when it is not known.
      here: whether the workers are on this machine; others cannot tell.

    Yields:
      The file that workers tell of patients in (`beam_jobs.ticks`); "" where nothing is shown.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not (here and console.is_terminal):
        yield ""
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    over = threading.Event()
    with tempfile.TemporaryDirectory() as directory:
        done = Ticks.below(os.fspath(directory)).patients
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("predicting", total=total)

            def follow() -> None:
                while not over.wait(_EVERY_S):
                    progress.update(task, completed=count(done))

            thread = threading.Thread(target=follow, daemon=True)
            thread.start()
            try:
                yield done
            finally:
                over.set()
                thread.join()
