"""Across both stacks: whatever one of them makes, the other one takes.

`make test-new` runs these checks, from either side: VOXELBEAM_OTHER_PYTHON is the other
environment's python. What is compared is made small once, in both environments at the same time.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid

from tests import stacks
from tests.datasets import AGE_AND_SITE, TARGETS, write_dataset
from tests.dicom_files import HTJ2K_SYNTAXES, NATIVE_SYNTAXES, codestream, write_slices
from tests.pixel_files import ENCODABLE, SMALL, frames_of, short
from tests.real_series import ARCHIVE, unpack_real_series
from tests.stacks import Pair, Stack, copied, on_both
from tests.test_same_bytes import hashes
from tests.trainer.search.searches import argv_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get(stacks.OTHER),
        reason=f"{stacks.OTHER} names no other environment's python (`make test-new` does)",
    ),
]

SAME = 1e-6  # of what is below 1, relative of what is above
TASK = "regression"
SMALL_RUN = ("--model", "seed_cnn", "--width", 0.1, "--epochs", 1)
JOB = ("beam_jobs.dicom_to_tfrecord", "--shape", "16,16,10", "--no_report")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """This environment and the other one."""
    pythons = (sys.executable, os.environ[stacks.OTHER])
    roots = (tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there"))
    here, there = (Stack(python, root) for python, root in zip(pythons, roots, strict=True))
    yield here, there
    here.close()
    there.close()


def test_two_stacks_are_compared_and_not_one_with_itself(pair: Pair) -> None:
    assert pair[0].name != pair[1].name


# ---- datasets


def write_encoded(root: Path) -> None:
    """A patient of every transfer syntax that tests can write, and the real one if it is here."""
    twelve: dict[str, Any] = {"bits_stored": 12}
    for syntax in (*NATIVE_SYNTAXES, *ENCODABLE, uid.JPEGLSNearLossless, uid.JPEG2000):
        write_slices(root / f"p{short(syntax)}/T1w", frames_of(16, 12, count=5), syntax, **twelve)
    eight: dict[str, Any] = {"bits_allocated": 8}
    write_slices(root / "baseline/T1w", frames_of(8, 8, count=5), uid.JPEGBaseline8Bit, **eight)
    kept: tuple[tuple[str, str, dict[str, Any]], ...] = (
        *(("htj2k_u16", syntax, {}) for syntax in HTJ2K_SYNTAXES[:2]),
        ("htj2k_lossy", HTJ2K_SYNTAXES[2], {}),
        ("htj2k_i16", HTJ2K_SYNTAXES[0], {"signed": True}),
        ("jpeg_12_lossy", uid.JPEGExtended12Bit, twelve),
        ("jpeg_12_predictor_4", uid.JPEGLossless, twelve),
        ("jpeg_16_predictor_7", uid.JPEGLossless, {}),
    )
    for place, (name, kind, fields) in enumerate(kept):
        frames = [codestream(name)] * 5
        write_slices(root / f"kept-{place}/T1w", frames, kind, **{**SMALL, **fields})
    if ARCHIVE.exists():
        unpack_real_series(root / "real").rename(root / "real" / "T1w")
    rows = ["BraTS21ID,volume,age,site"]
    for place, name in enumerate(sorted(path.name for path in root.iterdir())):
        rows.append(f"{name},{10 + place / 7},{place * 3 if place % 5 else ''},{'AB'[place % 2]}")
    (root.parent / "told.csv").write_text("\n".join(rows) + "\n")


@dataclasses.dataclass(frozen=True)
class Converted:
    """What one stack wrote: phantoms, and datasets of them and, with values, of encoded series."""

    cohort: Path
    dataset: Path
    encoded: Path


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("encoded") / "series"
    write_encoded(root)
    return root


@pytest.fixture(scope="module")
def converted(pair: Pair, encoded: Path) -> tuple[Converted, Converted]:
    size = ("--patients", 8, "--test_patients", 3, "--matrix", "16,16", "--slices", "8,8")

    def write(stack: Stack, _: Stack) -> Path:
        stack.run("beam_jobs.phantoms", "--output", stack.root / "cohort", *size, "--workers", 1)
        return stack.root / "cohort"

    cohorts = on_both(pair, write)
    train = (cohorts[0] / "train", "--labels", cohorts[0] / "train_labels.csv")
    told = encoded.parent / "told.csv"
    of_values = (
        *("--labels", told, "--label_column", "volume", "--label_unit", "ml", "--folds", 2),
        *("--covariates", told, "--covariate_columns", "age,site", "--modalities", "T1w"),
        *("--dtype", "float16", "--format", "npz"),
    )

    def convert(stack: Stack, _: Stack) -> Converted:
        made = Converted(*(stack.root / name for name in ("cohort", "dataset", "encoded")))
        stack.run(*JOB, "--folds", 2, "--output", made.dataset, "--input", *train)
        stack.run(*JOB, "--output", made.encoded, "--input", encoded, *of_values)
        return made

    return on_both(pair, convert)


def test_every_decoder_gives_the_same_samples(pair: Pair, encoded: Path) -> None:
    one, two = on_both(pair, lambda stack, _: stack.asked("pixels", encoded))
    assert len(one) > 15
    assert one == two


@pytest.mark.parametrize("what", ["cohort", "dataset", "encoded"])
def test_phantoms_and_datasets_have_the_same_bytes(
    what: str, converted: tuple[Converted, Converted]
) -> None:
    one, two = (hashes(getattr(made, what)) for made in converted)
    assert len(one) > 4
    assert one == two


def test_no_encoded_series_is_refused(converted: tuple[Converted, Converted]) -> None:
    assert read_rows(converted[0].encoded / "rejects.csv") == []


def read_rows(file: Path) -> list[dict[str, str]]:
    with file.open() as stream:
        return list(csv.DictReader(stream))


def test_a_conversion_goes_on_with_the_shards_of_the_other_stack(
    pair: Pair, converted: tuple[Converted, Converted], tmp_path: Path
) -> None:
    cohort, whole = converted[0].cohort, hashes(converted[0].dataset)
    begun = tmp_path / "dataset"
    shutil.copytree(converted[0].dataset, begun)  # as if killed before its last shard
    (begun / "manifest.json").unlink()
    lost, *kept = sorted(begun.glob("fold-*.tfrecord"))
    lost.unlink()
    before = {shard: shard.stat() for shard in kept}
    train = (cohort / "train", "--labels", cohort / "train_labels.csv")
    pair[1].run(*JOB, "--folds", 2, "--output", begun, "--input", *train)
    assert hashes(begun) == whole
    for shard, stat in before.items():
        assert (shard.stat().st_ino, shard.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)


# ---- runs and models


@dataclasses.dataclass(frozen=True)
class Trained:
    """What one stack trained: on the other's dataset, and of another task on one fold."""

    run: Path
    task_run: Path


