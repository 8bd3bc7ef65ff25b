"""Reports: of whom there is one, what of, and that they say what the table says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom.sr import srread
from pydicom import uid

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.target import Target
from beam_jobs.core.series import Series
from serving.model.answers import Prediction, number_columns
from serving.model.integrity import Checked
from serving.predict.images import Images, images_of
from serving.predict.outputs import requested_columns, table
from serving.predict.reports import require_place, write_reports
from serving.predict.submission import Submission, compose
from tests.datasets import TARGETS
from tests.dicom_files import read_stacks, write_slices
from tests.serving.models import task_contract

PIXELS = np.zeros((36, 40), np.uint16)
SHA256 = "ab" * 32


def series(folder: Path, uid_: str, **attributes: Any) -> Series:
    """A series of two slices that was read from files."""
    [made] = read_stacks(write_slices(folder, [PIXELS] * 2, series_uid=uid_, **attributes))
    return made


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    folder = tmp_path_factory.mktemp("images")
    one = series(folder / "a", "1.2.3", PatientID="17", PatientName="Doe^Jo")
    return images_of("1", {"T1wCE": one}, ("T1wCE",))


def test_a_report_is_of_the_series_that_the_model_looks_at(tmp_path: Path) -> None:
    used = {
        "FLAIR": series(tmp_path / "a", "1.2.3"),
        "T1w": series(tmp_path / "b", "1.2.4"),
        "T1wCE": series(tmp_path / "c", "1.2.5"),
    }
    origin = images_of("1", used, ("T1wCE", "FLAIR", "T2w")).origin
    assert origin.series == {"T1wCE": "1.2.5", "FLAIR": "1.2.3"}
    headers = [*used["T1wCE"].headers, *used["FLAIR"].headers]
    assert [one.sop for one in origin.instances] == [header.sop_uid for header in headers]
    assert {one.series for one in origin.instances} == {"1.2.5", "1.2.3"}


def test_the_frames_of_one_object_are_named_once(tmp_path: Path) -> None:
    one = series(tmp_path, "1.2.3")
    frames = tuple(one.first._replace(frame=number) for number in range(2))
    used = {"T1w": Series(headers=frames, geometry=one.geometry, offsets=one.offsets)}
    [named] = images_of("1", used, ("T1w",)).origin.instances
    assert (named.sop, named.modality) == (one.first.sop_uid, "MR")


def test_a_report_is_filed_in_the_study_of_most_series(tmp_path: Path) -> None:
    def change(dataset: Any, _: int) -> None:
        dataset.StudyInstanceUID, dataset.StudyID = "1.9", "later"

    used = {
        "FLAIR": series(tmp_path / "a", "1.2.3"),
        "T1w": series(tmp_path / "b", "1.2.4", change=change),
        "T1wCE": series(tmp_path / "c", "1.2.5", change=change),
    }
    origin = images_of("1", used, ("FLAIR", "T1w", "T1wCE")).origin
    assert (origin.header.StudyInstanceUID, origin.header.StudyID) == ("1.9", "later")
    assert [one.study for one in origin.instances] == ["1.2.3.1"] * 2 + ["1.9"] * 4


def test_images_that_cannot_be_named_have_no_report(tmp_path: Path) -> None:
    one, other = series(tmp_path / "a", "1.2.3"), series(tmp_path / "b", "1.2.4", PatientID="2")
    nifti = _with(one, transfer_syntax="NIfTI-1")
    gone = _with(one, path=str(tmp_path / "gone.dcm"))
    for used, why in (
        ({"T1w": one, "T1wCE": other}, "series of several PatientIDs"),
        ({"T1w": one, "T1wCE": nifti}, "NIfTI"),
        ({"T1w": _with(one, sop_uid="")}, "images without UIDs"),
        ({"T1w": _with(one, series_uid="1.2\\3")}, "images without UIDs"),
        ({"T1w": gone}, "unreadable_file"),
        ({"FLAIR": one}, "no series that the model looks at"),
    ):
        assert images_of("1", used, ("T1w", "T1wCE")) == Images("1", "", why)


def _with(one: Series, **fields: Any) -> Series:
    headers = tuple(header._replace(**fields) for header in one.headers)
    return Series(headers=headers, geometry=one.geometry, offsets=one.offsets)


def predictions_of(target: Target, patients: Sequence[str]) -> list[Prediction]:
    rng = np.random.default_rng(0)
    names = number_columns(target)
    return [
        Prediction(
            one, dict(zip(names, rng.random(len(names), np.float32).tolist(), strict=True)), ()
        )
        for one in patients
    ]


def submission_of(target: Target, predictions: Sequence[Prediction]) -> Submission:
    rejects = [{"scope": "patient", "subject": "9", "patient": "9", "reason": "x", "detail": ""}]
    return compose(
        predictions=[(one.patient_id, one.answer(target)) for one in predictions],
        rejects=rejects,
        prior=(0.5,) * target.outputs,
    )


def numbers(path: Path) -> list[tuple[str, str, float]]:
    """(finding, measurement, value) of a report, in order."""
    report: Any = srread(path)
    return [
        (group.finding_type.meaning, one.name.meaning, one.value)
        for group in report.content.get_image_measurement_groups()
        for one in group.get_measurements()
    ]


@pytest.mark.parametrize("task", list(TARGETS))
def test_a_report_says_what_the_table_says(task: str, images: Images, tmp_path: Path) -> None:
    target = TARGETS[task]
    predictions = predictions_of(target, ["1"])
    submission = submission_of(target, predictions)
    checked = Checked(task_contract(target), SHA256)
    lines = write_reports(str(tmp_path), submission, predictions, {"1": images}, checked)
    assert lines == [f"1 in {tmp_path}"]
    assert [path.name for path in tmp_path.iterdir()] == ["1.dcm"]  # and none of patient 9
    columns = requested_columns(target, None, id_column="id", value_column=None)
    rows = table(submission, {one.patient_id: one for one in predictions}, columns)
    row = rows.iloc[0].to_dict()
    shown = [float(f"{row[name]:.9g}") for name in rows.columns[1:] if name != "class"]
    found = numbers(tmp_path / "1.dcm")
    assert [value for _, _, value in found] == shown
    report = pydicom.dcmread(tmp_path / "1.dcm")
    assert (report.PatientID, report.PatientName) == ("17", "Doe^Jo")
    if task == "multiclass":
        assert f"grade: {row['class']}" in str(report)
        assert [finding for finding, _, _ in found] == ["grade: 2", "grade: 3", "grade: 4"]
    if task == "regression":
        names = ["volume", "Lower end of the 90% interval of volume"]
        assert [name for _, name, _ in found][:2] == names
        assert "'ml'" in str(report)


def test_a_value_without_an_interval_is_reported_alone(images: Images, tmp_path: Path) -> None:
    target = TARGETS["regression"]
    values = {"value": 3.5, "low": float("nan"), "high": float("nan"), "spread": 0.0}
    predictions = [Prediction("1", values, ())]
    checked = Checked(task_contract(target), SHA256)
    write_reports(
        str(tmp_path), submission_of(target, predictions), predictions, {"1": images}, checked
    )
    assert numbers(tmp_path / "1.dcm") == [("volume", "volume", 3.5)]


def test_written_again_it_is_the_same_file_and_what_is_no_report_is_let_be(
    images: Images, tmp_path: Path
) -> None:
    target = TARGETS["binary"]
    predictions = predictions_of(target, ["1", "2"])
    submission = submission_of(target, predictions)
    known = {"1": images, "2": Images("2", "", "NIfTI")}
    given = (submission, predictions, known, Checked(task_contract(target), SHA256))
    lines = write_reports(str(tmp_path), *given)
    assert lines == [f"1 in {tmp_path}", "none of 1 patient: NIfTI"]
    first = (tmp_path / "1.dcm").read_bytes()
    write_reports(str(tmp_path), *given)
    assert (tmp_path / "1.dcm").read_bytes() == first
    [scan] = write_slices(tmp_path / "scan", [PIXELS])
    scan.replace(tmp_path / "1.dcm")
    with pytest.raises(UsageError, match=r"1\.dcm lies there, and no prediction wrote it"):
        write_reports(str(tmp_path), *given)
    assert pydicom.dcmread(tmp_path / "1.dcm").SOPClassUID == uid.MRImageStorage


def test_a_modality_that_a_patient_lacks_is_told(images: Images, tmp_path: Path) -> None:
    target = TARGETS["binary"]
    predictions = [predictions_of(target, ["1"])[0]._replace(missing=("T2w",))]
    checked = Checked(task_contract(target), SHA256)
    write_reports(
        str(tmp_path), submission_of(target, predictions), predictions, {"1": images}, checked
    )
    data = (tmp_path / "1.dcm").read_bytes()
    assert b"Not known, and answered without: T2w" in data
    assert b"T1wCE: series 1.2.3" in data


def test_places_that_no_report_may_go_to_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "cohort"
    source.mkdir()
    (tmp_path / "file").write_text("")
    for place, message in (
        ("", "--dicom_sr is empty"),
        ("https://pacs/web", r"dicomweb\+https://HOST/PATH"),
        ("dicomweb+https://pacs/web?PatientID=1", "no study or search"),
        ("dicomweb+https://me:secret@pacs/web", "DICOMWEB_USERNAME"),
        (str(source / "reports"), "lies inside --input"),
        (str(tmp_path / "file"), "a directory is needed"),
        (str(tmp_path / "file" / "reports"), f"{tmp_path}/file is a file"),
        ("/proc/1/reports", "cannot be written"),
        (str(tmp_path / "reports.zip"), "zip"),
    ):
        with pytest.raises(UsageError, match=message) as refused:
            require_place(place, source=str(source), id_policy="keep")
        assert "secret" not in str(refused.value)
    with pytest.raises(UsageError, match="names its patient"):
        require_place(str(tmp_path / "r"), source=str(source), id_policy="hmac")
    require_place(str(tmp_path / "r"), source=str(source), id_policy="keep")
    assert not files.exists(tmp_path / "r")
