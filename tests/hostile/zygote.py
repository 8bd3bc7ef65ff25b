"""A process that has imported what commands need and forks one for each case: 20 ms, not 5 s.

`python -m tests.hostile.zygote FLAVOUR` is that process. It reads requests from stdin, a line of
JSON each, and answers on stdout. In the child the command's module runs as `__main__`, down to the
interpreter's end, as `python -m MODULE` would have it: in a session of its own, under its own
directory, environment, limits and streams. What the child has started ends with it: the zygote is
the reaper of all that it comes to be a parent of, and counts their memory.

RLIMIT_AS is no limit here, for TensorFlow maps more than it uses: resident memory is looked at
every 20 ms instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import importlib
import io
import json
import os
import pty
import resource
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.hostile.processes import heed_signals, slowdown

ROOT = Path(__file__).resolve().parents[2]
CONSOLE = "voxelbeam"

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.02
# Of what a case has started and left behind, as multiprocessing's tracker; times the slowdown.
_GRACE_S = 2.0
_MOST_OUTPUT = 4 << 20
# Modules, heavy ones first, whose import is not to be waited for. A command's own is forgotten
# again, so that it runs as `__main__` without runpy's warning.
_LIBRARIES = {
    "beam": ("apache_beam", "beam_jobs.convert.job", "beam_jobs.report.make"),
    "tensorflow": (
        "tensorflow", "keras", "apache_beam", "serving.predict.job", "serving.export",
        "trainer.api", "trainer.tune", "trainer.baseline", "trainer.evaluate", "trainer.saliency",
        "serving.batch_predict", "serving.check_submission", "sklearn.ensemble",
        "matplotlib.pyplot", "trainer.search.tuner", "trainer.search.oracles.make_oracle",
        "trainer.search.trial_process", "trainer.reports.study", "trainer.reports.evaluation",
        "tensorboard.plugins.hparams.api",
    ),
}  # fmt: skip
_COMMANDS = ("trainer.tune", "trainer.baseline", "trainer.evaluate", "trainer.saliency",
             "serving.export", "serving.batch_predict", "serving.check_submission")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a case ended.

    Attributes:
      code: exit code; None where a signal ended it.
      signal: that signal; None where it exited.
      stdout: what it printed, bytes that are no UTF-8 as lone surrogates.
      stderr: the same of stderr.
      seconds: wall clock, from fork to end.
      peak_bytes: resident memory of its greatest process at its greatest, the libraries' included.
      slowdown: wall clock for each second that its first thread computed, or could have: how busy
        the machine was; 1 where the system does not say.
      killed: "timeout" or "memory" where the harness ended it, else "".
      left: paths that it left in its TMPDIR.
      left_processes: command lines of what it had started and did not end.
    """

    code: int | None
    signal: int | None
    stdout: str
    stderr: str
    seconds: float
    peak_bytes: int
    slowdown: float = 1.0
    killed: str = ""
    left: tuple[str, ...] = ()
    left_processes: tuple[str, ...] = ()


def flavour_of(module: str) -> str:
    """The flavour of zygote that a command is forked from."""
    return "beam" if module.split(".")[0] in ("beam_jobs", CONSOLE) else "tensorflow"


class Zygote:
    """The client's side: starts the process when it is first needed.

    Args:
      flavour: "beam", or "tensorflow", which has Beam too.
      python: of the environment to try.
    """

    def __init__(self, flavour: str, *, python: str = sys.executable) -> None:
        self._flavour, self._python = flavour, python
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self,
        module: str,
        arguments: Sequence[object],
        *,
        cwd: Path,
        env: Mapping[str, str],
        streams: Path,
        timeout: float = 60.0,
        limits: Mapping[str, int] | None = None,
        memory: int = 3 << 29,
        terminal: bool = False,
        signal_after: tuple[float, int] | None = None,
    ) -> Outcome:
        """Runs a command to its end.

        Args:
          module: the command's, or "voxelbeam".
          arguments: those behind it.
          cwd: directory it starts in.
          env: its whole environment.
          streams: existing directory for the files that catch stdout and stderr.
          timeout: seconds after which it is killed.
          limits: name of a resource limit ("RLIMIT_NOFILE") → soft and hard limit.
          memory: resident bytes of one process, or half of those of all its processes, above which
            it is killed.
          terminal: stdout and stderr are terminals, 100 columns wide.
          signal_after: seconds, and the signal that its process group then gets.

        Raises:
          RuntimeError: the zygote itself has died.
        """
        request = {
            "module": module,
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd),
            "env": dict(env),
            "streams": str(streams),
            "timeout": timeout,
            "limits": {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 2 << 30, **(limits or {})},
            "memory": memory,
            "terminal": terminal,
            "signal_after": signal_after,
        }
        answer = self._ask(request)
        texts: dict[str, Any] = {}
        for name in ("stdout", "stderr"):
            with (streams / name).open("rb") as stream:
                texts[name] = stream.read(_MOST_OUTPUT).decode("utf-8", "surrogateescape")
        tmp = Path(cwd, env["TMPDIR"]) if env.get("TMPDIR") else None
        left = sorted(str(p.relative_to(tmp)) for p in tmp.rglob("*")) if tmp else []
        answer["left_processes"] = tuple(answer["left_processes"])
        return Outcome(**answer, **texts, left=tuple(left))

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                [self._python, "-m", "tests.hostile.zygote", self._flavour],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request).encode() + b"\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the {self._flavour} zygote ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process; its stdin's end tells it."""
        if self._process is not None:
            self._process.communicate()
            self._process = None


