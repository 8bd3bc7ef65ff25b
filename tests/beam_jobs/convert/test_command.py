"""The conversion as a command: flags, messages, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from beam_jobs import dicom_to_tfrecord
from beam_jobs.common import cli
from beam_jobs.core.manifest import Manifest


def run_command(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", *argv]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("--input", "nowhere"), 2, "nowhere is not a directory"),
        (("--input", "EMPTY"), 2, "holds no file"),
        (("--input", "COHORT", "--bogus", "1"), 2, "unknown option --bogus"),
        (("--input", "COHORT", "--labels", "gone.csv"), 2, "gone.csv"),
        (("--input", "COHORT", "--labels", "LABELS", "--label_column", "x"), 2, "no column x"),
        (("--input", "COHORT", "--shape", "0,1,2"), 2, "shape must be three positive integers"),
        (("--input", "COHORT", "--shape", "a"), 2, "--shape"),
        (("--input", "COHORT", "--folds", "1"), 2, "--folds must be at least 2"),
        (("--input", "COHORT", "--folds", "9" * 30), 2, "--folds must be at most 10000"),
        (
            ("--input", "COHORT", "--seed", "9" * 30),
            2,
            "--seed must be a number of at most 64 bits",
        ),
        (("--input", "COHORT", "--processes", "9" * 30), 2, "--processes must be at most 1024"),
        (("--input", "COHORT", "--id_policy", "hmac"), 2, "needs --id_key"),
        (("--input", "TEXT"), 1, "could be converted"),
        (("--input", "COHORT", "--output", "COHORT/inside"), 2, "lies inside --input"),
        (("--input", "COHORT", "--output", "LABELS"), 2, "is not a directory"),
        (("--input", "COHORT", "--output", ""), 2, "--output is empty"),
        (("--input", "COHORT", "--output", "TEXT"), 2, "holds files that are no dataset: a.dcm"),
        (("--input", "COHORT", "--modalities", "T1w,FLIAR"), 2, "unknown modality FLIAR"),
        (("--input", "COHORT", "--modalities", "T1w,t1w"), 2, "more than case"),
        (("--input", "COHORT", "--runner", "Foo"), 2, "Foo"),
    ],
)
def test_wrong_usage_is_said_with_what_is_wrong(cohort, tmp_path, argv, code, message, capsys):
    argv = ["--output", str(tmp_path / "d"), *_with_paths(argv, cohort, tmp_path)]
    expected = cli.UsageError if code == cli.EXIT_USAGE else cli.CommandError
    with pytest.raises((expected, SystemExit)) as caught:  # the parser itself exits
        dicom_to_tfrecord.main(argv)
    assert message in f"{caught.value} {capsys.readouterr().err}"


def _with_paths(argv, cohort: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.dcm").write_text("hello")
    names = {
        "EMPTY": str(tmp_path / "empty"), "TEXT": str(tmp_path / "text"),
        "COHORT": str(cohort / "test"), "COHORT/inside": str(cohort / "test" / "d"),
        "LABELS": str(cohort / "train_labels.csv"),
    }  # fmt: skip
    return [names.get(argument, argument) for argument in argv]


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("--input", "COHORT", "--bogus", "1"), 2),
        (("--input", "COHORT", "--runner", "Foo"), 2),
        (("--input", "TEXT"), 1),
    ],
)
def test_command_ends_in_one_line_and_a_documented_code(cohort, tmp_path, argv, code):
    done = run_command("--output", str(tmp_path / "d"), *_with_paths(argv, cohort, tmp_path))
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_lists_are_taken_with_commas_or_blanks(cohort, tmp_path):
    argv = ["--input", str(cohort / "test"), "--quiet"]
    blanks = [
        *["--shape", "16", "16", "8", "--modalities", "T1w", "T2w", "--fov_mm", "200", "200", "160"]
    ]
    commas = [*["--shape", "16x16x8", "--modalities", "T1w,T2w", "--fov_mm", "200,200,160"]]
    for name, more in (("a", blanks), ("b", commas)):
        assert dicom_to_tfrecord.main([*argv, "--output", str(tmp_path / name), *more]) == 0
    one, other = (
        Manifest.loads((tmp_path / name / "manifest.json").read_text()) for name in ("a", "b")
    )
    assert one.dataset_fingerprint == other.dataset_fingerprint
    assert one.schema.modalities == ("T1w", "T2w")
    assert one.schema.shape == (16, 16, 8)


def test_help_teaches_with_an_example():
    done = run_command("--help")
    assert done.returncode == 0
    assert "python -m beam_jobs.dicom_to_tfrecord --input" in done.stdout
    assert "exit codes" in done.stdout


def test_dry_run_prints_the_plan_and_writes_nothing(cohort, tmp_path, capsys):
    argv = ["--input", str(cohort / "train"), "--output", str(tmp_path / "d"), "--dry_run"]
    assert dicom_to_tfrecord.main(argv) == cli.EXIT_OK
    assert "8 patients; records of 2.1 MB, 17 MB in shards" in capsys.readouterr().out
    assert not (tmp_path / "d").exists()
