"""Placeholder ids bring nobody together, and a user may say who is a patient."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pydicom
import pytest

from beam_jobs import dicom_to_tfrecord, survey
from beam_jobs.common import cli
from beam_jobs.convert.second_decoder import sample_slices
from beam_jobs.core.cohort.ids import study_id
from beam_jobs.core.preprocess import PreprocessSpec
from tests.beam_jobs.convert.test_input import convert, images, listed, manifest, rows

GRID = ("--shape", "8,8,4", "--fov_mm", "40,40,25")


def patients(dataset: Path) -> list[str]:
    return sorted(patient_id for patient_id, _, _ in manifest(dataset).patients)


def rename(folder: Path, patient_id: str) -> str:
    """Writes another PatientID into all files of a folder; gives their StudyInstanceUID."""
    uids = set()
    for path in folder.glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = patient_id
        dataset.save_as(path)
        uids.add(dataset.StudyInstanceUID)
    (uid,) = uids
    return str(uid)


@pytest.fixture
def heap(tmp_path: Path) -> Path:
    """Three people, a study and two series each; of two of them the id was taken away."""
    root = tmp_path / "heap"
    for name in ("A7", "B8", "C9"):
        for modality in ("T1w", "FLAIR"):
            folder = root / name / "visit" / f"series {modality[0]}"
            images(folder, name, modality)
            if name != "A7":
                rename(folder, "ANONYMOUS")
    return root


def study_of(heap: Path, name: str) -> str:
    path = next((heap / name).rglob("*.dcm"))
    return str(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID)


def test_people_without_an_id_are_not_made_one(heap: Path, tmp_path: Path, capsys) -> None:
    assert convert(heap, tmp_path / "d", "--strict") == cli.EXIT_REJECTED
    assert patients(tmp_path / "d") == ["A7"]
    counts = manifest(tmp_path / "d").counts
    assert counts["files"] == {"used": 10, "unused": 0, "rejected": 20}
    assert counts["patients"]["rejected"] == 0
    assert counts["reasons"] == {"no_patient_id": 4}
    tables = tmp_path / "d" / "series.csv", tmp_path / "d" / "rejects.csv"
    assert listed(tables[0]) == {"used": 10, "rejected": 20}
    # A row a series, not one a file, with all that is known of it.
    nobodys = [row for row in rows(tables[0]) if row["reason"] == "no_patient_id"]
    assert [(row["patient"], row["slices"], row["files"]) for row in nobodys] == [
        ("", "5", "5")
    ] * 4
    assert Counter(row["modality"] for row in nobodys) == {"T1w": 2, "FLAIR": 2}
    assert {(row["rows"], row["columns"], row["plane"]) for row in nobodys} == {
        ("12", "14", "axial")
    }
    assert {row["slice_step"] for row in nobodys} == {"5.0"}
    refused = rows(tables[1])
    assert {(row["scope"], row["patient"], row["files"]) for row in refused} == {
        ("series", "", "5")
    }
    assert "--patient_from directory or study" in refused[0]["detail"]
    assert "ANONYMOUS" not in "".join(table.read_text() for table in tables)
    argv = [str(heap), "--output", str(tmp_path / "s.csv")]
    assert survey.main(argv) == cli.EXIT_OK
    assert "no_patient_id 4" in capsys.readouterr().out
    assert listed(tmp_path / "s.csv") == {"used": 10, "rejected": 20}


@pytest.mark.parametrize("placeholder", ["***", "", "0", "000000"])
def test_no_placeholder_is_a_patient(tmp_path: Path, placeholder: str) -> None:
    for name in ("A", "B"):
        images(tmp_path / "heap" / name, name)
        rename(tmp_path / "heap" / name, placeholder)
    said = (
        "2 series are nobody's: --patient_from directory or study says whose \\(.*\\); .* says why"
    )
    with pytest.raises(cli.CommandError, match=said):
        convert(tmp_path / "heap", tmp_path / "d")
    found = [row for row in rows(tmp_path / "d" / "rejects.csv") if row["scope"] == "series"]
    assert [row["reason"] for row in found] == ["no_patient_id"] * 2


def test_a_series_that_lost_its_id_in_some_files_is_whole(tmp_path: Path) -> None:
    """Of one person: half a brain is nobody's. Of two people it stays apart."""
    for series, ids in (("A", ("A7", "ANON")), ("B", ("B8", "C9"))):
        images(tmp_path / "r" / series / "1", series)
        (tmp_path / "r" / series / "2").mkdir()
        for number, path in enumerate(sorted((tmp_path / "r" / series / "1").iterdir())):
            dataset = pydicom.dcmread(path)
            dataset.PatientID = ids[number % 2]
            dataset.save_as(path)
            if number % 2:
                path.rename(tmp_path / "r" / series / "2" / path.name)
    assert convert(tmp_path / "r", tmp_path / "d") == cli.EXIT_OK
    used = [row for row in rows(tmp_path / "d" / "series.csv") if row["verdict"] == "used"]
    assert {row["patient"]: row["slices"] for row in used} == {"A7": "5", "B8": "3", "C9": "2"}
    assert survey.main([str(tmp_path / "r"), "--output", str(tmp_path / "s.csv")]) == cli.EXIT_OK
    found = rows(tmp_path / "s.csv")
    assert {row["patient"]: row["slices"] for row in found} == {"A7": "5", "B8": "3", "C9": "2"}


