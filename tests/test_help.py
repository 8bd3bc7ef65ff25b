"""The examples that --help shows, run one after the other on one small cohort, as a user would.

Each runs as it stands, with options behind it that only make it small. Nothing of other libraries'
chatter may reach the terminal on the way.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
# In the order in which their inputs come to be: command, number of its example, what it is cut by.
SMALL = ("--epochs", "2", "--learning_rate", "1e-3")
RUNS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    (
        "beam_jobs.phantoms",
        0,
        ("--patients", "24", "--test_patients", "6", "--matrix", "40,48", "--slices", "12,20"),
    ),
    ("beam_jobs.survey", 0, ()),
    ("beam_jobs.dicom_to_tfrecord", 0, ("--shape", "16,16,12", "--folds", "2")),
    ("beam_jobs.verify", 0, ()),
    ("beam_jobs.report", 0, ()),
    ("trainer.task", 0, SMALL),
    ("trainer.baseline", 0, ("--trees", "20")),
    ("trainer.evaluate", 1, ()),
    ("trainer.saliency", 0, ()),
    ("trainer.saliency", 2, ()),
    (
        "trainer.tune",
        0,
        ("--max_trials", "2", "--epochs", "2", "--folds", "2", "--space", "s.json"),
    ),
    ("serving.export", 2, ()),
    ("serving.batch_predict", 0, ()),
    ("serving.batch_predict", 2, ()),
    ("serving.batch_predict", 3, ()),
    ("serving.check_submission", 0, ()),
    ("trainer.evaluate", 0, ()),
    ("trainer.doctor", 0, ()),
)


def _commands() -> set[str]:
    """Modules of the packages that a user runs; a trial is the search's own process."""
    found = set()
    for package in ("beam_jobs", "trainer", "serving"):
        for file in (ROOT / package).rglob("*.py"):
            if named := re.search(r'^PROG = "python -m ([\w.]+)"', file.read_text(), re.MULTILINE):
                found.add(named[1])
    return found - {"trainer.search.trial_process"}


def _command(module: str) -> ModuleType:
    """The module that `python -m` runs."""
    package = importlib.import_module(module)
    return (
        importlib.import_module(f"{module}.__main__") if hasattr(package, "__path__") else package
    )


def _python(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(cwd)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def _examples(module: str) -> list[list[str]]:
    """The command lines that `--help` shows, arguments after `python -m module`."""
    shown = _python(["-m", module, "--help"], ROOT)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout[shown.stdout.index("examples:") :].replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("  python -m ")]
    return [words[3:] for words in commands if words[2] == module]


def test_every_command_has_an_example_that_is_run() -> None:
    assert {module for module, _, _ in RUNS} == _commands()


@pytest.mark.parametrize("module", sorted(_commands()))
def test_every_command_can_be_quiet_or_loud_and_tells_its_exit_codes(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        _command(module).main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert re.search(r"^  --quiet +print hints and errors only$", shown, re.MULTILINE)
    assert "--log_level {error,warning,info,debug}" in shown
    codes = shown[shown.index("exit codes:") :]
    assert all(re.search(rf"^  {code} +\w", codes, re.MULTILINE) for code in (0, 1, 2, 130))
    assert bool(re.search(r"^  8 +\w", codes, re.MULTILINE)) == ("--strict" in shown)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("quiet", [False, True], ids=["shown", "quiet"])
def test_the_examples_run_and_print_no_foreign_warning(tmp_path: Path, quiet: bool) -> None:
    (tmp_path / "s.json").write_text('{"network": "slice_cnn", "precision": "float32"}')
    for module, number, small in RUNS:
        words = _examples(module)[number]
        if module == "beam_jobs.phantoms":  # its example writes to the system's /tmp
            words = ["cohort" if word == "/tmp/cohort" else word for word in words]
        words = [*words, *small, *(["--quiet"] if quiet else [])]
        done = _python(["-m", module, *words], tmp_path)
        context = f"{module} {' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert done.returncode == 0, context
        assert done.stderr == "", context
        assert bool(done.stdout) != quiet, context
        assert not re.search(r"(?i)warning|deprecat|^[WEI]\d{4} ", done.stdout), context
        if module == "beam_jobs.phantoms":  # what later examples call what this one made
            shutil.copytree(tmp_path / "cohort/test", tmp_path / "test")
            shutil.copy(tmp_path / "cohort/sample_submission.csv", tmp_path)
            shutil.copy(tmp_path / "cohort/truth/test_labels.csv", tmp_path / "labels.csv")
    loud = ["-m", "serving.batch_predict", *_examples("serving.batch_predict")[0]]
    done = _python([*loud, "--log_level", "info", *(["--quiet"] if quiet else [])], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "INFO apache_beam" in done.stderr  # Beam's
    assert re.search(r": I tensorflow/|^I\d{4} ", done.stderr, re.MULTILINE)  # TensorFlow's
    assert bool(done.stdout) != quiet
