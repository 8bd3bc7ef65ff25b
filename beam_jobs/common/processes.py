"""Work in several processes of this machine, which end with the one that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker
from typing import TypeVar

from beam_jobs.common.interrupts import end_with_parent

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_processes(
    work: Callable[[_Item], _Result], items: Sequence[_Item], workers: int
) -> Generator[_Result, None, None]:
    """What `work` makes of each item, in their order; whatever ends it early ends its processes.

    Args:
      work: to be pickled.
      items: likewise.
      workers: processes, at most one an item.

    Raises:
      BrokenProcessPool: a process died, as for its memory.
    """
    # Spawned, not forked: the caller may hold threads (TensorFlow's, Beam's).
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with contextlib.ExitStack() as stack:
        try:
            with _signals_held_back():
                pool = stack.enter_context(
                    ProcessPoolExecutor(
                        min(workers, len(items)), mp_context=context, initializer=end_with_parent
                    )
                )
                # Not `map`: it cancels what waits, on which the pool of Python 3.11 trips when
                # its processes end.
                waiting = [pool.submit(work, item) for item in items]
            waiting.reverse()
            while waiting:
                yield waiting.pop().result()
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Processes started meanwhile never receive what a terminal sends to all of its own.

    Their parent ends them; their own tracebacks would say nothing. It receives Ctrl-C afterwards.
    """
    resource_tracker.ensure_running()  # else it starts meanwhile, and lets Ctrl-C through again
    received: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    # The mask is for the processes, which inherit it. Here another thread, of a library, may still
    # take the signal, and Python would raise in the middle of a process's start.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    if in_main_thread:
        handler = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if received:
        signal.raise_signal(signal.SIGINT)
