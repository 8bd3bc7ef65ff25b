"""The phantom cohort keeps its promises: layout, determinism, geometry, contrast, truth."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from beam_jobs.phantoms.anatomy import CONTRAST, MARKER_CENTRE, Head
from beam_jobs.phantoms.cohort import imaged, write_cohort
from beam_jobs.phantoms.plan import (
    CohortTruth,
    Patient,
    PhantomConfig,
    plan_cohort,
)
from beam_jobs.phantoms.series import Plane, SeriesSpec, write_series
from beam_jobs.phantoms.truth import read_truth

SMALL = PhantomConfig(patients=4, test_patients=2, seed=11, matrix=(44, 56), slices=(22, 28))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CohortTruth]:
    output = tmp_path_factory.mktemp("phantoms") / "cohort"
    return output, write_cohort(SMALL, output)


def written(cohort: tuple[Path, CohortTruth]) -> Iterator[tuple[Patient, SeriesSpec, Path]]:
    output, truth = cohort
    for patient in truth.patients:
        for spec in patient.series:
            if not spec.missing:
                yield patient, spec, output / patient.split / patient.patient_id / spec.modality


def rescaled(dataset: pydicom.Dataset) -> NDArray[np.float64]:
    slope, intercept = (
        float(dataset.get("RescaleSlope", 1)),
        float(dataset.get("RescaleIntercept", 0)),
    )
    return dataset.pixel_array * slope + intercept


def voxels(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Voxels' patient positions (n, 3) and values (n), from tags alone (PS3.3 C.7.6.2.1.1)."""
    positions, values = [], []
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        orientation = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
        row_spacing, column_spacing = (float(value) for value in dataset.PixelSpacing)
        row, column = np.meshgrid(
            np.arange(dataset.Rows), np.arange(dataset.Columns), indexing="ij"
        )
        positions.append(
            np.array(dataset.ImagePositionPatient, float)
            + column[..., None] * column_spacing * orientation[0]
            + row[..., None] * row_spacing * orientation[1]
        )
        values.append(rescaled(dataset))
    return np.concatenate(positions).reshape(-1, 3), np.concatenate(values).ravel()


def lesion_mask(values: NDArray[Any], modality: str) -> NDArray[np.bool_]:
    direction, threshold = CONTRAST[modality]
    return values > threshold if direction == "brighter" else (values < threshold) & (values > 0)


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_bytes_do_not_depend_on_the_number_of_workers(
    cohort: tuple[Path, CohortTruth], tmp_path: Path
) -> None:
    write_cohort(SMALL, tmp_path / "again", workers=2)
    assert digests(tmp_path / "again") == digests(cohort[0])


def test_another_seed_gives_other_patients() -> None:
    first, second = plan_cohort(SMALL), plan_cohort(replace(SMALL, seed=12))
    assert first.patients[0].head != second.patients[0].head


def test_layout_is_the_reference_layout(cohort: tuple[Path, CohortTruth]) -> None:
    output, truth = cohort
    expected = {
        f"{patient.split}/{patient.patient_id}/{spec.modality}/Image-{number}.dcm"
        for patient in truth.patients
        for spec in patient.series
        if not spec.missing
        for number in spec.file_numbers
    }
    assert {path for path in digests(output) if path.endswith(".dcm")} == expected
    assert all(len(patient.patient_id) == 5 for patient in truth.patients)


def test_labels_are_balanced_and_lose_their_leading_zeros(cohort: tuple[Path, CohortTruth]) -> None:
    output, truth = cohort
    table = pd.read_csv(output / "train_labels.csv", dtype=str)
    assert list(table.columns) == ["BraTS21ID", "MGMT_value"]
    assert list(table.BraTS21ID.str.zfill(5)) == [
        p.patient_id for p in truth.patients if p.split == "train"
    ]
    assert not table.BraTS21ID.str.match("0.").any()
    assert (table.MGMT_value == "1").sum() == SMALL.patients / 2


def test_test_labels_stand_only_in_the_truth(cohort: tuple[Path, CohortTruth]) -> None:
    output, truth = cohort
    hidden = pd.read_csv(output / "truth" / "test_labels.csv")
    sample = pd.read_csv(output / "sample_submission.csv")
    assert list(hidden.MGMT_value) == [p.label for p in truth.patients if p.split == "test"]
    assert list(sample.BraTS21ID) == list(hidden.BraTS21ID)
    assert set(sample.MGMT_value) == {0.5}
    assert not set(hidden.BraTS21ID) & set(pd.read_csv(output / "train_labels.csv").BraTS21ID)


def test_truth_reads_back_as_it_was_returned(cohort: tuple[Path, CohortTruth]) -> None:
    output, truth = cohort
    assert read_truth(output) == truth


def test_lesion_lies_where_the_truth_says_in_every_series(cohort: tuple[Path, CohortTruth]) -> None:
    for patient, spec, folder in written(cohort):
        if spec.blank:
            continue
        positions, values = voxels(folder)
        found = positions[lesion_mask(values, spec.modality)]
        lesion = patient.head.lesion
        assert lesion is not None
        assert np.linalg.norm(found.mean(axis=0) - lesion.centre) < 2.5, (patient.patient_id, spec)
        assert np.linalg.norm(found - lesion.centre, axis=1).max() <= lesion.radius + 0.5


