"""One line on a terminal while patients are predicted; nothing off a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

from beam_jobs.common import terminal
from beam_jobs.common.cli import is_quiet
from beam_jobs.common.progress_files import Ticks, count

_EVERY_S = 0.2


@contextlib.contextmanager
def predicting(total: int | None, *, here: bool) -> Iterator[str]:
    """Shows how many patients were answered for, until the block ends.

    Args:
      total: how many there are, None when it is not known.
      here: whether the workers are on this machine; others have no way to report.

    Yields:
      The file that workers count patients in (`progress_files`); "" where nothing is shown.
    """
    if not (here and sys.stderr.isatty()) or is_quiet():
        yield ""
        return
    over = threading.Event()
    with tempfile.TemporaryDirectory() as directory:
        done = Ticks.below(os.fspath(directory)).patients
        with terminal.progress() as bars:
            task = bars.add_task("predicting", total=total)

            def follow() -> None:
                while not over.wait(_EVERY_S):
                    bars.update(task, completed=count(done))

            thread = threading.Thread(target=follow, daemon=True)
            thread.start()
            try:
                yield done
            finally:
                over.set()
                thread.join()
