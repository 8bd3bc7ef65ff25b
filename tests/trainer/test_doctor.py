"""`python -m trainer.doctor`: what it prints where, and what its exit code says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import pytest

from beam_jobs.common.files import settings
from trainer import doctor
from trainer.machine.apart import Answer, Trial
from trainer.machine.findings import Fault, Row, Section

ROOT = Path(__file__).resolve().parents[2]
TITLES = ("machine", "packages", "decoders", "devices", "stores", "places")
CREDENTIALS = (*sum(settings.VARIABLES.values(), ()), *settings.CERTIFICATES)
# An environment without some packages: neither imports nor metadata of them.
WITHOUT = """
import importlib.machinery, importlib.metadata, re

GONE = {gone!r}
whole = importlib.metadata.distributions
importlib.metadata.distributions = lambda **how: (
    one for one in whole(**how) if re.sub("[-_]", "_", one.metadata["Name"]) not in GONE
)
finder = importlib.machinery.PathFinder
found = finder.find_spec
finder.find_spec = lambda name, *args: None if name in GONE else found(name, *args)
"""


def run(
    arguments: Sequence[str] = (),
    *,
    environ: Mapping[str, str] | None = None,
    path: Path | None = None,
    cwd: Path = ROOT,
) -> tuple[int, str]:
    """(exit code, stdout) where nobody has credentials; nothing is written to stderr."""
    kept = {name: value for name, value in os.environ.items() if name not in CREDENTIALS}
    search = os.pathsep.join(map(str, filter(None, [path, ROOT])))
    done = subprocess.run(
        [sys.executable, "-m", "trainer.doctor", *arguments],
        cwd=cwd,
        env={**kept, "PYTHONPATH": search, **(environ or {})},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    # A long path stays whole, to be copied.
    assert not [line for line in done.stdout.splitlines() if len(line) > 80 and " " in line.strip()]
    return done.returncode, done.stdout


@pytest.mark.slow
def test_on_the_machine_that_tests_it_nothing_needed_is_broken(tmp_path: Path) -> None:
    code, out = run([str(tmp_path)])
    assert code == 0, out
    lines = out.splitlines()
    assert [line for line in lines if line in TITLES] == list(TITLES)
    assert lines[-1] == "nothing needed is broken"
    assert f" {tmp_path}: empty, can be written to" in " ".join(out.split())
    assert "  CPU plain   float32, mixed_float16, mixed_bfloat16 agree with float64" in lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gone", "code", "line"),
    [
        (["tensorflow_io"], 0, "- second      none (tensorflow-io, "),
        (["boto3", "botocore"], 0, "- boto3       not installed, so without: AWS profiles"),
        (["tensorflow", "apache_beam"], 1, "! tensorflow  not installed, so without: train, "),
        (["numpy"], 1, "! numpy       not installed, so without: every command"),
        (["obstore", "rich", "packaging"], 1, "! obstore     not installed"),
    ],
    ids=["tensorflow-io", "boto3", "tensorflow", "numpy", "obstore"],
)
def test_what_is_not_there_is_a_line_and_never_a_traceback(
    gone: list[str], code: int, line: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT.format(gone=gone))
    nobody = {"HOME": str(tmp_path / "none"), "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "-1"}
    found, out = run(path=tmp_path, environ=nobody)
    assert found == code, out
    assert any(one.startswith(line) for one in out.splitlines()), out
    assert "- home        none:" in out
    assert not (tmp_path / "none").exists()
    assert ("nothing needed is broken" in out) == (code == 0)
    assert ("\nto mend\n1. " in out) == (code == 1)


@pytest.mark.slow
def test_libraries_that_raise_or_crash_are_a_line(tmp_path: Path) -> None:
    for name, text in (
        ("tensorflow", "raise OSError('libstuff.so.9: not found')"),
        ("scipy", "import ctypes; ctypes.string_at(0)"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    code, out = run(path=tmp_path)
    assert code == 1
    words = " ".join(out.split())
    assert "does not import: its process ended by SIGSEGV" in words
    assert "does not import: libstuff.so.9: not found" in words
    assert " gdcm JPEG Baseline, " in words


SECTION = Section(
    title="things",
    rows=(
        Row(name="good", text="is well"),
        Row(name="thing", text=" ".join(["word"] * 20), mark="note"),
    ),
    faults=(Fault(what="a thing is broken", stops="all", mend="mend it"),),
)


@pytest.mark.parametrize("faulty", [False, True])
@pytest.mark.parametrize("quiet", [False, True])
def test_faults_are_numbered_at_the_end_and_stand_in_quiet_too(
    faulty: bool, quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = SECTION if faulty else Section(title="things", rows=SECTION.rows)
    monkeypatch.setattr(doctor, "sections", lambda places: iter([section]))
    assert doctor.main(["--quiet"] if quiet else []) == int(faulty)
    out = capsys.readouterr().out
    shown = (
        "things\n  good        is well\n"
        f"- thing       {' '.join(['word'] * 13)}\n              {' '.join(['word'] * 7)}\n\n"
    )
    mend = "to mend\n1. a thing is broken\n   stops: all\n   mend:  mend it\n"
    end = mend if faulty else "" if quiet else "nothing needed is broken\n"
    assert out == ("" if quiet else shown) + end


def test_a_closed_stdout_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "sections", lambda places: iter([SECTION]))
    monkeypatch.setattr(sys, "stdout", None)
    assert doctor.main([]) == 1


def test_what_strangers_named_moves_no_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = Row(name="a\x1b[2J", text="b\x1b[2J")
    monkeypatch.setattr(
        doctor, "sections", lambda places: iter([Section(title="things", rows=(evil,))])
    )
    doctor.main([])
    assert "\x1b" not in capsys.readouterr().out


# What TensorFlow says on a machine with two GPUs.
FACTS = {
    "version": "2.17.1",
    "backend": "tensorflow",
    "build": {},
    "gpus": [{"name": "NVIDIA X", "capability": [8, 0]}] * 2,
    "precision": "mixed_bfloat16",
    "xla": True,
}


def test_one_process_at_a_time_tries_a_gpu_and_none_after_a_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive, most, asked = 0, 0, []

    def tried(trials: Sequence[Trial], *, seconds: float) -> Generator[Answer, None, None]:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        try:
            for trial in trials:
                one = trial.function.endswith(":facts")
                asked.append(str(trial.arguments.get("device")))
                slow = asked[-1].startswith("CPU")
                yield Answer(value=FACTS) if one else Answer(value=0.0, hung=slow)
        finally:
            alive -= 1

    monkeypatch.setattr(doctor, "tried", tried)
    sections = doctor.sections([])
    titles = [next(sections).title for _ in range(4)]
    assert titles[-1] == "devices"
    assert (alive, most) == (0, 1)
    # After one that hangs none is tried on that device.
    assert [asked.count(device) for device in ("CPU:0", "GPU:0", "GPU:1")] == [1, 6, 6]
