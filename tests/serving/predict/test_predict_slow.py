"""Batch prediction at length: damaged cohorts, kill -9, worker processes, a terminal."""

import csv
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from serving import export
from tests.beam_jobs.convert.test_accounting import FILE_DAMAGES, SERIES_DAMAGES
from tests.datasets import make_cases, write_cases
from tests.serving.models import ROOT, schema_of, spec_of, write_run

pytestmark = pytest.mark.slow

# A localizer is left out by rule: nothing of it is damaged, and it is not refused.
DAMAGES = {**FILE_DAMAGES, **SERIES_DAMAGES}
del DAMAGES["localizer"]
SHARE = 0.05  # of all files


def command(*argv: object) -> list[str]:
    return [sys.executable, "-m", "serving.batch_predict", *map(str, argv)]


def predict(*argv: object) -> str:
    done = subprocess.run(command(*argv), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_damaged_cohort_has_a_row_for_every_id_and_a_reason_for_every_damage(
    tmp_path: Path,
) -> None:
    spec = PreprocessSpec(shape=(16, 16, 8))
    config = PhantomConfig(
        patients=2, test_patients=12, seed=5, matrix=(24, 28), slices=(20, 22), trouble_rate=0
    )
    write_cohort(config, tmp_path / "cohort", workers=1)
    write_run(tmp_path / "run", spec=spec.to_json(), schema=spec.schema, modalities=spec.modalities)
    argv = ["--runs", tmp_path / "run", "--output", tmp_path / "model"]
    assert export.main([*map(str, argv)]) == 0
    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / "cohort" / "test", damaged)
    rng = random.Random(0)
    patients = sorted(damaged.iterdir())
    # Half of the patients take all the damage; one loses every file it has.
    spoilt, lost = patients[:6], patients[5]
    files = sorted(file for folder in spoilt[:-1] for file in folder.glob("*/*"))
    total = sum(1 for _ in damaged.glob("*/*/*"))
    expected: dict[str, set[str]] = defaultdict(set)
    by_series: dict[Path, int] = defaultdict(int)
    left = int(SHARE * total)
    for number, file in enumerate(rng.sample(files, len(files))):
        if not left or by_series[file.parent] == 3:
            continue
        reason = list(DAMAGES)[number % len(DAMAGES)]
        DAMAGES[reason](file)
        by_series[file.parent] += 1
        expected[file.parent.parent.name].add(reason)
        left -= 1
    assert not left
    assert set().union(*expected.values()) == set(DAMAGES)
    for file in lost.glob("*/*"):
        file.write_bytes(b"no DICOM at all")
    expected[lost.name].add("not_dicom")

    usual = (
        *("--model", tmp_path / "model", "--ids", tmp_path / "cohort/sample_submission.csv"),
        *("--columns", "probability,flags"),
    )
    predict(*usual, "--input", tmp_path / "cohort" / "test", "--output", tmp_path / "sound.csv")
    predict(*usual, "--input", damaged, "--output", tmp_path / "found.csv")
    sound, found = rows(tmp_path / "sound.csv"), rows(tmp_path / "found.csv")
    ids = [row["BraTS21ID"] for row in rows(tmp_path / "cohort" / "sample_submission.csv")]
    assert [row["BraTS21ID"] for row in found] == ids == [row["BraTS21ID"] for row in sound]
    names = {folder.name for folder in spoilt}
    untouched = [row["BraTS21ID"].zfill(5) not in names for row in found]
    assert sum(untouched) == 6
    for one, other, same in zip(sound, found, untouched, strict=True):
        if same:
            assert one == other
    reported: dict[str, set[str]] = defaultdict(set)
    for row in rows(tmp_path / "found.rejects.csv"):
        reported[row["patient"]].add(row["reason"])
    for patient, reasons in expected.items():
        assert reasons <= reported[patient], (patient, reasons - reported[patient])
    failures = rows(tmp_path / "found.failures.csv")
    assert [(row["patient_id"].zfill(5), row["reason"]) for row in failures] == [
        (lost.name, "not_dicom")
    ]
    values = {row["BraTS21ID"].zfill(5): row["MGMT_value"] for row in found}
    assert values[lost.name] == "0.52"


def many_records(directory: Path, patients: int = 300) -> Path:
    spec = spec_of()
    schema = schema_of(spec)
    cases = make_cases(schema, patients=patients, folds=3)
    write_cases(directory, cases, schema, folds=3, shards=4, spec=spec)
    return directory


def test_a_killed_run_run_again_leaves_the_bytes_of_an_undisturbed_one(
    model: Path, tmp_path: Path
) -> None:
    data = many_records(tmp_path / "data")
    usual = ("--model", model, "--input", data)
    reference, output = tmp_path / "reference" / "a.csv", tmp_path / "output" / "a.csv"
    predict(*usual, "--output", reference)
    rng = random.Random(0)
    killed = 0
    for _ in range(6):
        process = subprocess.Popen(
            command(*usual, "--output", output), cwd=ROOT, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        before = set(output.parent.glob(".*.voxelbeam-*"))
        while not set(output.parent.glob(".*.voxelbeam-*")) - before:
            assert process.poll() is None
            time.sleep(0.005)
        try:
            process.wait(rng.uniform(0, 4))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
            process.wait()
        if output.exists():  # whole, at any time
            assert output.read_bytes() == reference.read_bytes()
    assert killed >= 2
    predict(*usual, "--output", output)
    assert output.read_bytes() == reference.read_bytes()
    assert sorted(file.name for file in output.parent.iterdir()) == sorted(
        file.name for file in reference.parent.iterdir()
    )


def test_worker_processes_change_no_byte(model: Path, tmp_path: Path) -> None:
    data = many_records(tmp_path / "data", 30)
    usual = ("--model", model, "--input", data)
    predict(*usual, "--output", tmp_path / "one.csv")
    processes = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    predict(*usual, "--output", tmp_path / "two.csv", *processes)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_a_terminal_is_shown_how_many_patients_are_done(model: Path, tmp_path: Path) -> None:
    data = many_records(tmp_path / "data")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command("--model", model, "--input", data, "--output", tmp_path / "a.csv"),
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=follower, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait() == 0
    os.close(leader)
    assert b"predicting" in shown
    assert b"/300" in shown


def test_tensorflow_is_spared_the_garbage_collector(model, dataset, tmp_path):
    code = (
        "import gc, sys; from serving import batch_predict; batch_predict.main(sys.argv[1:]);"
        "print(gc.get_freeze_count())"
    )
    argv = ["--model", model, "--input", dataset, "--output", tmp_path / "table.csv"]
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, argv)]
    kept = int(subprocess.check_output(command, cwd=ROOT, text=True).split()[-1])
    assert kept > 600_000  # Beam alone makes half as many
