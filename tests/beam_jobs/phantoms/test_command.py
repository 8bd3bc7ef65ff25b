"""The command: its rows, its refusals, Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beam_jobs.common import cli
from beam_jobs.phantoms.__main__ import PROG, main
from beam_jobs.phantoms.plan import (
    CohortTruth,
    PhantomConfig,
    plan_cohort,
)


def test_command_summarises_in_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        [
            "--output",
            str(tmp_path / "c"),
            "--patients",
            "1",
            "--matrix",
            "16,16",
            "--slices",
            "4,5",
            "--modalities",
            "T2w,FLAIR",
            "--workers",
            "1",
        ]
    )
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    names = [line.split()[0] for line in out.splitlines()]
    assert names == ["patients", "series", "files", "cohort"]
    assert out.splitlines()[0].endswith("1 to train on + 1 to predict")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--patients", "0"], "patients must be >= 1, found 0"),
        (["--patients", "2", "--modalities", "T1w,CT"], "found T1w,CT"),
        (["--patients", "2", "--matrix", "90,70"], "matrix must be 'min,max'"),
        (["--patients", "2", "--slices", "x"], "must be 'min,max' in whole numbers"),
        (["--patients", "2", "--workers", "0"], "workers must be >= 1"),
        (["--patients", "2", "--seed", "-1"], "seed must be >= 0"),
        (["--patients", "2", "--difficulty", "1.5"], "difficulty must be in 0..1, found 1.5"),
        (["--patients", "2", "--difficulty", "nan"], "difficulty must be in 0..1, found nan"),
        (["--patients", "2", "--no_signal", "--difficulty", "0.5"], "not with a difficulty"),
        (["--patients", "2", "--label_noise", "0.6"], "label_noise must be in 0..0.5, found 0.6"),
    ],
)
def test_bad_flags_end_with_one_line_and_code_2(
    flags: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["phantoms", "--output", str(tmp_path / "c"), *flags])
    # A command that fails beside live threads ends its process at once: not this one.
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as exit_info:
        cli.run(main, PROG)
    err = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert err.startswith("python -m beam_jobs.phantoms: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_output_that_is_a_file_or_full_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path):
        with pytest.raises(cli.UsageError, match="output must be absent or an empty directory"):
            main(["--output", str(output), "--patients", "1"])
    assert (tmp_path / "file").read_text() == "mine"


def test_of_two_at_once_the_refused_one_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*_: object) -> CohortTruth:
        (tmp_path / "truth").mkdir()
        (tmp_path / "truth" / "truth.json").write_text("another's")
        return plan_cohort(PhantomConfig(patients=1))

    monkeypatch.setattr("beam_jobs.phantoms.cohort.plan_cohort", meanwhile)
    with pytest.raises(cli.UsageError, match="another cohort is being written to"):
        main(["--output", str(tmp_path), "--patients", "1"])
    assert (tmp_path / "truth" / "truth.json").read_text() == "another's"


def _is_gone_soon(group: int) -> bool:
    """Whether no process of a group is left; the dead count until init reaps them."""
    for _ in range(500):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    "after",
    [0.0, pytest.param(1.5, marks=pytest.mark.slow)],
    ids=["starting", "working"],
)
def test_ctrl_c_ends_it_in_one_line_with_its_processes(tmp_path: Path, after: float) -> None:
    """The terminal sends it to the whole group; `after` counts from the first sign of work."""
    argv = ["--output", str(tmp_path / "c"), "--patients", "60", "--workers", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "beam_jobs.phantoms", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test runner started in the background ignores SIGINT, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "c" / "truth").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(after)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == "python -m beam_jobs.phantoms: error: interrupted\n"
    assert _is_gone_soon(process.pid)
    assert not (tmp_path / "c" / "truth" / "truth.json").exists()
