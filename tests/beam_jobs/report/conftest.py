"""A converted cohort with something missing, something black and something that is no image."""

import shutil
from pathlib import Path

import pytest

from beam_jobs import dicom_to_tfrecord
from beam_jobs.common import cli
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    write_cohort(
        PhantomConfig(patients=6, test_patients=1, seed=3, matrix=(40, 48), slices=(12, 24)),
        root / "c",
    )
    train = root / "c" / "train"
    shutil.rmtree(sorted(train.glob("*/T2w"))[0])
    (sorted(train.glob("*/T1w"))[1] / "note.txt").write_text("no image")
    for image in sorted(sorted(train.glob("*/FLAIR"))[2].iterdir())[1:]:
        image.unlink()
    argv = [
        *("--input", str(root / "c" / "train"), "--labels", str(root / "c" / "train_labels.csv")),
        *("--output", str(root / "d"), "--shape", "48,48,12", "--patients_per_shard", "2"),
    ]
    assert dicom_to_tfrecord.main([*argv, "--folds", "3", "--quiet"]) == cli.EXIT_OK
    return root / "d"