def test_cohort_has_every_plane_and_obliquity() -> None:
    specs = [
        spec
        for patient in plan_cohort(replace(SMALL, patients=40)).patients
        for spec in patient.series
    ]
    assert {spec.plane for spec in specs} == {"axial", "coronal", "sagittal"}
    tilts = [spec.obliquity_degrees for spec in specs if spec.obliquity_degrees]
    assert 0.1 < len(tilts) / len(specs) < 0.5
    assert 5 <= min(tilts) <= max(tilts) <= 25


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("tilt", [0.0, 17.0])
def test_simpleitk_finds_a_point_where_the_spec_puts_it(
    plane: Plane, tilt: float, tmp_path: Path
) -> None:
    spec = SeriesSpec(
        plane=plane,
        obliquity_degrees=tilt,
        obliquity_axis_degrees=130.0,
        rows=40,
        columns=32,
        slices=30,
        row_spacing=3.0,
        column_spacing=4.0,
        centre=(9.0, -7.0, 12.0),
    )
    target = np.array([20.0, -15.0, 30.0])

    def ball(xyz: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(np.linalg.norm(xyz - target, axis=-1) < 16, 500.0, 0.0)

    paths = write_series(spec, tmp_path, ball).paths
    image = SimpleITK.ReadImage([str(path) for path in paths])  # in order along the normal
    array = SimpleITK.GetArrayFromImage(image)
    centroid = np.argwhere(array == 500)[:, ::-1].mean(axis=0)
    assert np.allclose(image.TransformContinuousIndexToPhysicalPoint(centroid), target, atol=1.0)


def test_affine_agrees_with_the_written_tags(tmp_path: Path) -> None:
    spec = SeriesSpec(
        plane="sagittal",
        obliquity_degrees=11.0,
        obliquity_axis_degrees=40.0,
        rows=20,
        columns=16,
        slices=5,
        row_spacing=1.1,
        column_spacing=0.9,
        centre=(3.0, 4.0, 5.0),
    )
    image = SimpleITK.ReadImage([str(path) for path in write_series(spec, tmp_path, _ramp).paths])
    for row, column, index in [(0, 0, 0), (19, 3, 1), (7, 15, 4)]:
        expected = (spec.affine @ [row, column, index, 1])[:3]
        assert np.allclose(
            image.TransformIndexToPhysicalPoint((column, row, index)), expected, atol=1e-6
        )


@pytest.mark.parametrize(
    "storage",
    [
        {},
        {"bits_stored": 12, "slope": 1.25, "intercept": 640.0, "signed": True},
        {"signed": True, "slope": 0.25, "intercept": 250.0},
        {"transfer_syntax": "implicit", "slope": 2.0},
    ],
)
def test_ramp_survives_every_storage(storage: dict[str, Any], tmp_path: Path) -> None:
    spec = SeriesSpec(rows=20, columns=24, slices=3, **storage)
    write_series(spec, tmp_path, _ramp)
    positions, values = voxels(tmp_path)
    assert np.abs(values - _ramp(positions)).max() <= spec.slope / 2


def _ramp(xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1000.0 + xyz @ [2.0, 3.0, 5.0]


@pytest.mark.parametrize("syntax", ["explicit", "implicit"])
def test_files_are_what_pydicom_would_write(
    syntax: Literal["explicit", "implicit"], tmp_path: Path
) -> None:
    spec = SeriesSpec(rows=8, columns=8, slices=2, slope=0.5, transfer_syntax=syntax)
    for path in write_series(spec, tmp_path, _ramp).paths:
        dataset = pydicom.dcmread(path)
        list(dataset.iterall())  # makes pydicom parse, hence encode anew, every element
        again = io.BytesIO()
        pydicom.dcmwrite(again, dataset, enforce_file_format=False)
        assert again.getvalue() == path.read_bytes()


def test_values_that_the_pixels_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0\.\.4095 \(12 bits\), found 5000\.\.5000"):
        write_series(
            SeriesSpec(bits_stored=12), tmp_path, lambda xyz: np.full(xyz.shape[:-1], 5000.0)
        )


def test_background_is_exactly_zero_and_the_head_is_not(cohort: tuple[Path, CohortTruth]) -> None:
    for patient, spec, folder in written(cohort):
        if spec.blank:
            continue
        positions, values = voxels(folder)
        inside = patient.head.intensity(positions, spec.modality) > 0
        # Positions went through 16-character decimals: a voxel on the surface may change sides.
        assert ((values > 0) != inside).sum() <= 2


def test_numbers_tell_nothing_about_position(cohort: tuple[Path, CohortTruth]) -> None:
    for _, spec, folder in written(cohort):
        normal = spec.directions[2]
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.iterdir()]
        by_position = sorted(
            headers, key=lambda header: np.dot(normal, header.ImagePositionPatient)
        )
        assert tuple(header.InstanceNumber for header in by_position) == spec.instance_numbers
        assert list(spec.instance_numbers) != sorted(spec.instance_numbers)
        assert list(spec.file_numbers) != sorted(spec.file_numbers)
        assert max(spec.file_numbers) > spec.slices  # gaps


def test_end_slices_are_blank_and_recorded(cohort: tuple[Path, CohortTruth]) -> None:
    for _, spec, folder in written(cohort):
        blank = tuple(
            index
            for index, number in enumerate(spec.file_numbers)
            if not rescaled(pydicom.dcmread(folder / f"Image-{number}.dcm")).any()
        )
        assert blank == spec.blank_slices
        assert {0, spec.slices - 1} <= set(blank)


def test_twenty_patients_have_a_missing_and_a_black_series_but_never_nothing() -> None:
    for seed in range(12):
        truth = plan_cohort(PhantomConfig(patients=20, test_patients=0, seed=seed))
        specs = [spec for patient in truth.patients for spec in patient.series]
        assert any(spec.missing for spec in specs)
        assert any(spec.blank for spec in specs)
        assert all(
            any(not (spec.missing or spec.blank) for spec in patient.series)
            for patient in truth.patients
        )


def test_missing_and_black_series_are_as_recorded(tmp_path: Path) -> None:
    config = PhantomConfig(patients=20, test_patients=0, seed=1, matrix=(16, 16), slices=(4, 4))
    truth = write_cohort(config, tmp_path)
    for patient in truth.patients:
        for spec in patient.series:
            folder = tmp_path / "train" / patient.patient_id / spec.modality
            assert folder.exists() != spec.missing
            if not spec.missing:
                assert (not voxels(folder)[1].any()) == spec.blank


def test_identifiers_are_shared_and_unique_as_dicom_wants(cohort: tuple[Path, CohortTruth]) -> None:
    instances: list[str] = []
    studies, frames, series = (defaultdict[Any, set[str]](set) for _ in range(3))
    for patient, spec, folder in written(cohort):
        for path in folder.iterdir():
            header = pydicom.dcmread(path, stop_before_pixels=True)
            assert header.PatientID == patient.patient_id
            assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID
            syntax = {"explicit": ExplicitVRLittleEndian, "implicit": ImplicitVRLittleEndian}[
                spec.transfer_syntax
            ]
            assert header.file_meta.TransferSyntaxUID == syntax
            instances.append(header.SOPInstanceUID)
            studies[patient.patient_id].add(header.StudyInstanceUID)
            frames[patient.patient_id].add(header.FrameOfReferenceUID)
            series[patient.patient_id, spec.modality].add(header.SeriesInstanceUID)
    assert len(set(instances)) == len(instances)
    for shared in (studies, frames, series):
        assert all(len(uids) == 1 for uids in shared.values())
        assert len(set().union(*shared.values())) == len(shared)


def test_decimal_strings_fit_sixteen_characters(cohort: tuple[Path, CohortTruth]) -> None:
    for _, spec, folder in written(cohort):
        header = pydicom.dcmread(
            folder / f"Image-{spec.file_numbers[0]}.dcm", stop_before_pixels=True
        )
        for element in header:
            if element.VR == "DS":
                values = [element.value] if element.VM == 1 else element.value
                assert all(len(str(value)) <= 16 for value in values), element


def test_head_tells_left_from_right_front_from_back_and_top_from_bottom() -> None:
    head = Head()
    left, right = (
        head.intensity(np.array([[sign * MARKER_CENTRE[0], *MARKER_CENTRE[1:]]]), "T1w")
        for sign in (1, -1)
    )
    assert left > 1.2 * right
    width = {y: (head.intensity(_line(0, (0.0, y, 0.0)), "T1w") > 0).sum() for y in (-50.0, 50.0)}
    assert width[50.0] > width[-50.0] + 10
    reach = np.flatnonzero(head.intensity(_line(2, (0.0, 18.0, 0.0)), "T1w")) - 100
    assert reach.min() < -70
    assert reach.max() < 60


def _line(axis: int, through: tuple[float, float, float]) -> NDArray[np.float64]:
    points = np.tile(through, (201, 1))
    points[:, axis] = np.arange(-100.0, 101.0)
    return points


def test_a_plain_cohort_is_what_it_was_before_there_were_harder_ones(
    cohort: tuple[Path, CohortTruth],
) -> None:
    truth = (cohort[0] / "truth" / "truth.json").read_bytes()
    expected = "b5fe0ab9f81385f1d249e616928be2520b071298c5279d89623958a98e7aac5d"
    assert hashlib.sha256(truth).hexdigest() == expected
    assert not (cohort[0] / "truth" / "train_labels.csv").exists()


def test_noise_and_bias_stay_within_the_head() -> None:
    head = Head(centre=(5.0, 6.0, 7.0))
    points = _line(0, (0.0, 6.0, 7.0))
    clean, seen = head.intensity(points, "T2w"), imaged(head, "T2w", seed=[1])(points)
    assert ((clean > 0) == (seen > 0)).all()
    assert 0 < np.abs(seen / np.maximum(clean, 1) - 1)[clean > 0].mean() < 0.2


def test_truth_of_an_unfinished_cohort_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_truth(tmp_path)
