"""A disk that refuses a trial's process ends the search, and says nothing of the trial."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs.common.cli import CommandError
from beam_jobs.common.files import interface as files
from trainer.config.run_layout import HISTORY_COLUMNS
from trainer.search import trial_process
from trainer.search.attempts import run_trial
from trainer.search.trial import BROKEN, FIRST_REFUSAL, RESULT_NAME, Request
from trainer.training.checkpoint import FoldState, load_state, save_network, save_state

REQUEST = Request(
    trial="0001", values={}, config={"batch_size": 8}, data="data", folds=(0,),
    dataset_fingerprint="f", cache="none", logs="logs", memory=None,
)  # fmt: skip


def ending(code: int, text: str) -> list[str]:
    """A command that writes a line and exits."""
    return [sys.executable, "-c", f"import sys; print({text!r}); sys.exit({code})"]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (FIRST_REFUSAL + files.REFUSALS.index(errno.ENOSPC), ""),  # the log took nothing more
        (1, "2026 W tensorflow RESOURCE_EXHAUSTED: /d/x; No space left on device"),
        (1, "python -m trainer.search.trial_process: error: /d/x: No space left on device"),
    ],
)
def test_a_full_disk_is_no_trials_fault(tmp_path: Path, code: int, text: str) -> None:
    with pytest.raises(OSError, match="No space left on device") as raised:
        run_trial(tmp_path, REQUEST, ending(code, text))
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path))
    assert not (tmp_path / RESULT_NAME).exists()
    again = run_trial(tmp_path, REQUEST, ending(1, "ValueError: no such layer"))
    assert again["kind"] == BROKEN  # it is tried again, and what is its fault still is


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/d/state.npz"),
        CommandError("cache file in /tmp, 0 MB so far: No space left on device"),
    ],
)
def test_a_trials_process_tells_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def train(*_: Any) -> dict[str, Any]:
        if isinstance(error, CommandError):
            raise error from OSError(errno.ENOSPC, "No space left on device")
        raise error

    monkeypatch.setattr(trial_process, "_train", train)
    monkeypatch.setattr(trial_process, "end_with_parent", lambda: None)
    code = trial_process.main([str(REQUEST.save(tmp_path))])
    assert files.REFUSALS[code - FIRST_REFUSAL] == errno.ENOSPC
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("result", "attempt"))]


class Network:
    """As Keras has it: half of a file, and a directory left in the one for temporary files."""

    def save(self, file: Path) -> None:
        import tempfile

        file.write_bytes(b"half")
        tempfile.mkdtemp()
        raise OSError("Can't write (errno = 28, error message = 'No space left on device')")


def test_a_network_that_does_not_fit_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with pytest.raises(OSError, match="No space left on device") as raised:
        save_network(Network(), tmp_path / ".epoch-1.keras")
    assert raised.value.filename == str(tmp_path / ".epoch-1.keras")
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


def test_a_state_that_does_not_fit_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arrays = [np.arange(5.0), np.ones((2, 3), np.float32), np.array(7)]
    save_state(
        tmp_path,
        FoldState(epoch=1, history=[dict.fromkeys(HISTORY_COLUMNS, 0.5)]),
        arrays,
        request="r",
    )

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left") as raised:
        save_state(tmp_path, FoldState(epoch=2), arrays, request="r")
    monkeypatch.undo()
    assert raised.value.filename == str(tmp_path / "state.npz")
    assert files.names(tmp_path) == ["state.npz"]
    found = load_state(tmp_path, request="r")
    assert found is not None
    assert found[0].epoch == 1
    for one, other in zip(found[1], arrays, strict=True):
        np.testing.assert_array_equal(one, other)
    assert json.dumps(capfd.readouterr().err) == '""'
