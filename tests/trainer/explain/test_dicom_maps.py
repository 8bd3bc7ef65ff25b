"""Maps as DICOM: who gets one, what it says of itself, and what is refused before any work."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pydicom
import pytest

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.core.cohort.target import PLAIN, Target
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.record import PreparedCase
from beam_jobs.core.series import Series
from tests.datasets import write_dataset
from tests.dicom_files import COLUMNS, ROWS, write_slices
from trainer.explain.attribution import Attribution
from trainer.explain.cases import Chosen, Explained
from trainer.explain.dicom_maps import Sources, aim_of, facts_of, find_sources, write_maps
from trainer.training.run_files import Run

SLICES = 4
MODALITIES = ("FLAIR", "T1w")
SYNTAX = "Explicit VR Little Endian"
HEADER = "patient,path,modality,verdict,rows,columns,slices,transfer_syntax\n"
GRID = (5, 6, 4)


def chosen(patient_id: str) -> Chosen:
    return Chosen(patient_id=patient_id, label=None, fold=None, members=(0,))


def explained(patient_id: str, *, channels: int = 2, output: int = 0) -> Explained:
    values = np.random.default_rng(0).standard_normal((*GRID, channels))
    affine = np.array([[0, 9, 0, -25], [10, 0, 0, -30], [0, 0, 2.5, 9], [0, 0, 0, 1]], float)
    case = PreparedCase(
        patient_id=patient_id,
        volume=np.ones((*GRID, 2), np.uint8),
        affine=affine,
        present=(True, True),
        label=None,
        fold=None,
    )
    found = Attribution(values=values, logit=1.0)
    return Explained(chosen=chosen(patient_id), case=case, found=found, random=found, output=output)


@dataclasses.dataclass(frozen=True)
class FakeRun:
    """What is asked of a run."""

    target: Target = PLAIN
    modalities: tuple[str, ...] = MODALITIES
    dataset_fingerprint: str = "f" * 64
    members: tuple[Any, ...] = ()
    config: dict[str, Any] = dataclasses.field(default_factory=dict)


RUN = cast(Run, FakeRun())


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """The input of a patient 00005 with both modalities, and 00006 with one."""
    root = tmp_path / "cohort"
    rows = []
    for number, name in enumerate(("00005/FLAIR", "00005/T1w", "00006/T1w")):
        (root / name).mkdir(parents=True)
        frames = np.zeros((SLICES, ROWS, COLUMNS), np.uint16)
        write_slices(root / name, frames, series_uid=f"1.2.{number}")
        patient, modality = name.split("/")
        rows.append(
            f"{patient},{name}/001.dcm,{modality},used,{ROWS},{COLUMNS},{SLICES},{SYNTAX}\n"
        )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "series.csv").write_text("".join([HEADER, *rows]))
    return root


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_dataset(tmp_path_factory.mktemp("dataset"), patients=4, folds=2)


def sources_in(cohort: Path, manifest: Manifest, *patients: str, place: str = "") -> Sources:
    data = str(cohort.parent / "data")
    where = place or str(cohort.parent / "pm")
    people = [chosen(patient) for patient in patients]
    return find_sources(where, str(cohort), data, manifest, people, MODALITIES)


def test_each_modality_that_a_patient_has_gets_a_map(
    cohort: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = sources_in(cohort, manifest, "5", "6")
    assert [*sources.names.values()] == ["5-FLAIR.dcm", "5-T1w.dcm", "6-T1w.dcm"]
    assert "no map" not in capsys.readouterr().out
    people = [explained("5"), explained("6")]
    assert write_maps(sources, RUN, people, method="integrated_gradients") == 3
    for (patient, modality), name in sources.names.items():
        made = pydicom.dcmread(cohort.parent / "pm" / name)
        source = pydicom.dcmread(cohort / f"0000{patient}" / modality / "001.dcm")
        assert made.StudyInstanceUID == source.StudyInstanceUID
        assert made.PatientID == source.PatientID
        assert made.SeriesDescription == f"Saliency {modality}: class 1, not for clinical use"
        assert (made.Rows, made.Columns, made.NumberOfFrames) == (ROWS, COLUMNS, SLICES)
        assert np.frombuffer(made.FloatPixelData, "<f4").any()


def test_modalities_have_maps_of_their_own_and_grad_cam_one_for_all(
    cohort: Path, manifest: Manifest
) -> None:
    sources = sources_in(cohort, manifest, "5")
    pm = cohort.parent / "pm"

    def written(channels: int, method: str) -> list[Any]:
        write_maps(sources, RUN, [explained("5", channels=channels)], method=method)
        return [pydicom.dcmread(pm / name) for name in sources.names.values()]

    flair, t1w = written(2, "integrated_gradients")
    assert flair.FloatPixelData != t1w.FloatPixelData
    assert t1w.ContentDescription == "T1w: class 1; not for clinical use"
    flair, t1w = written(1, "gradcam")
    assert flair.FloatPixelData == t1w.FloatPixelData  # their series lie in the same place
    assert flair.SOPInstanceUID != t1w.SOPInstanceUID
    assert t1w.ContentDescription == "all modalities: class 1; not for clinical use"
    assert t1w.SeriesDescription == "Grad-CAM T1w: class 1, not for clinical use"


def test_who_has_none_is_told_and_the_others_have_theirs(
    cohort: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    table = cohort.parent / "data" / "series.csv"
    with table.open("a") as stream:
        stream.write("nii,nii_T1w.nii.gz,T1w,used,8,9,4,NIfTI-1\n")
        stream.write(f"gone,gone/1.dcm,T1w,used,8,9,4,{SYNTAX}\n")
    sources = sources_in(cohort, manifest, "nii", "gone", "never", "6")
    assert [*sources.series] == [("6", "T1w")]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3
    assert said[0].startswith("no map      nii T1w: it came as NIfTI")
    assert "gone T1w: gone/1.dcm is not below" in said[1]
    assert "never: series.csv names no series" in said[2]


def test_without_any_series_the_command_ends_before_its_work(
    cohort: Path, manifest: Manifest
) -> None:
    with pytest.raises(CommandError, match=r"nothing to lay maps on: never: series\.csv") as told:
        sources_in(cohort, manifest, "never")
    assert "\n" not in str(told.value)


def test_a_series_without_places_is_told_when_its_map_is_due(
    cohort: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = sources_in(cohort, manifest, "5")
    unplaced = {
        key: dataclasses.replace(series, geometry_known=key[1] == "T1w")
        for key, series in sources.series.items()
    }
    partly = dataclasses.replace(sources, series=unplaced)
    assert write_maps(partly, RUN, [explained("5")], method="gradcam") == 1
    assert "5 FLAIR: no ImagePositionPatient" in capsys.readouterr().out
    nowhere: dict[tuple[str, str], Series] = {("5", "FLAIR"): unplaced["5", "FLAIR"]}
    none = dataclasses.replace(sources, series=nowhere)
    with pytest.raises(CommandError, match="no map could be made: 5 FLAIR"):
        write_maps(none, RUN, [explained("5")], method="gradcam")


def test_own_maps_are_replaced_and_files_of_others_are_not(
    cohort: Path, manifest: Manifest
) -> None:
    sources = sources_in(cohort, manifest, "5")
    write_maps(sources, RUN, [explained("5")], method="gradcam")
    sources_in(cohort, manifest, "5")
    (cohort.parent / "pm" / "5-T1w.dcm").write_bytes((cohort / "00005/T1w/001.dcm").read_bytes())
    with pytest.raises(UsageError, match=r"--dicom_pm .*5-T1w\.dcm lies there"):
        sources_in(cohort, manifest, "5")


def test_hashed_ids_have_no_maps_in_dicom(cohort: Path, manifest: Manifest) -> None:
    hashed = dataclasses.replace(manifest, id_policy="hmac")
    with pytest.raises(UsageError, match="--id_policy hmac"):
        sources_in(cohort, hashed, "5")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{cohort}/maps", "--dicom_pm .* lies inside --dicom "),
        ("{cohort}/00005/T1w/001.dcm", "a file, a directory is needed"),
        ("https://a:secret@pacs/dicom-web", r"--dicom_pm: .*dicomweb\+https://HOST/PATH"),
        ("dicomweb+https://a:secret@pacs/dicom-web", "with a name or a password"),
        ("dicomweb+https://pacs/dicom-web?PatientID=1", "--dicom_pm: .* no study or search"),
        ("dicomweb+https://pacs/dicom-web/studies/1.2", "--dicom_pm: .* no study or search"),
    ],
)
def test_places_that_cannot_be_are_refused(
    cohort: Path, manifest: Manifest, place: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as told:
        sources_in(cohort, manifest, "5", place=place.format(cohort=cohort))
    assert "secret" not in str(told.value)
    assert "\n" not in str(told.value)


def test_without_highdicom_the_extra_is_named(
    cohort: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UsageError, match=r"--dicom_pm needs highdicom: pip install 'voxelbeam\["):
        sources_in(cohort, manifest, "5")


CLASSES = Target(task="multiclass", labels=("kind",), classes=("a", "b", "c" * 40))
FINDINGS = Target(task="multilabel", labels=("bleed", "edema"))
VALUE = Target(task="regression", labels=("age",), unit="a")


@pytest.mark.parametrize(
    ("target", "output", "aim"),
    [
        (PLAIN, 0, "class 1"),
        (Target(labels=("x",), classes=("no", "yes")), 0, "class yes"),
        (CLASSES, 1, "class b"),
        (CLASSES, 2, f"class {'c' * 13}…"),
        (FINDINGS, 1, "finding edema"),
        (VALUE, 0, "a greater value"),
    ],
)
def test_a_map_says_what_it_speaks_for(target: Target, output: int, aim: str) -> None:
    assert aim_of(target, output) == aim
    for method in ("integrated_gradients", "gradcam"):
        one = explained("5", output=output)
        facts = facts_of(one, target, "a-modality-of-a-long-name", method=method, run="r")
        assert f": {aim}, not for clinical use" in facts.description
        assert len(facts.description) <= 63
        assert facts.content.endswith("; not for clinical use")
        assert len(facts.content) <= 63
        assert len(facts.explanation) <= 63
