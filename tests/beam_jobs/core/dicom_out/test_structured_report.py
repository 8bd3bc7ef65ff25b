"""Structured Reports: what stands in them, for whom, the same bytes each time, and valid."""

import datetime
import io
import logging
import shutil
import subprocess
import sys

import pydicom
import pytest
from highdicom.sr import ComprehensiveSR
from pydicom import Dataset

from beam_jobs.common.cli import UsageError
from beam_jobs.core.dicom_out.outgoing import require_highdicom
from beam_jobs.core.dicom_out.structured_report import (
    WARNING,
    Finding,
    Instance,
    Maker,
    Number,
    is_report,
    structured_report,
)

MR = "1.2.840.10008.5.1.4.1.1.4"
STUDY, SERIES = "1.2.3", "1.2.3.4"
IMAGES = [Instance(STUDY, SERIES, MR, f"{SERIES}.{number}") for number in range(1, 6)]
MAKER = Maker(sha256="ab" * 32, facts=("Trained on 40 patients.",))
PROBABILITY = (Finding(name="MGMT: methylated", numbers=(Number(0.123456789),)),)
DATES = {"StudyDate": "20200102", "StudyTime": "123000"}


def origin(**values):
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (
        *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
        *("StudyTime", "AccessionNumber", "ReferringPhysicianName"),
    ):
        setattr(made, keyword, values.get(keyword, ""))
    made.StudyInstanceUID = STUDY
    return made


def report(findings=PROBABILITY, instances=IMAGES, maker=MAKER, **values):
    return structured_report(origin(**values), instances, findings, maker)


def read(data):
    """As highdicom reads it back."""
    return ComprehensiveSR.from_dataset(pydicom.dcmread(io.BytesIO(data)))


def groups(data):
    """(finding, {measurement: (value, unit)}, {evaluation: value}) of each group."""
    return [
        (
            group.finding_type.meaning,
            {one.name.meaning: (one.value, one.unit.value) for one in group.get_measurements()},
            {one.name.meaning: one.value.meaning for one in group.get_qualitative_evaluations()},
        )
        for group in read(data).content.get_image_measurement_groups()
    ]


def test_the_numbers_are_read_back_as_they_were_answered():
    findings = [
        Finding(name="grade", is_="3"),
        Finding(name="grade: 2", numbers=(Number(1.23456789e-30),)),
        Finding(
            name="age",
            numbers=(
                Number(61.25, "age", "a"),
                Number(-3.5, "Lower end", "points"),
                Number(float("nan"), "Upper end", "a"),
            ),
        ),
    ]
    assert groups(report(findings)) == [
        ("grade", {}, {"grade": "grade: 3"}),
        ("grade: 2", {"Probability": (1.23456789e-30, "1")}, {}),
        ("age", {"age": (61.25, "a"), "Lower end": (-3.5, "{points}")}, {}),
    ]


def test_a_number_is_the_same_as_text_and_as_bits():
    item = measured(report())
    assert item.FloatingPointValue == 0.123456789
    assert str(item.NumericValue) == "0.123456789"


def measured(data):
    """The only number of a report."""
    found = []

    def visit(dataset, element):
        if element.keyword == "MeasuredValueSequence":
            found.extend(element.value)

    pydicom.dcmread(io.BytesIO(data)).walk(visit)
    [one] = found
    return one


def test_what_it_says_of_itself_is_prominent():
    data = pydicom.dcmread(io.BytesIO(report(**DATES)))
    assert "not for clinical use" in data.SeriesDescription
    comments = [one for one in data.ContentSequence if one.ValueType == "TEXT"]
    assert [one.TextValue for one in comments if one.RelationshipType == "CONTAINS"] == [WARNING]
    assert (data.Manufacturer, data.VerificationFlag) == ("Voxelbeam", "UNVERIFIED")
    assert data.PreliminaryFlag == "PRELIMINARY"
    [group] = read(report()).content.get_image_measurement_groups()
    texts = [one.TextValue for one in group[0].ContentSequence if one.ValueType == "TEXT"]
    assert f"sha256 {MAKER.sha256}" in texts
    assert "Trained on 40 patients." in texts


def test_no_clock_goes_in_and_equal_content_is_equal_bytes(monkeypatch):
    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2099, 12, 31, 23, 59, 59, 123456)

    data = report(**DATES)
    for module in ("base", "base_content", "sr.sop"):
        clock = sys.modules[f"highdicom.{module}"].datetime
        monkeypatch.setattr(clock, "datetime", Later)
    assert report(instances=IMAGES[::-1], **DATES) == data
    assert pydicom.dcmread(io.BytesIO(data)).ContentDate == "20200102"
    assert b"2099" not in data