def test_zeros_of_one_study_may_be_the_first_of_a_numbered_cohort(tmp_path: Path) -> None:
    images(tmp_path / "heap" / "A", "00000")
    images(tmp_path / "heap" / "B", "00001")
    assert convert(tmp_path / "heap", tmp_path / "d") == cli.EXIT_OK
    assert patients(tmp_path / "d") == ["00000", "00001"]


def test_by_directory_each_directory_of_the_input_is_a_patient(heap: Path, tmp_path: Path) -> None:
    assert convert(heap, tmp_path / "d", "--patient_from", "directory", "--strict") == cli.EXIT_OK
    assert patients(tmp_path / "d") == ["A7", "B8", "C9"]
    # The modality was left to the headers.
    used = [row for row in rows(tmp_path / "d" / "series.csv") if row["verdict"] == "used"]
    assert Counter(row["modality"] for row in used) == {"T1w": 3, "FLAIR": 3}
    archive = shutil.make_archive(str(tmp_path / "heap"), "zip", heap)
    assert convert(archive, tmp_path / "z", "--patient_from", "directory") == cli.EXIT_OK
    assert (tmp_path / "z" / "series.csv").read_text() == (
        tmp_path / "d" / "series.csv"
    ).read_text()


def test_by_directory_one_named_after_a_modality_gives_none(tmp_path: Path) -> None:
    """It would be its own patient: that is told before any header is read."""
    images(tmp_path / "r" / "CT", "A7")
    argv = ("--patient_from", "directory", "--modalities", "CT")
    with pytest.raises(cli.UsageError, match="unknown modality CT"):
        convert(tmp_path / "r", tmp_path / "d", *argv)


def test_by_directory_a_file_in_none_is_nobodys(heap: Path, tmp_path: Path) -> None:
    shutil.copy(next((heap / "A7").rglob("*.dcm")), heap / "lost.dcm")
    assert convert(heap, tmp_path / "d", "--patient_from", "directory") == cli.EXIT_OK
    (row,) = rows(tmp_path / "d" / "rejects.csv")
    assert (row["subject"], row["reason"]) == ("lost.dcm", "no_patient_id")
    assert "in no directory of a patient" in row["detail"]


def test_by_study_ids_are_the_same_everywhere_and_hold_no_uid(heap: Path, tmp_path: Path) -> None:
    uids = {name: study_of(heap, name) for name in ("A7", "B8", "C9")}
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "id,label\n" + "".join(f"{study_id(uid)},{n % 2}\n" for n, uid in enumerate(uids.values()))
    )
    argv = ("--patient_from", "study")
    labelled = ("--labels", str(labels), "--id_column", "id", "--label_column", "label")
    assert convert(heap, tmp_path / "d", *argv, *labelled, "--folds", "2") == cli.EXIT_OK
    assert patients(tmp_path / "d") == sorted(map(study_id, uids.values()))
    assert {label for _, label, _ in manifest(tmp_path / "d").patients} == {0, 1}
    assert convert(heap / "B8", tmp_path / "one", *argv) == cli.EXIT_OK
    assert patients(tmp_path / "one") == [study_id(uids["B8"])]
    for path in (tmp_path / "d").rglob("*"):
        if path.is_file():
            assert not any(uid.encode() in path.read_bytes() for uid in uids.values()), path