@dataclasses.dataclass(frozen=True)
class Exported:
    """What one stack exported: the runs of both as one model, and the other's run of the task."""

    model: Path
    task_model: Path


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of another task, with covariates."""
    place = tmp_path_factory.mktemp("toy") / "dataset"
    write_dataset(place, patients=16, folds=2, target=TARGETS[TASK], covariates=AGE_AND_SITE)
    return place


def training(data: Path, run: Path, *more: object) -> tuple[Any, ...]:
    return "trainer.task", "--data", data, "--output_dir", run, *SMALL_RUN, *more


@pytest.fixture(scope="module")
def trained(
    pair: Pair, converted: tuple[Converted, Converted], toy: Path
) -> tuple[Trained, Trained]:
    theirs = dict(zip(pair, reversed(converted), strict=True))

    def train(stack: Stack, _: Stack) -> Trained:
        made = Trained(stack.root / "run", stack.root / "task_run")
        stack.run(*training(theirs[stack].dataset, made.run, "--cross_validate"))
        stack.run(*training(toy, made.task_run, "--fold", 0))
        return made

    return on_both(pair, train)


@pytest.fixture(scope="module")
def exported(
    pair: Pair,
    converted: tuple[Converted, Converted],
    trained: tuple[Trained, Trained],
    toy: Path,
) -> tuple[Exported, Exported]:
    runs = [made.run for made in trained]
    theirs = dict(zip(pair, reversed(trained), strict=True))

    def export(stack: Stack, _: Stack) -> Exported:
        made = Exported(stack.root / "model", stack.root / "task_model")
        data = ("--data", converted[0].dataset, "--output", made.model)
        stack.run("serving.export", "--runs", *runs, *data)
        data = ("--data", toy, "--output", made.task_model)
        stack.run("serving.export", "--runs", theirs[stack].task_run, *data)
        return made

    return on_both(pair, export)


def test_a_dataset_of_either_trains_on_the_other(
    pair: Pair, trained: tuple[Trained, Trained]
) -> None:
    for stack, made in zip(pair, trained, strict=True):
        told = json.loads((made.run / "run.json").read_text())
        assert told["versions"]["tensorflow"] == stack.name
    for fold in ("fold-0", "fold-1"):  # the same first weights, order, augmentation and dropout
        one, two = (read_rows(made.run / fold / "history.csv") for made in trained)
        for column in ("loss", "val_loss", "learning_rate"):
            same(float(one[0][column]), float(two[0][column]), 1e-5)


def same(one: Any, two: Any, within: float = SAME) -> None:
    """Refuses values that differ: numbers by more than `within`, all else at all."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        one, two = list(one.values()), [two[name] for name in one]
    if isinstance(one, list):
        for first, second in zip(one, two, strict=True):
            same(first, second, within)
    elif isinstance(one, float):
        assert np.isclose(one, two, rtol=within, atol=within, equal_nan=True), (one, two)
    else:
        assert one == two