class Zygotes:
    """A zygote of each flavour, as they are needed; a context that ends them."""

    def __init__(self) -> None:
        self._zygotes: dict[str, Zygote] = {}

    def of(self, module: str) -> Zygote:
        """The one that a command is forked from."""
        flavour = flavour_of(module)
        return self._zygotes.setdefault(flavour, Zygote(flavour))

    def __enter__(self) -> Zygotes:
        return self

    def __exit__(self, *_: object) -> None:
        for zygote in self._zygotes.values():
            zygote.close()


def _serve(flavour: str) -> dict[str, Any] | None:
    """Answers requests until there are no more: None. In each child, returns its request."""
    requests, answers = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    heed_signals()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if flavour == "tensorflow":
        importlib.import_module("beam_jobs.common.imports").quiet_tensorflow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Google's libraries quarrel with this Python
        for name in _LIBRARIES[flavour]:
            importlib.import_module(name)
    for name in _COMMANDS:
        sys.modules.pop(name, None)
    gc.collect()
    gc.freeze()
    for line in os.fdopen(os.dup(requests), "rb", buffering=0):
        request: dict[str, Any] = json.loads(line)
        masters: list[int] = []
        slaves: list[int] = []
        if request["terminal"]:
            pairs = [pty.openpty() for _ in range(2)]
            masters, slaves = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        else:
            for name in ("stdout", "stderr"):
                path = os.path.join(request["streams"], name)
                slaves.append(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        pid = os.fork()
        if pid == 0:
            os.setsid()
            for fd, slave in enumerate(slaves, start=1):
                os.dup2(slave, fd)
            for fd in (requests, answers, *masters, *slaves):
                os.close(fd)
            return request
        for fd in slaves:
            os.close(fd)
        answer = _watch(pid, request, requests, masters)
        os.write(answers, json.dumps(answer).encode() + b"\n")
    return None


def _watch(
    pid: int, request: Mapping[str, Any], requests: int, masters: Sequence[int]
) -> dict[str, Any]:
    """Waits for a child's end, or brings it about."""
    start = time.monotonic()
    signal_after = request["signal_after"]
    peak, killed, slow = 0, "", 1.0
    sinks = {
        master: open(os.path.join(request["streams"], name), "wb")  # noqa: SIM115
        for master, name in zip(masters, ("stdout", "stderr"), strict=False)
    }
    while True:
        slow = slowdown(pid) or slow
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        family = list(_descendants(os.getpid()))
        resident = [_resident(member) for member in family]
        peak = max([peak, *resident])
        seconds = time.monotonic() - start
        if signal_after and seconds >= signal_after[0]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal_after[1])
            signal_after = None
        too_large = max(resident, default=0) > request["memory"]
        if too_large or sum(resident) > 2 * request["memory"]:
            killed = "memory"
        elif seconds > request["timeout"]:
            killed = "timeout"
        if killed:
            _kill(family)
        readable, _, _ = select.select([requests, *sinks], [], [], _POLL_S)
        if requests in readable:  # nobody waits for the answer any more
            _kill(family)
            os._exit(1)
        _drain(sinks, [fd for fd in readable if fd in sinks])
    seconds = time.monotonic() - start
    left = _end_what_is_left(_GRACE_S * slow)
    _drain(sinks, list(sinks))
    for master, sink in sinks.items():
        sink.close()
        os.close(master)
    return {
        "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "seconds": seconds,
        "peak_bytes": max(peak, usage.ru_maxrss * 1024),
        "slowdown": slow,
        "killed": killed,
        "left_processes": left,
    }


def _drain(sinks: Mapping[int, io.BufferedWriter], fds: Sequence[int]) -> None:
    """Takes what terminals hold."""
    for fd in fds:
        while select.select([fd], [], [], 0)[0]:
            try:
                data = os.read(fd, 1 << 16)
            except OSError:  # its other side is closed: Linux says EIO
                break
            if not data:
                break
            sinks[fd].write(data)


def _descendants(pid: int) -> Iterator[int]:
    """All processes below one."""
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
                for child in map(int, children):
                    yield child
                    yield from _descendants(child)


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


def _kill(family: Sequence[int]) -> None:
    for member in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def _end_what_is_left(seconds: float) -> list[str]:
    """Waits a moment for the processes that a case leaves behind, kills them and says which."""
    until = time.monotonic() + seconds
    named: set[str] = set()
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        family = list(_descendants(os.getpid()))
        if not family:
            return sorted(named)
        if time.monotonic() > until:
            for member in family:
                with contextlib.suppress(OSError):
                    line = Path(f"/proc/{member}/cmdline").read_bytes().replace(b"\0", b" ")
                    named.add(line.decode(errors="replace").strip()[:200])
            _kill(family)
        time.sleep(0.01)


def _stream(fd: int, request: Mapping[str, Any]) -> io.TextIOWrapper:
    """stdout or stderr as the interpreter makes them when it starts."""
    return io.TextIOWrapper(
        open(fd, "wb", closefd=False),
        encoding=request["env"].get("PYTHONIOENCODING", "utf-8"),
        errors="strict" if fd == 1 else "backslashreplace",
        line_buffering=fd == 2 or request["terminal"],
    )


def _become(request: Mapping[str, Any]) -> None:
    """Runs the command in this process, which is the case's own from here on."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None
    sys.dont_write_bytecode = bool(request["env"].get("PYTHONDONTWRITEBYTECODE"))
    for name, limit in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _stream(1, request)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, request)  # type: ignore[misc]
    sys.argv = [request["module"], *request["arguments"]]
    if request["module"] == CONSOLE:
        from beam_jobs.common.console import main

        main()
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if (_request := _serve(sys.argv[1])) is not None:
        _become(_request)