def test_other_content_is_another_object_of_the_same_series():
    first, second, third = (
        pydicom.dcmread(io.BytesIO(data))
        for data in (
            report(),
            report([Finding(name="MGMT: methylated", numbers=(Number(0.5),))]),
            report(maker=Maker(sha256="cd" * 32)),
        )
    )
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID != third.SeriesInstanceUID
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID
    assert all(len(one.SOPInstanceUID) <= 64 for one in (first, second, third))


@pytest.mark.parametrize("name", ["Müller^Jürgen", "Yamada^Tarou=山田^太郎=やまだ^たろう", "", "x"])
def test_a_patient_is_named_as_the_images_name_it_and_nowhere_else(name, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        data = report(PatientName=name, PatientID="7", PatientSex="F")
    found = pydicom.dcmread(io.BytesIO(data))
    assert (str(found.PatientName), found.PatientID, found.PatientSex) == (name, "7", "F")
    if len(name) > 1:
        assert data.count(name.encode()) == 1
        assert name not in caplog.text + "".join(capfd.readouterr())


def test_images_of_other_studies_are_other_evidence():
    other = Instance("1.2.9", "1.2.9.1", "1.3.46.670589.11.0.0.12.1", "1.2.9.1.1")  # a vendor's
    data = pydicom.dcmread(io.BytesIO(report(instances=[other, *IMAGES])))
    assert data.StudyInstanceUID == STUDY
    for sequence, expected in (
        (data.CurrentRequestedProcedureEvidenceSequence, IMAGES),
        (data.PertinentOtherEvidenceSequence, [other]),
    ):
        found = [
            Instance(
                study.StudyInstanceUID,
                series.SeriesInstanceUID,
                image.ReferencedSOPClassUID,
                image.ReferencedSOPInstanceUID,
            )
            for study in sequence
            for series in study.ReferencedSeriesSequence
            for image in series.ReferencedSOPSequence
        ]
        assert found == expected


def test_the_image_library_has_every_image_by_series():
    images = [one._replace(modality="MR") for one in IMAGES]
    other = Instance("1.2.9", "1.2.9.1", MR, "1.2.9.1.1", "a vendor's")
    data = pydicom.dcmread(io.BytesIO(report(instances=[other, *images])))
    [library] = [
        one
        for one in data.ContentSequence
        if one.ConceptNameCodeSequence[0].CodeMeaning == "Image Library"
    ]
    found = {}
    for group in library.ContentSequence:
        modality, uid, *entries = group.ContentSequence
        found[modality.ConceptCodeSequence[0].CodeValue, uid.UID] = [
            one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for one in entries
        ]
    assert found == {
        ("MR", SERIES): [one.sop for one in images],
        ("OT", "1.2.9.1"): [other.sop],
    }


@pytest.mark.parametrize("name", ["x" * 300, "a\nb\\c", "größe", " "])
def test_any_name_of_a_label_is_one_that_dicom_may_hold(name):
    [(finding, numbers, _)] = groups(
        report([Finding(name=name, numbers=(Number(0.5, name, name),))])
    )
    assert len(finding) <= 64
    assert [value for value, _ in numbers.values()] == [0.5]
    assert not {"\n", "\\"} & {*finding}


def test_a_report_is_told_by_its_begin():
    assert is_report(report(PatientName="x" * 60)[:4096])
    assert not is_report(b"\0" * 128 + b"DICM")


def test_without_highdicom_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(
        UsageError, match=r"--dicom_sr needs .*pip install 'voxelbeam\[dicom_out\]'"
    ):
        require_highdicom("--dicom_sr")


@pytest.mark.slow
@pytest.mark.parametrize(
    "values", [{}, {**DATES, "PatientName": "Müller^Jürgen", "PatientID": "7"}]
)
def test_dciodvfy_finds_no_error_and_dcmtk_reads_it(tmp_path, values):
    for program in ("dciodvfy", "dsrdump"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: dicom3tools, dcmtk)")
    findings = (
        Finding(name="grade", is_="größer"),
        *PROBABILITY,
        Finding(name="age", numbers=(Number(61.25, "age", "a"), Number(1.0, "x", "points"))),
    )
    other = Instance("1.2.9", "1.2.9.1", MR, "1.2.9.1.1")
    path = tmp_path / "a.dcm"
    path.write_bytes(report(findings, [*IMAGES, other], **values))
    checked = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    told = (checked.stdout + checked.stderr).splitlines()
    assert "ComprehensiveSR" in told
    # What a study does not say, and codes of our own, which the report declares.
    known = (
        "Warning - Missing attribute or value that would be needed to build DICOMDIR",
        "Warning - Unrecognized defined term <99VOXELBEAM>",
        "ComprehensiveSR",
    )
    assert [line for line in told if not line.startswith(known)] == []
    dumped = subprocess.run(["dsrdump", "+Pl", path], capture_output=True, text=True, check=True)
    assert '"Probability")="0.123456789" (1,UCUM,"no units")' in dumped.stdout
    assert WARNING in dumped.stdout
    assert "Error" not in dumped.stderr