def table(file: Path) -> list[dict[str, Any]]:
    """A table's rows, numbers as such; ids and flags are texts."""
    texts = ("BraTS21ID", "flags")
    return [
        {name: value if name in texts else float(value) for name, value in row.items()}
        for row in read_rows(file)
    ]


def test_either_predicts_the_same_rows_with_the_others_model(
    pair: Pair,
    converted: tuple[Converted, Converted],
    exported: tuple[Exported, Exported],
    tmp_path: Path,
) -> None:
    test = converted[0].cohort / "test"

    def kill(stack: Stack, other: Stack) -> None:
        output = tmp_path / other.name / "0" / "table.csv"
        output.parent.mkdir(parents=True)
        assert stack.outcome("tests.stacks", "half", output, "").signal == signal.SIGKILL
        assert list(output.parent.rglob("rows-half"))

    def predict(stack: Stack, _: Stack) -> list[list[dict[str, Any]]]:
        found = []
        for place, made in enumerate(exported):
            output = tmp_path / stack.name / str(place) / "table.csv"
            output.parent.mkdir(exist_ok=True)
            stack.run(
                *("serving.batch_predict", "--model", made.model, "--input", test),
                *("--output", output, "--columns", "probability,logit,spread,flags"),
            )
            beside = {path.name for path in output.parent.iterdir()}
            assert beside == {"table.csv", "table.failures.csv", "table.skew.json"}
            found.append(table(output))
        return found

    on_both(pair, kill)  # the other's prediction, half-way: it is begun anew
    one, two = on_both(pair, predict)
    assert len(one[0]) == 3
    same(one, two)
    same(one[0], one[1])  # whoever exported it


