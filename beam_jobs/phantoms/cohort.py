"""Write a synthetic MR cohort in the reference layout, with the truth beside it.

Everything real cohorts do to a converter happens here on purpose: four series a patient in four
geometries, planes that differ, oblique stacks, shuffled file numbers with gaps, misleading
thickness and spacing tags, blank end slices, black series, missing series, rescale, signed and
12-bit pixels, implicit VR. `truth/truth.json` says what was done.

The label decides only how the lesion looks (1: bright rim around a dark core; 0: homogeneous;
`labels` has the other tasks'), so that a small 3D network can learn it and a leak elsewhere would
be a fault. How hard that is, how many labels are wrong, and whether there is anything to learn at
all, the config says.
"""

import contextlib
import functools
import shutil
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beam_jobs.common import terminal
from beam_jobs.common.csv_table import write_table
from beam_jobs.common.files import interface as files
from beam_jobs.common.processes import in_processes
from beam_jobs.phantoms.anatomy import UNIT, Head
from beam_jobs.phantoms.labels import COLUMNS, COVARIATES, ID_COLUMN, NEUTRAL, Label, cells
from beam_jobs.phantoms.plan import (
    CohortTruth,
    Patient,
    PhantomConfig,
    plan_cohort,
)
from beam_jobs.phantoms.series import IntensityFunction, write_series
from beam_jobs.phantoms.truth import write_truth

# What a cohort's directory holds.
WRITTEN = (
    *("train", "test", "truth"),
    *("train_labels.csv", "sample_submission.csv", "covariates.csv"),
)


def imaged(
    head: Head,
    modality: str,
    *,
    seed: Sequence[int],
    bias: float = 0.12,
    noise: float = 0.025,
) -> IntensityFunction:
    """A head as a scanner sees it: with smooth bias and Rician noise; the background stays 0.

    Args:
        head: what lies in the scanner.
        modality: a key of `TISSUES`.
        seed: of noise and bias; the noise also depends on the order of the calls.
        bias: greatest relative gain change over the head.
        noise: standard deviation in each of two channels, as a part of `UNIT`.

    Returns:
        A function of (..., 3) patient LPS mm for `write_series`.
    """
    rng = np.random.default_rng(list(seed))
    direction = rng.normal(size=3)
    slope = (bias / 90.0 * direction / np.linalg.norm(direction)).astype(np.float32)
    centre = np.asarray(head.centre)

    def intensity(xyz: NDArray[np.float64]) -> NDArray[np.float32]:
        values = head.intensity(xyz, modality)
        inside = values > 0
        offset = (xyz[inside] - centre).astype(np.float32)
        gain = 1 + offset[:, 0] * slope[0] + offset[:, 1] * slope[1] + offset[:, 2] * slope[2]
        real, imaginary = rng.standard_normal((2, len(offset)), dtype=np.float32) * np.float32(
            noise * UNIT
        )
        # At least 4 units: no rescale slope of the cohort rounds a voxel of the head to 0.
        values[inside] = np.maximum(
            np.hypot(values[inside] * gain + real, imaginary), np.float32(4)
        )
        return values

    return intensity


def write_cohort(
    config: PhantomConfig,
    output: files.StrPath,
    *,
    workers: int = 1,
) -> CohortTruth:
    """Write a cohort; the bytes do not depend on `workers`.

    Args:
        config: what to write.
        output: a directory that is absent or empty, on a disk or in a store.
        workers: processes; 1 works in this one.

    Returns:
        The truth, as also written to `output/truth/truth.json`, which is written last.

    Raises:
        ValueError: `workers` < 1.
        FileExistsError: `output` is a file or a directory that is not empty.
        OSError: a file that cannot be written.
        CommandError: the store refuses.
    """
    if workers < 1:
        raise ValueError(f"workers must be >= 1, found {workers}")
    files.require_writable(output)
    if not _is_absent_or_empty(output):
        raise FileExistsError(f"output must be absent or an empty directory, found {output}")
    plan = plan_cohort(config)
    with files.mirrored(output) as mirror:
        mirror.local.mkdir(parents=True, exist_ok=True)
        try:
            # Of two that begin at once one makes it: the other's files are not to be removed below.
            (mirror.local / "truth").mkdir()
        except FileExistsError as error:
            raise FileExistsError(f"another cohort is being written to {output}") from error
        try:
            return _write(plan, mirror.local, workers)
        except BaseException:
            # Nothing of ours was there, and half a cohort would only be in the next one's way.
            for name in WRITTEN:
                with contextlib.suppress(OSError):
                    path = mirror.local / name
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            raise


def _is_absent_or_empty(output: files.StrPath) -> bool:
    if files.is_remote(output):
        return not files.is_dir(output)
    path = Path(output)
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _write(plan: CohortTruth, output: Path, workers: int) -> CohortTruth:
    with contextlib.closing(_write_patients(plan, output, workers)) as written:
        patients = tuple(terminal.track(written, "imaging phantoms", len(plan.patients)))
    truth = replace(plan, patients=patients)
    train = [patient for patient in patients if patient.split == "train"]
    test = [patient for patient in patients if patient.split == "test"]
    header = (ID_COLUMN, *COLUMNS[plan.config.task])

    def write_labels(path: Path, rows: Iterable[tuple[Patient, Label]]) -> None:
        write_table(path, header, [(int(p.patient_id), *cells(label)) for p, label in rows])

    write_labels(output / "train_labels.csv", [(p, p.written_label) for p in train])
    if plan.config.label_noise:
        write_labels(output / "truth" / "train_labels.csv", [(p, p.label) for p in train])
    write_labels(output / "truth" / "test_labels.csv", [(p, p.label) for p in test])
    neutral = NEUTRAL[plan.config.task]
    write_table(
        output / "sample_submission.csv",
        (ID_COLUMN, *neutral),
        [(int(p.patient_id), *neutral.values()) for p in test],
    )
    if plan.config.covariates:
        known = [
            (int(p.patient_id), *(p.covariates[name] for name in COVARIATES)) for p in patients
        ]
        write_table(output / "covariates.csv", (ID_COLUMN, *COVARIATES), known)
    write_truth(truth, output)
    return truth


def _write_patients(
    plan: CohortTruth, output: Path, workers: int
) -> Generator[Patient, None, None]:
    """Write patients and give them back in the plan's order, each with its `blank_slices`.

    Whatever ends it early ends its processes too.
    """
    count = len(plan.patients)
    if workers == 1 or count == 1:
        for patient in plan.patients:
            yield _write_patient(patient, output, plan.config.seed)
        return
    write = functools.partial(_write_patient, output=output, seed=plan.config.seed)
    yield from in_processes(write, plan.patients, workers)


def _write_patient(patient: Patient, output: Path, seed: int) -> Patient:
    series = []
    for place, spec in enumerate(patient.series):
        if not spec.missing:
            folder = output / patient.split / patient.patient_id / spec.modality
            intensity = imaged(patient.head, spec.modality, seed=(seed, 3, patient.index, place))
            written = write_series(
                spec, folder, intensity, patient_id=patient.patient_id, seed=seed
            )
            spec = replace(spec, blank_slices=written.blank_slices)
        series.append(spec)
    return replace(patient, series=tuple(series))
