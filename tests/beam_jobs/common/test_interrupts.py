"""Signals end a command within seconds, in one line, whatever it is doing, and leave nothing."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from beam_jobs.common import interrupts
from tests.test_walls import COMMANDS, FILES

ROOT = Path(__file__).resolve().parents[3]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
HEAD = """
import contextlib, ctypes, gc, hashlib, os, signal, subprocess, sys, tempfile, threading, time
import weakref
from pathlib import Path
from beam_jobs.common import cli
from beam_jobs.common.files import interface as files

def main(argv):
"""
DELETED = """
class Slow:
    def __del__(self):
        time.sleep(0.05)
print("begun", flush=True)
while True:
    Slow()
"""
WEAKLY = """
class Thing:
    pass
print("begun", flush=True)
while True:
    thing = Thing()
    reference = weakref.ref(thing, lambda _: time.sleep(0.05))
    del thing
"""
CALLED_FROM_C = """
compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(
    lambda a, b: time.sleep(0.02) or 0)
print("begun", flush=True)
while True:
    ctypes.CDLL(None).qsort((ctypes.c_int * 9)(), 9, 4, compare)
"""
CAUGHT = """
print("begun", flush=True)
while True:
    with contextlib.suppress(BaseException):
        time.sleep(0.05)
"""
IN_C = """
print("begun", flush=True)
hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)
"""
MUTED_IN_C = """
print("begun", flush=True)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)
"""
BECOMES_ANOTHER = """
try:
    print("begun", flush=True)
    time.sleep(60)
except KeyboardInterrupt as error:
    raise RuntimeError("an operation was cancelled") from error
"""
BODIES = {
    "deleted": DELETED,
    "weakly": WEAKLY,
    "called from C": CALLED_FROM_C,
    "caught": CAUGHT,
    "in C": IN_C,
    "in C, stderr muted": MUTED_IN_C,
    "becomes another": BECOMES_ANOTHER,
}


@contextmanager
def begun(
    body: str, tmp_path: Path, ignored: signal.Signals | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A command that has printed that it has begun."""
    text = HEAD + "".join(f"    {line}\n" for line in body.strip().splitlines())
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", text + "cli.run(main, 'python -m some.command')"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp), "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: [
            signal.signal(n, signal.SIG_IGN if n == ignored else signal.SIG_DFL) for n in CODES
        ],
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "begun\n", process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], within: float = 4.0) -> tuple[int, str]:
    """Exit code and stderr."""
    _, err = process.communicate(timeout=within)
    return process.returncode, err


WORDS: dict[int, str] = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated (SIGTERM)",
    signal.SIGHUP: "hung up (SIGHUP)",
}


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(n, marks=pytest.mark.slow) for n in (15, 1))],
)
def test_a_signal_ends_a_command_with_its_code_and_a_line(number: int, tmp_path: Path) -> None:
    body = """
(Path(tempfile.gettempdir()) / "of-a-library").touch()
try:
    print("begun", flush=True)
    time.sleep(60)
finally:
    time.sleep(0.4)
    Path("tidied").touch()
"""
    with begun(body, tmp_path) as process:
        process.send_signal(number)
        line = f"python -m some.command: error: {WORDS[number]}\n"
        assert ended(process) == (128 + number, line)
    assert (tmp_path / "tidied").exists()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(body, id=name, marks=[] if name == "deleted" else [pytest.mark.slow])
        for name, body in BODIES.items()
    ],
)
def test_no_signal_is_swallowed(body: str, tmp_path: Path) -> None:
    with begun(body, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, "python -m some.command: error: interrupted\n")


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    body = """
try:
    print("begun", flush=True)
    time.sleep(60)
finally:
    time.sleep(60)
"""
    with begun(body, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert ended(process, 1.0) == (130, "python -m some.command: error: interrupted\n")


@pytest.mark.slow
def test_what_was_ignored_at_the_start_stays_ignored(tmp_path: Path) -> None:
    body = """
print("begun", flush=True)
time.sleep(0.5)
"""
    with begun(body, tmp_path, ignored=signal.SIGHUP) as process:
        process.send_signal(signal.SIGHUP)
        assert ended(process) == (0, "")


@pytest.mark.slow
def test_threads_leave_no_half_of_a_file_and_processes_none_of_themselves(tmp_path: Path) -> None:
    body = """
def write():
    while True:
        with files.open_write("out/file") as stream:
            stream.write(b"x" * 3_000_000)
            time.sleep(0.02)
for _ in range(4):
    threading.Thread(target=write, daemon=True).start()
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(); time.sleep(60)"
children = [subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)]
children.append(subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE))
children[1].stdout.readline()
Path("children").write_text(" ".join(str(child.pid) for child in children))
print("begun", flush=True)
time.sleep(60)
"""
    with begun(body, tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        assert ended(process, 6.0)[0] == 143
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"file"}
    for child in (tmp_path / "children").read_text().split():
        status = Path(f"/proc/{child}/stat")  # init may not have fetched it yet
        assert not status.exists() or ") Z " in status.read_text()


@pytest.mark.slow
def test_what_threads_write_until_the_very_end_does_not_stay(tmp_path: Path) -> None:
    body = """
def litter():
    while True:
        with contextlib.suppress(OSError):
            tempfile.mkdtemp()
        time.sleep(0.0005)
for _ in range(3):
    threading.Thread(target=litter, daemon=True).start()
print("begun", flush=True)
time.sleep(60)
"""
    with begun(body, tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        assert ended(process, 6.0)[0] == 143
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_a_forked_process_is_no_command(tmp_path: Path) -> None:
    body = """
child = os.fork()
if child == 0:
    time.sleep(60)
time.sleep(0.1)
os.kill(child, signal.SIGTERM)
assert os.waitpid(child, 0)[1] == signal.SIGTERM
print("begun", flush=True)
time.sleep(0.3)
"""
    with begun(body, tmp_path) as process:
        assert ended(process) == (0, "")


@pytest.mark.slow
def test_signals_are_expected_before_the_imports(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        'if __name__ == "__main__":\n'
        "    from beam_jobs.common.interrupts import expect\n"
        '    expect("python -m slow")\n'
        "    print('begun', flush=True)\n"
        "import time\n"
        "time.sleep(60)  # a large import\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "slow"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "python -m slow: error: terminated (SIGTERM)\n")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_expects_signals_in_its_first_lines(name: str) -> None:
    statements = ast.parse(FILES[name].read_text()).body
    first = next(
        node
        for node in statements[1:]
        if not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
    )
    prog = name.removesuffix(".__main__")
    assert isinstance(first, ast.If)
    assert ast.unparse(first) == (
        "if __name__ == '__main__':\n"
        "    from beam_jobs.common.interrupts import expect\n"
        f"    expect('python -m {prog}')"
    )


def test_a_worker_whose_command_ended_before_it_looked_ends_too():
    """It took who had inherited it for its parent, and waited for ever."""
    code = "from beam_jobs.common import interrupts; interrupts.end_with_parent(); print('works')"
    for parent, said in ((os.getpid(), "works\n"), (1, "")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=30,
            env={**os.environ, interrupts.PARENT: str(parent)},
        )  # fmt: skip
        assert done.stdout == said