def test_by_study_people_of_several_studies_are_told(
    heap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They may stand in several folds; a placeholder is nobody, in however many studies."""
    images(heap / "A7 again" / "x", "A7")
    for path in (heap / "A7 again" / "x").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.9", "1.2.9.1"
        dataset.save_as(path)
    argv = ["--input", str(heap), "--output", str(tmp_path / "d"), "--patient_from", "study"]
    assert dicom_to_tfrecord.main([*argv, *GRID, "--no_report"]) == cli.EXIT_OK
    assert "mind        1 PatientID in several studies, each a patient" in capsys.readouterr().out
    counts = manifest(tmp_path / "d").counts["patients"]
    assert (counts["converted"], counts["people_in_several_studies"]) == (4, 1)


def test_by_study_hashed_ids_are_keyed(heap: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a secret of more than sixteen bytes")
    argv = ("--id_policy", "hmac", "--id_key", str(tmp_path / "key"), "--patient_from", "study")
    assert convert(heap, tmp_path / "d", *argv) == cli.EXIT_OK
    found = patients(tmp_path / "d")
    assert len(found) == 3
    assert not {study_id(study_of(heap, name)) for name in ("A7", "B8", "C9")} & set(found)


def test_a_study_of_two_people_is_refused(heap: Path, tmp_path: Path) -> None:
    rename(heap / "B8" / "visit" / "series T", "one")
    rename(heap / "B8" / "visit" / "series F", "another")
    assert convert(heap, tmp_path / "d", "--patient_from", "study") == cli.EXIT_OK
    (row,) = rows(tmp_path / "d" / "rejects.csv")
    assert (row["scope"], row["reason"]) == ("patient", "mixed_patients")
    assert row["detail"] == "2 different PatientIDs in the study"


def test_by_directory_wrapped_people_are_not_made_one(tmp_path: Path, capsys) -> None:
    """As on a disc of a hospital: DICOM/PA0/ST0/SE0."""
    for name, modality in (("A1", "T1w"), ("B1", "FLAIR")):
        images(tmp_path / "disc" / "DICOM" / name / "ST0" / "SE0", name, modality)
    with pytest.raises(cli.CommandError, match="could be converted"):
        convert(tmp_path / "disc", tmp_path / "d", "--patient_from", "directory")
    (row,) = [r for r in rows(tmp_path / "d" / "rejects.csv") if r["scope"] == "patient"]
    assert (row["reason"], row["patient"]) == ("mixed_patients", "DICOM")
    assert row["detail"] == "2 different PatientIDs in the directory"
    argv = ("--patient_from", "directory")
    assert convert(tmp_path / "disc" / "DICOM", tmp_path / "e", *argv) == cli.EXIT_OK
    assert patients(tmp_path / "e") == ["A1", "B1"]


def test_by_patient_id_directories_give_modalities_alone(tmp_path: Path) -> None:
    for folder, modality in (("first", "T1w"), ("second", "FLAIR")):
        images(tmp_path / "r" / folder / modality, "A7", modality)
    assert convert(tmp_path / "r", tmp_path / "by_layout") == cli.EXIT_OK
    assert patients(tmp_path / "by_layout") == ["first", "second"]
    assert convert(tmp_path / "r", tmp_path / "d", "--patient_from", "patient_id") == cli.EXIT_OK
    assert patients(tmp_path / "d") == ["A7"]
    used = [row["modality"] for row in rows(tmp_path / "d" / "series.csv")]
    assert sorted(used) == ["FLAIR", "T1w"]


def test_the_choice_is_part_of_the_job_and_of_the_manifest(heap: Path, tmp_path: Path) -> None:
    """And nothing of either without it, so that datasets made before are gone on with."""
    assert convert(heap, tmp_path / "d") == cli.EXIT_OK
    assert "patient_from" not in json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert "patient_from" not in json.loads((tmp_path / "d" / ".state" / "job.json").read_text())
    argv = ("--patient_from", "study")
    with pytest.raises(cli.UsageError, match="patient_from: nothing there, 'study' requested"):
        convert(heap, tmp_path / "d", *argv)
    assert convert(heap, tmp_path / "d", *argv, "--overwrite") == cli.EXIT_OK
    found = manifest(tmp_path / "d")
    assert found.patient_from == "study"
    # The recipe is the same: it says how a volume is made, not whose it is.
    spec = PreprocessSpec.from_json(found.spec)
    assert spec.fingerprint == found.schema.spec_fingerprint
    assert "patient_from" not in found.spec
    ids = {patient_id for patient_id, _, _ in found.patients}
    slices = sample_slices(str(heap), spec, count=99, seed=0, patients=ids, patient_from="study")
    assert len(slices) == 30
    with pytest.raises(cli.UsageError, match="none of the dataset's patients"):
        sample_slices(str(heap), spec, count=99, seed=0, patients=ids)


def test_the_survey_takes_the_same_choice(heap: Path, tmp_path: Path) -> None:
    for choice, names in (
        ("directory", {"A7", "B8", "C9"}),
        ("study", {study_id(study_of(heap, name)) for name in ("A7", "B8", "C9")}),
        ("patient_id", {"A7", ""}),
    ):
        argv = [str(heap), "--patient_from", choice, "--output", str(tmp_path / "s.csv")]
        assert survey.main(argv) == cli.EXIT_OK
        assert {row["patient"] for row in rows(tmp_path / "s.csv")} == names