@pytest.mark.parametrize("which", ["model", "task_model"])
def test_a_model_answers_the_same_on_either(
    which: str, pair: Pair, exported: tuple[Exported, Exported]
) -> None:
    def ask(stack: Stack, _: Stack) -> list[Any]:
        return [stack.asked("model", getattr(made, which)) for made in exported]

    one, two = on_both(pair, ask)
    assert np.ptp(one[0]["volumes"][0]) > 100 * SAME
    same(one, two)


def test_runs_of_either_are_evaluated_and_explained_by_the_other(
    pair: Pair,
    converted: tuple[Converted, Converted],
    trained: tuple[Trained, Trained],
    tmp_path: Path,
) -> None:
    run = trained[1].run
    patient = read_rows(converted[0].cohort / "train_labels.csv")[0]["BraTS21ID"].zfill(5)

    def look(stack: Stack, _: Stack) -> list[Any]:
        place = tmp_path / stack.name
        predictions = ("--predictions", run / "oof_predictions.csv", "--output", place / "page")
        stack.run("trainer.evaluate", *predictions)
        data = ("--data", converted[0].dataset, "--output", place / "maps")
        stack.run("trainer.saliency", "--run", run, *data, "--patients", patient)
        files = (place / "page" / "metrics.json", place / "maps" / "saliency.json")
        return [json.loads(file.read_text()) for file in files]

    one, two = on_both(pair, look)
    same(one[0], two[0], 1e-9)
    same(one[1], two[1], 1e-4)  # sums of gradients


# ---- what was begun


def refused(stack: Stack, there: Stack, *command: Any) -> str:
    """What the one line says that refuses to go on, without the two versions."""
    ended = stack.outcome(*command)
    assert ended.code == 1, ended
    (line,) = ended.stderr.splitlines()
    series = [".".join(one.name.split(".")[:2]) for one in (there, stack)]
    said = f"begun with TensorFlow {series[0]}, this is {series[1]}: go on in an environment with "
    assert f"{said}{series[0]}, or " in line
    return line


def test_what_either_has_begun_the_other_does_not_finish(
    pair: Pair, converted: tuple[Converted, Converted], trained: tuple[Trained, Trained]
) -> None:
    theirs = dict(zip(pair, zip(reversed(converted), trained, strict=True), strict=True))

    def go_on(stack: Stack, there: Stack) -> None:
        data, run = theirs[there][0].dataset, theirs[there][1].run
        again = training(data, run, "--cross_validate")
        before = hashes(run)
        assert "finished already" in stack.run(*again)
        assert "--overwrite" in refused(stack, there, *again, "--permutations", 1)
        for pages in ("report.html", "metrics.json"):  # which are written anew
            del before[pages]
        assert {**hashes(run), **before} == hashes(run)
        begun = copied(run, stack.root)
        for name in ("run.json", "fold-1/result.json"):  # as if killed in its last member
            (begun / name).unlink()
        before = hashes(begun)
        again = training(data, begun, "--cross_validate")
        assert "--overwrite" in refused(stack, there, *again)
        assert "--overwrite" in refused(stack, there, *again, "--permutations", 1)
        assert hashes(begun) == before

    on_both(pair, go_on)


def test_a_search_that_either_has_begun_the_other_does_not_go_on_with(
    pair: Pair, converted: tuple[Converted, Converted], tmp_path: Path
) -> None:
    def search(stack: Stack, _: Stack) -> list[str]:
        argv = argv_of(converted[0].dataset, tmp_path / stack.name, "--tuner", "random")
        (tmp_path / f"{stack.name}.json").write_text(json.dumps([*argv, "--max_trials", "1"]))
        stack.asked("search", tmp_path / f"{stack.name}.json")
        return argv

    commands = on_both(pair, search)
    for stack, there, argv in zip(pair, reversed(pair), reversed(commands), strict=True):
        line = refused(stack, there, "trainer.tune", *argv, "--max_trials", 2)
        assert line.endswith("or choose another --output_dir")
        stack.run("trainer.tune", *argv, "--max_trials", 1)  # nothing is left to search
