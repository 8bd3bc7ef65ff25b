"""The cohort of the job's tests; other modules have their own."""

import shutil
from pathlib import Path

import pytest

from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from beam_jobs.phantoms.series import SeriesSpec, write_series


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight patients, one of them with a black series, one without a FLAIR."""
    root = tmp_path_factory.mktemp("cohort") / "phantoms"
    config = PhantomConfig(
        patients=8, test_patients=2, seed=3, matrix=(40, 48), slices=(20, 24), trouble_rate=0.0
    )
    write_cohort(config, root)
    patients = sorted((root / "train").iterdir())
    shutil.rmtree(patients[1] / "FLAIR")
    shutil.rmtree(patients[2] / "T1w")
    black = SeriesSpec(modality="T1w", rows=40, columns=40, slices=20, blank=True)
    write_series(black, patients[2] / "T1w", lambda xyz: xyz[..., 0], seed=9)
    return root
