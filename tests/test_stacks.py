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
from tests.stacks import Pair, Stack, on_both
from tests.test_same_bytes import hashes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get(stacks.OTHER),
        reason=f"{stacks.OTHER} names no other environment's python (`make test-new` does)",
    ),
]

SAME = 1e-6  # of a probability; relative of what is greater than 1
TASK = "regression"
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
    names = sorted(path.name for path in root.iterdir())
    rows = [f"{name},{place % 2}" for place, name in enumerate(names)]
    (root.parent / "labels.csv").write_text("\n".join(["BraTS21ID,MGMT_value", *rows]) + "\n")


@dataclasses.dataclass(frozen=True)
class Converted:
    """What one stack wrote: phantoms, and datasets of them and of the encoded series."""

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
    labels = ("--labels", encoded.parent / "labels.csv", "--modalities", "T1w")

    def convert(stack: Stack, _: Stack) -> Converted:
        made = Converted(*(stack.root / name for name in ("cohort", "dataset", "encoded")))
        stack.run(*JOB, "--folds", 2, "--output", made.dataset, "--input", *train)
        stack.run(*JOB, "--dtype", "float16", "--output", made.encoded, "--input", encoded, *labels)
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
    """What one stack trained, and exported of it and of the other's."""

    run: Path
    model: Path
    task_run: Path
    task_model: Path


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of another task, with covariates."""
    place = tmp_path_factory.mktemp("toy") / "dataset"
    write_dataset(place, patients=16, folds=2, target=TARGETS[TASK], covariates=AGE_AND_SITE)
    return place


@pytest.fixture(scope="module")
def trained(
    pair: Pair, converted: tuple[Converted, Converted], toy: Path
) -> tuple[Trained, Trained]:
    theirs = dict(zip(pair, reversed(converted), strict=True))

    def train(stack: Stack, _: Stack) -> Trained:
        made = Trained(*(stack.root / name for name in ("run", "model", "task_run", "task_model")))
        for run, data, model in (
            (made.run, theirs[stack].dataset, made.model),
            (made.task_run, toy, made.task_model),
        ):
            size = ("--model", "seed_cnn", "--width", 0.1, "--epochs", 1, "--cross_validate")
            stack.run("trainer.task", "--data", data, "--output_dir", run, *size)
            stack.run("serving.export", "--runs", run, "--data", data, "--output", model)
        return made

    return on_both(pair, train)


def test_a_dataset_of_either_trains_on_the_other(
    pair: Pair, trained: tuple[Trained, Trained]
) -> None:
    for stack, made in zip(pair, trained, strict=True):
        assert (
            json.loads((made.run / "run.json").read_text())["versions"]["tensorflow"] == stack.name
        )


def same_rows(one: Path, two: Path) -> None:
    """Refuses tables whose numbers differ by more than `SAME`, or whose texts differ."""
    first, second = (read_rows(file) for file in (one, two))
    assert len(first) == len(second) > 0
    for row, other in zip(first, second, strict=True):
        for name, value in row.items():
            if name.endswith("ID") or not value.lstrip("-")[:1].isdigit():
                assert value == other[name]
            else:
                assert np.isclose(float(value), float(other[name]), rtol=SAME, atol=SAME), name


COLUMNS = {"model": "probability,logit,spread,flags", "task_model": "value,low,high,spread,flags"}


@pytest.mark.parametrize("whose", [0, 1], ids=["here", "there"])
@pytest.mark.parametrize("which", list(COLUMNS))
def test_a_model_of_either_answers_the_same_on_the_other(
    which: str,
    whose: int,
    pair: Pair,
    converted: tuple[Converted, Converted],
    trained: tuple[Trained, Trained],
    toy: Path,
    tmp_path: Path,
) -> None:
    model = getattr(trained[whose], which)
    source = converted[0].cohort / "test" if which == "model" else toy

    def predict(stack: Stack, _: Stack) -> Path:
        table = tmp_path / stack.name / "table.csv"
        table.parent.mkdir()
        stack.run(
            *("serving.batch_predict", "--model", model, "--input", source, "--output", table),
            *("--columns", COLUMNS[which]),
        )
        return table

    one, two = on_both(pair, predict)
    same_rows(one, two)
