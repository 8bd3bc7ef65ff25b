"""Ctrl-C, SIGTERM and SIGHUP: a command ends within seconds, with one line, and leaves nothing.

    amid the imports                 at once: nothing is to be tidied yet
    amid the work                    `Interrupted` is raised in the main thread, and blocks tidy up
    swallowed on its way             raised again, ten times a second, until the command has it; at
                                     last the process ends as if the main thread were in C code
    the main thread is in C code     another thread tidies up what is known, and ends the process
    a second signal                  ends the process at once

Python drops what is raised in a `__del__`, a weakref's callback or another one from C, and
libraries catch everything: one Ctrl-C in fifteen came to nothing. A signal that was ignored at the
start, as under `nohup`, stays ignored.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, ClassVar, NoReturn

from beam_jobs.common.files import scratch

# Signal → its word for the user.
_WORDS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated (SIGTERM)",
    signal.SIGHUP: "hung up (SIGHUP)",
}
PARENT = "VOXELBEAM_PARENT"  # an environment variable
_PR_SET_PDEATHSIG = 1  # prctl(2)
_AGAIN_S = 0.1
_MOST_AGAIN = 10  # then whatever drops it all the time shall not be waited for
_STUCK_S = 2.0  # that the main thread may not answer
_TIDY_S = 8.0  # that blocks may take to tidy up
_ONE_S = 0.3  # wrappers pass on what the terminal sent already: within this, it is one
_CHILDREN_S = 2.0
_WATCHER = "signals"


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end.

    A class of its own, for where a KeyboardInterrupt comes amid an `exec` of text, as of a
    dataclass in an import, CPython ends `python -m` by the signal although it was caught.
    """


class _State:
    """What this process knows; a forked child begins anew."""

    prog: ClassVar[str] = ""
    working: ClassVar[bool] = False  # whether an exception finds somebody who catches it
    number: ClassVar[signal.Signals | None] = None  # the first signal
    answered: ClassVar[bool] = False  # the main thread has it
    again: ClassVar[int] = 0  # how often it was raised again
    deadline: ClassVar[float] = 0.0
    line: ClassVar[threading.Lock] = threading.Lock()  # taken by who says it
    silent: ClassVar[bool] = False
    remark: ClassVar[str] = ""
    before: ClassVar[dict[int, Any]] = {}  # handlers
    stderr: ClassVar[int | None] = None  # as it was, whatever a library is muted with meanwhile
    wakeup: ClassVar[int | None] = None  # written by the kernel's handler, read by the watcher


def expect(prog: str) -> bool:
    """From here on signals end this process as they end a command; to be called before imports.

    Args:
      prog: begins the line; "" for a process that has nothing to say.

    Returns:
      Whether it was not so before.
    """
    _State.prog = prog
    if _State.wakeup is not None or threading.current_thread() is not threading.main_thread():
        return False
    read, write = os.pipe()
    os.set_blocking(write, False)
    _State.wakeup = write
    with contextlib.suppress(OSError):  # closed by the caller
        _State.stderr = os.dup(2)
    for number in _WORDS:
        before = signal.getsignal(number)
        if before is not signal.SIG_IGN:
            _State.before[number] = before
            signal.signal(number, _received)
    # The last there is, for it is the first to be registered: Python resets handlers behind it.
    atexit.register(_ignore)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), name=_WATCHER, daemon=True).start()
    return True


def _ignore() -> None:
    """The work is done, and its code is decided."""
    for number in _State.before:
        signal.signal(number, signal.SIG_IGN)


def withdraw() -> None:
    """Signals mean again what they meant before `expect`."""
    if _State.wakeup is None:
        return
    atexit.unregister(_ignore)
    signal.set_wakeup_fd(-1)
    for number, handler in _State.before.items():
        if signal.getsignal(number) is _received:
            signal.signal(number, handler)
    _State.before.clear()
    os.close(_State.wakeup)  # ends the watcher
    if _State.stderr is not None:
        os.close(_State.stderr)
    _State.wakeup = _State.number = _State.stderr = None
    _State.working = _State.answered = False
    _State.remark = ""
    _State.line = threading.Lock()


