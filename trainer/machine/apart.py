"""What is tried in a process of its own, where a crash or a hang is an answer like any other."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import IO, Any

from beam_jobs.common.cli import log_level
from beam_jobs.common.interrupts import die_with_parent, leave_to_parent

_SERVE = "import sys; sys.path[:] = {path!r}; from trainer.machine.apart import serve; serve()"
_KEPT_BYTES = 1 << 16  # of what a process writes to stderr
# What makes a directory of its own at its import gets that elsewhere, where there is none yet.
_KEEP = {"MPLCONFIGDIR": "~/.cache/matplotlib", "KERAS_HOME": "~/.keras"}
# What a dying process says of its end: of C++, glog, absl and Python.
_LAST_WORDS = re.compile(r"^F\d{4} |Fatal Python error|terminate called|what\(\)|Check failed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """A function, and what it is called with.

    Attributes:
      function: "module:name"; what it gives must be fit for JSON.
      arguments: by name, fit for JSON too.
    """

    function: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a trial.

    Attributes:
      value: what the function gave.
      problem: why it gave nothing, in a line; "" where it did.
      missing: the module that could not be imported, "" where that is not what failed.
      hung: whether it was ended because it took too long.
    """

    value: Any = None
    problem: str = ""
    missing: str = ""
    hung: bool = False


def tried(trials: Sequence[Trial], *, seconds: float) -> Generator[Answer, None, None]:
    """The answers in order, of as few processes as there are crashes and hangs, and one.

    Args:
      trials: they share a process, as long as that lives: what one imports is there for the next.
      seconds: that each may take, its imports among it.
    """
    waiting = list(trials)
    while waiting:
        for answer in _answers(tuple(waiting), seconds):
            del waiting[0]
            yield answer


def _answers(trials: Sequence[Trial], seconds: float) -> Iterator[Answer]:
    """The answers of one process, up to and with that of the trial that ended it."""
    isolated = ["-I"] if sys.flags.isolated else []
    command = [sys.executable, *isolated, "-W", "ignore", "-c", _SERVE.format(path=sys.path)]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            process_group=0,  # with compilers that it starts
        )
    except OSError as error:
        yield Answer(problem=f"no process can be started: {error.strerror}")
        return
    assert child.stdin is not None
    with _ended(child):
        with contextlib.suppress(OSError):  # it died already
            child.stdin.write(json.dumps([dataclasses.asdict(one) for one in trials]).encode())
            child.stdin.close()
        conversation = _Conversation(child)
        for _ in trials:
            line = conversation.line(time.monotonic() + seconds)
            if line is None:
                yield Answer(problem=f"no answer within {seconds:g} s", hung=True)
                return
            if not line:
                yield Answer(problem=_end_of(child.wait(), conversation.stderr))
                return
            yield Answer(**json.loads(line))


def _environment() -> dict[str, str]:
    """Of each process, so that libraries leave no file behind and a GPU's memory to others.

    Without the growth TensorFlow takes all that is free, of whoever trains there meanwhile.
    """
    environ = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", **os.environ}
    with contextlib.suppress(OSError):  # no directory for temporary files
        for variable, directory in _KEEP.items():
            if not os.path.isdir(os.path.expanduser(directory)):
                environ.setdefault(variable, tempfile.gettempdir())
    return environ


@contextlib.contextmanager
def _ended(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ends a child and what it started when the block does."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class _Conversation:
    """What a child writes: answers, a line each, and on stderr whatever its libraries say.

    That is shown where `--log_level` requests it.
    """

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        assert child.stderr is not None
        self._open: list[IO[bytes]] = [child.stdout, child.stderr]
        self._stdout = child.stdout
        self._answers = b""
        self.stderr = b""

    def line(self, deadline: float) -> bytes | None:
        """The next answer; b"" where there is none any more, None where it is not there in time."""
        while b"\n" not in self._answers and self._stdout in self._open:
            ready = select.select(self._open, [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ready:
                return None
            for stream in ready:
                if not (data := os.read(stream.fileno(), _KEPT_BYTES)):
                    self._open.remove(stream)
                elif stream is self._stdout:
                    self._answers += data
                else:
                    if log_level() is not None:
                        with contextlib.suppress(OSError):  # the caller closed it
                            os.write(2, data)
                    self.stderr = (self.stderr + data)[-_KEPT_BYTES:]
        line, _, self._answers = self._answers.partition(b"\n")
        return line


def _end_of(code: int, stderr: bytes) -> str:
    """How a process ended that gave no answer, with its last words."""
    how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if _LAST_WORDS.search(line)] or lines[-1:]
    return _one_line(f"its process ended by {how}{': ' if telling else ''}{''.join(telling[:1])}")


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 300 else f"{words[:299]}..."


def serve() -> None:
    """The child: tries what stands on stdin, and writes the answers to stdout."""
    leave_to_parent()
    die_with_parent()
    # What libraries print is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for trial in json.load(sys.stdin):
        module, _, name = trial["function"].partition(":")
        try:
            found = getattr(importlib.import_module(module), name)(**trial["arguments"])
            answer = Answer(value=found)
        except BaseException as error:  # a panic of a library in Rust is not an Exception
            root = _root(error)
            missing = isinstance(root, ModuleNotFoundError) and root.name
            said = _said(error) if root is error else f"{_said(error)} ({_said(root)})"
            answer = Answer(problem=said, missing=missing or "")
        print(json.dumps(dataclasses.asdict(answer)), file=answers, flush=True)


def _root(error: BaseException) -> BaseException:
    """The missing module for which another import fails, else the error itself."""
    at: BaseException | None = error if isinstance(error, ImportError) else None
    seen = set()
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        if isinstance(at, ModuleNotFoundError):
            return at
        at = at.__cause__ or at.__context__
    return error


def _said(error: BaseException) -> str:
    """An exception's first words, and what it is where they do not tell."""
    if isinstance(error, KeyError | AssertionError) or not str(error).strip():
        return _one_line(f"{type(error).__name__}: {error}".rstrip(": "))
    return _one_line(str(error))
