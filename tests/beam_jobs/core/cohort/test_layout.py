"""Whose file it is: by the directories below an input, never by those above it."""

import os

import pytest

from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.ids import study_id
from beam_jobs.core.cohort.layout import (
    find_owners,
    is_nobody,
    only_patient,
    patient_id_of,
    patient_of,
    series_owners,
)
from tests.beam_jobs.core.test_series import header

ALL = ("FLAIR", "T1w", "T1wCE", "T2w")


def found(paths, root):
    owners = find_owners(paths, ALL, root=root)
    return {name: (patient_id_of(owner.patient), owner.modality) for name, owner in owners.items()}


@pytest.mark.parametrize("root", ["c/00005/T1w", "c/00005/T1w/", "c/00005/t1W", "T1w", "/FLAIR"])
def test_an_input_named_like_a_modality_is_a_heap(root):
    root_ = root.rstrip("/")
    assert found([f"{root_}/1.dcm", f"{root_}/2.dcm"], root) == {}
    assert found([f"{root_}/series/1.dcm", f"{root_}/1.dcm"], root) == {}
    # What lies in it as the layout has it is a patient's all the same.
    below = found([f"{root_}/00007/FLAIR/1.dcm", f"{root_}/1.dcm"], root)
    assert below == {f"{root_}/00007/FLAIR": ("00007", "FLAIR")}
    assert found([f"{root_}/FLAIR/1.dcm", f"{root_}/T2w/1.dcm"], root) == {}


@pytest.mark.parametrize("archive", ["T1w.zip", "x/flair.tar.gz", "x/T2w.zip!/", "x/e.zip!/T1w"])
def test_an_archive_named_like_a_modality_is_a_heap(archive):
    inside = archive if "!/" in archive else f"{archive}!/"
    assert found([files_join(inside, "1.dcm")], archive) == {}
    assert found([files_join(inside, "5/T1w/1.dcm")], archive) == {
        files_join(inside, "5/T1w"): ("5", "T1w")
    }


def files_join(root, name):
    return f"{root.rstrip('/')}/{name}"


def test_an_input_may_be_the_patient_and_is_named_as_it_lies(tmp_path, monkeypatch):
    (tmp_path / "00005" / "T1w").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "00005")
    for root, path in ((".", "./T1w/1"), ("../00005", "../00005/T1w/1"), ("./", "./T1w/1")):
        assert list(found([path], root).values()) == [("00005", "T1w")]
    monkeypatch.chdir(tmp_path / "00005" / "T1w")
    assert list(found(["../T1w/1"], "..").values()) == [("00005", "T1w")]
    assert found(["./1"], ".") == {}
    assert found(["s3://b/00005/T1w/1"], "s3://b/00005") == {"s3://b/00005/T1w": ("00005", "T1w")}
    assert found(["s3://T1w/1"], "s3://T1w") == {}
    assert found(["/T1w/1"], os.sep) == {}


def test_a_directory_that_cannot_be_listed_is_its_patients():
    paths = ["r/00005/T1w/", "r/00005/FLAIR/1.dcm", "r/00006/"]
    assert found(paths, "r") == {
        "r/00005/T1w": ("00005", "T1w"),
        "r/00005/FLAIR": ("00005", "FLAIR"),
    }


PATHS = (
    "r/A/2020/s1/1.dcm", "r/A/2021/s1/1.dcm", "r/B/1.dcm", "r/B/2020/T1w/1.dcm", "r/1.dcm",
    "r/FLAIR/1.dcm",
)  # fmt: skip


def test_a_directory_is_a_patient_where_it_lies_directly_in_the_input():
    owners = find_owners(PATHS, ALL, root="r", patient_from="directory")
    assert {name: (patient_id_of(o.patient), o.modality) for name, o in owners.items()} == {
        "r/A/2020/s1": ("A", None),  # the headers give the modality
        "r/A/2021/s1": ("A", None),
        "r/B": ("B", None),
        "r/B/2020/T1w": ("B", "T1w"),
    }  # "r/FLAIR" is no patient's name


def test_the_layouts_patient_is_its_first_directory_only_where_the_input_says_so():
    paths = ["r/A/ses-1/T1w/1", "r/A/ses-2/T1w/1"]
    for choice, patients in (("", ["ses-1", "ses-2"]), ("directory", ["A", "A"])):
        owners = find_owners(paths, ALL, root="r", patient_from=choice).values()
        assert [patient_id_of(owner.patient) for owner in owners] == patients
    for choice in ("study", "patient_id"):
        owners = find_owners(paths, ALL, root="r", patient_from=choice).values()
        assert {(owner.patient, owner.modality) for owner in owners} == {("", "T1w")}


@pytest.mark.parametrize(
    ("choice", "patient"),
    [("", "A7"), ("patient_id", "A7"), ("study", study_id("1.5")), ("directory", "")],
)
def test_who_is_a_patient_of_a_heap_is_as_chosen(choice, patient):
    one = header(0.0, patient_id="A7", study_uid="1.5", series_uid="1.5.1")
    assert patient_id_of(patient_of(one, None, choice)) == patient


@pytest.mark.parametrize("choice", ["", "patient_id"])
def test_placeholders_bring_nobody_together(choice):
    series = [header(0.0, patient_id="ANONYMOUS", series_uid=uid) for uid in ("1", "2")]
    keys = [patient_of(one, None, choice) for one in series]
    assert len(set(keys)) == 2
    assert all(map(is_nobody, keys))


@pytest.mark.parametrize(
    ("ids", "more", "patient"),
    [
        (("A7", "A7", ""), {}, "A7"),
        (("A7", "ANON"), {}, "A7"),
        (("A7", "A7"), {}, ""),  # nothing to be told
        (("A7", "B8", ""), {}, ""),
        (("00000", ""), {}, ""),
        (("", "ANON"), {}, ""),
        (("A7", ""), {"series_uid": ""}, ""),
        (("A7", ""), {"study_uid": ""}, ""),
    ],
)
def test_whose_a_series_is_of_which_some_files_are_nobodys(ids, more, patient):
    uids = {"study_uid": "1.5", "series_uid": "1.5.1", **more}
    headers = [header(0.0, patient_id=name, **uids) for name in ids]
    pairs = [pair for one in headers for pair in series_owners(one, patient_of(one, None))]
    assert len({series for series, _ in pairs}) <= 1
    assert patient_id_of(only_patient([key for _, key in pairs])) == patient


def test_a_placeholder_in_the_layout_changes_nothing():
    (owner,) = find_owners(["r/0/T1w/1"], ALL, root="r").values()
    assert patient_id_of(owner.patient) == "0"
    assert patient_of(header(0.0, patient_id="ANONYMOUS"), owner) == owner.patient


def test_a_directory_is_looked_at_once_and_not_for_each_of_its_files(monkeypatch):
    asked: list[str] = []
    logical = files.logical

    def counted(path: str) -> str:
        asked.append(path)
        return logical(path)

    monkeypatch.setattr(files, "logical", counted)
    owners = find_owners([f"r/1/T1w/{n}" for n in range(300)], ALL, root="r")
    assert [owner.modality for owner in owners.values()] == ["T1w"]
    assert len(asked) < 10
