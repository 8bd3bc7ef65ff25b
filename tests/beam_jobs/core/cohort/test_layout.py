"""Whose file it is: by the directories below an input, never by those above it."""

import os

import pytest

from beam_jobs.core.cohort.layout import find_owners, patient_id_of

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
