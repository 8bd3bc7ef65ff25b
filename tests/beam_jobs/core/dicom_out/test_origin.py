"""Whose an image is, as an answer that is filed beside it says it."""

import io

import numpy as np
import pydicom
import pytest
from pydicom import uid

from beam_jobs.core.dicom_out.origin import read_origin
from beam_jobs.core.reasons import Reason, RejectedError
from tests.dicom_files import (
    NATIVE_SYNTAXES,
    image_dataset,
    save,
    write_slices,
)

PIXELS = np.zeros((36, 40), np.uint16)
ASKED = {
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID"),
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
    "SpecificCharacterSet",
}


def write(path, syntax=uid.ExplicitVRLittleEndian, **attributes):
    return str(save(image_dataset(rows=36, columns=40, **attributes), path, syntax, [PIXELS]))


@pytest.mark.parametrize("syntax", NATIVE_SYNTAXES)
def test_a_patient_and_study_are_read_from_every_syntax_and_nothing_else_is(tmp_path, syntax):
    path = write(
        tmp_path / "a.dcm",
        syntax,
        PatientName="Doe^Jo",
        PatientSex="F",
        PatientBirthDate="19700102",
        AccessionNumber="A1",
        InstitutionName="Some Hospital",
        PatientAddress="Some Street",
        OperatorsName="Someone",
    )
    origin = read_origin(path)
    assert {element.keyword for element in origin} == ASKED
    assert (origin.PatientName, origin.PatientSex) == ("Doe^Jo", "F")
    assert (origin.PatientBirthDate, origin.AccessionNumber) == ("19700102", "A1")
    assert (origin.PatientID, origin.StudyDate) == ("00001", "20200101")


def test_what_a_file_lacks_is_there_and_empty(tmp_path):
    def strip(dataset, _):
        for keyword in ("PatientID", "PatientName", "StudyDate", "StudyTime"):
            del dataset[keyword]

    [path] = write_slices(tmp_path, [PIXELS], change=strip)
    origin = read_origin(str(path))
    assert {element.keyword for element in origin} == ASKED
    given = {e.keyword for e in origin if e.value}
    assert given == {"StudyInstanceUID", "SpecificCharacterSet"}


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Buc^Jérôme"),
        ("ISO_IR 192", "Müller^Jürgen"),
        ("ISO_IR 144", "Люкceмбypг"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ],
)
def test_a_name_keeps_its_letters_in_utf_8(tmp_path, character_set, name):
    path = write(tmp_path / "a.dcm", SpecificCharacterSet=character_set, PatientName=name)
    origin = read_origin(path)
    assert str(origin.PatientName) == name
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, origin, implicit_vr=False, little_endian=True)
    assert name.encode() in stream.getvalue()


@pytest.mark.filterwarnings("ignore:Invalid value", "ignore:The value length")
@pytest.mark.parametrize(
    ("keyword", "given", "found"),
    [
        ("StudyDate", b"2020.01.02", "20200102"),
        ("StudyDate", b"20209999", ""),
        ("StudyTime", b"12:30", ""),
        ("PatientSex", b"male", ""),
        ("PatientID", b"A\\B ", "A\\B"),
        ("PatientID", b"x" * 80, "x" * 80),
    ],
)
def test_a_value_that_is_none_of_its_attribute_is_empty(tmp_path, keyword, given, found):
    def change(dataset, _):
        tag = pydicom.tag.Tag(keyword)
        dataset[tag] = pydicom.DataElement(tag, "UN", given)

    [path] = write_slices(tmp_path, [PIXELS], uid.ImplicitVRLittleEndian, change=change)
    value = read_origin(str(path))[keyword].value
    if isinstance(value, pydicom.multival.MultiValue):
        value = "\\".join(value)
    assert str(value) == found


@pytest.mark.filterwarnings("ignore:Invalid value")
@pytest.mark.parametrize("study", ["", "1.2\\1.3", "a study"])
def test_a_file_without_a_study_is_refused(tmp_path, study):
    [path] = write_slices(
        tmp_path, [PIXELS], change=lambda one, _: setattr(one, "StudyInstanceUID", study)
    )
    with pytest.raises(RejectedError, match="no StudyInstanceUID") as refused:
        read_origin(str(path))
    assert refused.value.reason == Reason.CORRUPT_HEADER


@pytest.mark.parametrize("content", [b"", b"no DICOM at all" * 20])
def test_a_file_that_is_no_dicom_is_refused(tmp_path, content):
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(RejectedError):
        read_origin(str(tmp_path / "a.dcm"))
    with pytest.raises(RejectedError) as refused:
        read_origin(str(tmp_path / "gone.dcm"))
    assert refused.value.reason == Reason.UNREADABLE_FILE