def leave_to_parent() -> None:
    """Ignores what a terminal sends to all its processes: whoever started this one ends it.

    It is that one's to say so; this one ends without a word.
    """
    _State.silent = True
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def die_with_parent() -> None:
    """Has the kernel kill this process with the thread that started it (on Linux), from now on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with_parent() -> None:
    """`die_with_parent` for a worker, who may come too late for it, and hears no terminal.

    `PARENT` names the process that did, where `multiprocessing` does not know it.
    """
    leave_to_parent()
    if sys.platform == "linux":
        spawned = sys.modules.get("multiprocessing.process")
        started_by = None if spawned is None else spawned.parent_process()
        named = os.environ.get(PARENT) or os.getppid()
        parent = int(named) if started_by is None else started_by.pid
        die_with_parent()
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)


def begin() -> None:
    """From here on signals raise `Interrupted`."""
    _State.working = True


def end() -> None:
    """From here on a signal ends the process at once: nobody catches anything any more."""
    _State.working = False
    if _State.number is not None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def received() -> int | None:
    """The exit code that a signal asked for; None where there was none."""
    return None if _State.number is None else _code(_State.number)


def word() -> str:
    """What the line says of a signal that was received; "" where it is said already."""
    if not _State.line.acquire(blocking=False):  # the other thread was faster
        return ""
    return "" if _State.silent else _WORDS[_State.number or signal.SIGINT]


def remark(text: str) -> None:
    """What the line adds where the process ends at once, amid its work; "" for nothing."""
    _State.remark = text


def allow(seconds: float) -> None:
    """Tidying up may take so long from now on, as a store needs it."""
    _State.deadline = max(_State.deadline, time.monotonic() + seconds)


def stop_work() -> None:
    """Ends what other threads and processes of a command do that got a signal; else does nothing.

    Before a lock is released, so that nobody writes who does not hold it.
    """
    if _State.number is not None:
        scratch.stop_writing()
        end_children()


def other_threads() -> bool:
    """Whether threads are alive beside this module's own and the main one."""
    return any(
        thread is not threading.main_thread() and thread.name != _WATCHER
        for thread in threading.enumerate()
    )


def end_children(seconds: float = _CHILDREN_S) -> None:
    """Ends the processes that this one started: SIGTERM, and SIGKILL for who does not hear it."""
    waiting = _children()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for child in waiting:
            with contextlib.suppress(OSError):
                os.kill(child, number)
        deadline = time.monotonic() + seconds
        while (waiting := [child for child in waiting if _lives(child)]) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.01)


def _children() -> list[int]:
    """Processes that this one started and that live; none where the system does not say."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children") as stream:
                found += map(int, stream.read().split())
    # multiprocessing's tracker ends by itself with this process, and does not hear SIGTERM.
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    spared = getattr(getattr(tracker, "_resource_tracker", None), "_pid", None)
    return [child for child in found if child != spared]


def _lives(child: int) -> bool:
    """Whether a child still runs; who waits for it may still do so."""
    with contextlib.suppress(OSError):
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    return False


def _code(number: signal.Signals) -> int:
    return 128 + number


def _received(number: int, _: FrameType | None) -> None:
    """Python's handler, run in the main thread between two of its instructions."""
    _State.number = _State.number or signal.Signals(number)
    if not _State.working:
        _end_now()
    if _State.answered:  # the watcher decides
        return
    allow(_TIDY_S)
    _State.answered = True
    # What is dropped on its way is raised again; what threads and C code say of it is of no use.
    sys.unraisablehook = lambda _: None
    threading.excepthook = lambda _: None
    signal.signal(signal.SIGALRM, _again)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
    raise Interrupted


def _again(*_: object) -> None:
    """Raises again, unless what was raised is on its way: blocks that tidy up run to their end."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, Interrupted):
            return
        error = error.__context__
    if _State.working:
        _State.again += 1
        if _State.again > _MOST_AGAIN:
            _end_now()
        raise Interrupted


def _watch(read: int) -> None:
    """The thread that the kernel's handler wakes, whatever the main thread does."""
    first: float | None = None
    while True:
        if select.select([read], [], [], None if first is None else _AGAIN_S)[0]:
            if not (data := os.read(read, 64)):
                os.close(read)
                return
            numbers = [number for number in data if number in list(_WORDS)]
            if numbers and first is None:
                first = time.monotonic()
                _State.number = _State.number or signal.Signals(numbers[0])
            elif numbers and time.monotonic() > (first or 0) + _ONE_S:
                _end_now(children_s=0.0)
        now = time.monotonic()
        if first is not None and (
            now > _State.deadline if _State.answered else now > first + _STUCK_S
        ):
            _end_now()


def _end_now(children_s: float = _CHILDREN_S) -> NoReturn:
    """Ends the process without anybody's tidying up: files, directories and processes go here."""
    number = _State.number or signal.SIGINT
    if _State.prog and _State.stderr is not None and (said := word()):
        # A progress bar hid the cursor.
        shown = "\x1b[?25h" if os.isatty(_State.stderr) else ""
        with contextlib.suppress(OSError):
            more = f": {_State.remark}" if _State.remark else ""
            line = f"{shown}{_State.prog}: error: {said}{more}\n"
            os.write(_State.stderr, line.encode(errors="replace"))
    with contextlib.suppress(Exception):
        scratch.stop_writing()
        end_children(children_s)
        scratch.remove_all()
    os._exit(_code(number))


# A forked child is no command: signals end it as they end any process.
os.register_at_fork(after_in_child=withdraw)
