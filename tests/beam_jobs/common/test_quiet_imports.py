"""Notes of compiled libraries are dropped; all else arrives, a crash's last words too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from beam_jobs.common.imports import without_notes

ROOT = Path(__file__).resolve().parents[3]

NOTES = (
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n",
    b"I0000 00:00:1795456895.429440   26804 service.cc:146] XLA service initialized\n",
    b"W1123 18:01:06.123456   26804 ptxas.cc:3] older than the driver\n",
    b"I0000 00:00:1795773009.575446    9560 rendezvous.cc:4] End\n\t [[{{node Next}}]]\n",
    b"E0000 00:00:1739987412.1 99 cuda_fft.cc:485] Unable to register cuFFT factory: Attempting\n",
)
TOLD = (
    b"E0000 00:00:1795456895.429440   26804 cuda.cc:1] out of memory\n",
    b"Initialised 4 devices, I0000 and all\n",
    b"I am no note, nor is\n\t this\n",
    b"WARNING: the disk is nearly full\n",
    b"no line end",
)


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VOXELBEAM_LOG_LEVEL", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)


def test_notes_are_dropped_and_errors_arrive(capfd: pytest.CaptureFixture[str]) -> None:
    with without_notes():
        for lines in zip(NOTES, TOLD, strict=True):
            os.write(2, b"".join(lines))
    os.write(2, NOTES[1])  # outside it nothing is kept back
    assert capfd.readouterr().err.encode() == b"".join((*TOLD, NOTES[1]))


def test_what_was_said_before_a_failure_arrives_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with without_notes():
            os.write(2, TOLD[0] + NOTES[0])
            raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        fail()
    assert capfd.readouterr().err.encode() == TOLD[0]


@pytest.mark.parametrize(
    ("name", "value"), [("VOXELBEAM_LOG_LEVEL", "info"), ("TF_CPP_MIN_LOG_LEVEL", "0")]
)
def test_who_requests_the_libraries_messages_has_them(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    with without_notes():
        os.write(2, NOTES[1])
    assert capfd.readouterr().err.encode() == NOTES[1]


def test_where_no_process_can_be_started_all_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    before = set(os.listdir("/proc/self/fd"))
    with without_notes():
        os.write(2, NOTES[1])
    assert capfd.readouterr().err.encode() == NOTES[1]
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_process_that_outlives_the_block_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("beam_jobs.common.imports._LAST_WORDS", 0.1)
    begun = time.monotonic()
    with without_notes():
        left = subprocess.Popen(["sleep", "60"])
        os.write(2, NOTES[1] + TOLD[0])
    try:
        assert time.monotonic() - begun < 10
        assert capfd.readouterr().err.encode() == TOLD[0]
    finally:
        left.kill()
        left.wait()


def importing(tmp_path: Path, body: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A process that imports a TensorFlow which says all of it, and then does `body`.

    It asks first whether there is one, as libraries do.
    """
    says = f"import os, sys\nos.write(2, {b''.join((*NOTES, *TOLD))!r})\n"
    (tmp_path / "tensorflow.py").write_text(says + textwrap.dedent(body))
    code = (
        "import importlib.util\n"
        "from beam_jobs.common.imports import quiet_tensorflow\n"
        "quiet_tensorflow()\n"
        "assert importlib.util.find_spec('tensorflow')\n"
        "import tensorflow, os\n"
        "os.write(2, b'|later')\n"
    )
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )


def test_tensorflow_is_imported_without_its_notes(tmp_path: Path) -> None:
    done = importing(tmp_path, "sys.stderr.write(', Python says')")
    assert (done.returncode, done.stderr) == (0, b"".join(TOLD) + b", Python says|later")
    done = importing(tmp_path, "", VOXELBEAM_LOG_LEVEL="debug")
    assert done.stderr == b"".join((*NOTES, *TOLD)) + b"|later"


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("raise ImportError('no such library')", 1, b"ImportError: no such library"),
        ("raise KeyboardInterrupt", -signal.SIGINT, b"KeyboardInterrupt"),
        ("os.write(2, b'Illegal instruction'); os.abort()", -signal.SIGABRT, b"instruction"),
        ("os.write(2, b'Killed'); os.kill(os.getpid(), 9)", -signal.SIGKILL, b"Killed"),
        ("os.write(2, b'Gone'); os._exit(3)", 3, b"Gone"),
    ],
)
def test_an_import_that_ends_otherwise_loses_no_word(
    tmp_path: Path, body: str, code: int, words: bytes
) -> None:
    done = importing(tmp_path, body)
    assert done.returncode == code
    assert done.stderr.startswith(b"".join(TOLD))
    assert words in done.stderr
    assert not any(note in done.stderr for note in NOTES)
    assert b"later" not in done.stderr
