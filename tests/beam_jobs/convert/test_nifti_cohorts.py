"""NIfTI that dcm2niix made of DICOM gives the records of that DICOM, from cohorts of any layout."""

import csv
import gzip
import shutil
import subprocess
import zipfile
from pathlib import Path

import dcm2niix
import nibabel
import numpy as np
import pytest

from beam_jobs import api, dicom_to_tfrecord, survey
from beam_jobs.common import cli
from beam_jobs.common.contract_json import json_value
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.preprocess import PreprocessSpec, prepare_case
from beam_jobs.core.record import PreparedCase
from beam_jobs.core.series import assemble
from beam_jobs.phantoms.anatomy import Head
from beam_jobs.phantoms.cohort import imaged, write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from beam_jobs.phantoms.series import SeriesSpec, write_series
from tests.commands import outcome
from tests.real_series import unpack_real_series

pytestmark = pytest.mark.slow

UINT8 = PreprocessSpec(modalities=("T1w",))
FLOAT16 = PreprocessSpec(modalities=("T1w",), dtype="float16")
BRATS = {"FLAIR": "flair", "T1w": "t1", "T1wCE": "t1ce", "T2w": "t2"}
BRATS_2023 = {"FLAIR": "t2f", "T1w": "t1n", "T1wCE": "t1c", "T2w": "t2w"}
BIDS = {"FLAIR": "FLAIR", "T1w": "T1w", "T1wCE": "ce-gd_T1w", "T2w": "T2w"}


def converted(folder: Path, output: Path, name: str = "x", *options: str) -> Path:
    """The one file that dcm2niix makes of a folder."""
    output.mkdir(parents=True, exist_ok=True)
    command = [dcm2niix.bin, *options, "-f", name, "-o", str(output), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    (made,) = output.glob(f"{name}.nii*")
    return made


def case_of(paths, spec: PreprocessSpec = UINT8) -> PreparedCase:
    headers, unread = index_files(sorted(map(str, paths)))
    (series,), rejected = assemble(headers)
    assert not unread
    assert not rejected
    return prepare_case("p", {"T1w": series}, spec).case


def assert_same(theirs: PreparedCase, ours: PreparedCase) -> None:
    """On one grid, and within one grey level of rounding (of 256, or of float16 near 1)."""
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    difference = np.abs(ours.volume.astype(float) - theirs.volume.astype(float))
    assert difference.max() <= (1 if ours.volume.dtype == np.uint8 else 2**-11)
    assert np.unique(theirs.volume).size > 20


def reoriented(path: Path, output: Path, axes: str) -> Path:
    """The file, its axes in another order or turned round, as nibabel turns them."""
    image = nibabel.Nifti1Image.from_filename(path)
    now, wanted = (
        nibabel.orientations.io_orientation(image.affine),
        nibabel.orientations.axcodes2ornt(tuple(axes)),
    )
    turn = nibabel.orientations.ornt_transform(now, wanted)
    nibabel.save(image.as_reoriented(turn), output)
    return output


OPTIONS = (("-z", "n"), ("-z", "y"), ("-z", "n", "-y", "y"))


def test_the_real_series_as_nifti_is_prepared_like_its_dicom(tmp_path):
    folder = unpack_real_series(tmp_path)
    theirs = {spec.dtype: case_of(folder.iterdir(), spec) for spec in (UINT8, FLOAT16)}
    for number, options in enumerate(OPTIONS):
        made = converted(folder, tmp_path / str(number), "x", *options)
        assert_same(theirs["uint8"], case_of([made]))
    assert_same(theirs["float16"], case_of([made], FLOAT16))
    # Its slices follow each other from feet to head: all turns that keep these as slices.
    for axes in ("RAS", "LPI", "ALS", "PRI"):
        assert_same(theirs["uint8"], case_of([reoriented(made, tmp_path / f"{axes}.nii", axes)]))
    # Others are reduced along other axes first: the head is the same, the grid may be a step off.
    for axes in ("ASL", "IRP"):
        ours = case_of([reoriented(made, tmp_path / f"{axes}.nii.gz", axes)])
        steps = np.linalg.solve(ours.affine, theirs["uint8"].affine)[:3, 3]
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
        assert np.abs(steps).max() <= 1
        there = np.roll(ours.volume, -np.rint(steps).astype(int), (0, 1, 2))
        inner = (slice(1, -1), slice(1, -1), slice(1, -1))
        difference = there[inner].astype(int) - theirs["uint8"].volume[inner]
        assert np.abs(difference).mean() < 0.5


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("modality", BRATS)
@pytest.mark.parametrize("air", ["noise", "zeros", "intercept"])
def test_phantoms_as_nifti_are_prepared_like_their_dicom(tmp_path, plane, modality, air):
    """In every plane, straight and tilted, with noise in the air, or nothing, or one number."""
    head = Head(rotation_degrees=(8.0, -5.0, 12.0), centre=(3.0, -7.0, 11.0))
    noise = np.random.default_rng(1)
    for tilt in (0.0, 12.0, 37.0):
        seen = imaged(head, modality, seed=(1, 2))
        spec = SeriesSpec(
            modality=modality, plane=plane, obliquity_degrees=tilt, obliquity_axis_degrees=30.0,
            rows=104, columns=112, slices=32, row_spacing=2.1, column_spacing=2.0, slice_step=5.5,
            intercept=-1024.0 if air == "intercept" else 0.0,
        )  # fmt: skip
        folder = tmp_path / f"{tilt}"

        def with_air(xyz, seen=seen, spec=spec):
            scattered = (air == "noise") * noise.rayleigh(9.0, xyz.shape[:-1])
            return np.rint(seen(xyz) + scattered) + spec.intercept

        write_series(spec, folder, with_air)
        theirs = case_of(folder.iterdir())
        for number, options in enumerate(OPTIONS):
            made = converted(folder, tmp_path / f"{tilt}-{number}", "x", *options)
            assert_same(theirs, case_of([made]))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dicom/` (six patients and labels), and the same as `brats/`, `brats2023/` and `bids/`."""
    root = tmp_path_factory.mktemp("nifti")
    config = PhantomConfig(
        patients=6, test_patients=0, seed=3, matrix=(40, 48), slices=(20, 24), trouble_rate=0.0
    )
    write_cohort(config, root / "dicom")
    for series in sorted((root / "dicom" / "train").glob("*/*")):
        person, modality = series.parent.name, series.name
        old, new = f"BraTS2021_{person}", f"BraTS-GLI-{person}-000"
        made = converted(
            series, root / "brats" / old, f"{old}_{BRATS[modality]}", "-z", "y", "-b", "y"
        )
        bids = root / "bids" / f"sub-{person}" / "ses-1" / "anat"
        for target in (
            root / "brats2023" / "train" / new / f"{new}-{BRATS_2023[modality]}.nii.gz",
            bids / f"sub-{person}_ses-1_{BIDS[modality]}.nii.gz",
            root / "reference" / person / modality / "scan.nii.gz",
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(made, target)
        if modality == "FLAIR":
            shutil.copy(made, made.with_name(f"{old}_seg.nii.gz"))
    first = root / "bids" / "sub-00000" / "ses-1" / "anat" / "sub-00000_ses-1_T1w.nii.gz"
    for copy in (
        "sub-00000/ses-2/anat/sub-00000_ses-2_T1w.nii.gz",
        "sub-00000/ses-1/func/sub-00000_ses-1_task-rest_bold.nii.gz",
        "derivatives/bet/sub-00000/anat/sub-00000_T1w.nii.gz",
    ):
        (root / "bids" / copy).parent.mkdir(parents=True, exist_ok=True)
        if first.exists():
            shutil.copy(first, root / "bids" / copy)
    with (root / "dicom" / "train_labels.csv").open() as lines:
        labels = {f"{int(row['BraTS21ID']):05}": row["MGMT_value"] for row in csv.DictReader(lines)}
    table = "".join(f"sub-{person},{label}\n" for person, label in labels.items())
    (root / "bids" / "participants.tsv").write_text(table.replace(",", "\t"))
    (root / "bids" / "dataset_description.json").write_text("{}")
    (root / "participants.csv").write_text(f"participant_id,grade\n{table}")
    (root / "plain.csv").write_text(f"participant_id,grade\n{table.replace('sub-', '')}")
    return root


ARGV = ("--shape", "32,32,16", "--folds", "2", "--no_report", "--quiet")


def convert(source: Path, output: Path, *more: str) -> dict[str, PreparedCase]:
    argv = ["--input", str(source), "--output", str(output), *ARGV, *more]
    assert dicom_to_tfrecord.main(argv) == cli.EXIT_OK
    return {case.patient_id: case for case in api.open_dataset(output).cases()}


def test_cohorts_of_any_layout_give_the_records_of_their_dicom(cohort, tmp_path):
    theirs = convert(cohort / "dicom" / "train", tmp_path / "dicom")
    for layout, name in {
        "brats": "BraTS2021_{}", "brats2023": "BraTS-GLI-{}-000", "bids": "sub-{}",
        "reference": "{}",
    }.items():  # fmt: skip
        ours = convert(cohort / layout, tmp_path / layout)
        assert set(ours) == {name.format(person) for person in theirs}
        for person, case in theirs.items():
            assert ours[name.format(person)].present == case.present == (True,) * 4
            assert_same(case, ours[name.format(person)])


def test_an_archive_and_plain_files_give_the_same_dataset(cohort, tmp_path):
    plain = tmp_path / "plain" / "brats"
    with zipfile.ZipFile(tmp_path / "brats.zip", "w") as archive:
        for path in sorted((cohort / "brats").rglob("*.nii.gz")):
            name = path.relative_to(cohort / "brats")
            archive.write(path, name)
            (plain / name).parent.mkdir(parents=True, exist_ok=True)
            (plain / name).with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    made = []
    for source in (tmp_path / "brats.zip", plain):
        output = tmp_path / f"of-{source.stem}"
        convert(source, output)
        made.append({path.name: path.read_bytes() for path in output.glob("*") if path.is_file()})
    assert made[0] == made[1]


def test_bids_ids_match_with_and_without_their_prefix(cohort, tmp_path):
    flags = ("--id_column", "participant_id", "--label_column", "grade")
    found = {}
    for name in ("participants", "plain"):
        labels = ("--labels", str(cohort / f"{name}.csv"), *flags)
        found[name] = convert(cohort / "bids", tmp_path / name, *labels)
    with_prefix, without = found["participants"], found["plain"]
    assert {person.removeprefix("sub-") for person in with_prefix} == set(without)
    for person, case in with_prefix.items():
        assert case.label is not None
        assert case.label == without[person.removeprefix("sub-")].label


def test_every_file_of_a_bids_dataset_is_accounted_for(cohort, tmp_path):
    convert(cohort / "bids", tmp_path / "ds", "--strict")
    dataset = api.open_dataset(tmp_path / "ds")
    series = dataset.series
    everything = sum(path.is_file() for path in (cohort / "bids").rglob("*"))
    assert series["files"].sum() == everything
    reasons = series["reason"].value_counts().to_dict()
    assert reasons == {"": 24, "other_candidate_preferred": 1, "not_input": 1}
    other = series[series["reason"] == "other_candidate_preferred"]
    assert list(other["path"]) == ["sub-00000/ses-2/anat/sub-00000_ses-2_T1w.nii"]
    assert set(series["transfer_syntax"].dropna()) == {"NIfTI-1"}
    (detail,) = series[series["reason"] == "not_input"]["detail"]
    assert detail == "1 .json, 1 .tsv, 1 _bold, 1 in derivatives/"


def test_dicom_and_nifti_make_one_cohort(cohort, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(cohort / "dicom" / "train", mixed)
    people = sorted(path.name for path in mixed.iterdir())
    # One whole patient, one modality of another, and what another has as DICOM too.
    shutil.rmtree(mixed / people[0])
    shutil.copytree(cohort / "reference" / people[0], mixed / people[0])
    shutil.rmtree(mixed / people[1] / "FLAIR")
    shutil.copytree(cohort / "brats" / f"BraTS2021_{people[1]}", mixed / people[1] / "nii")
    shutil.copytree(cohort / "reference" / people[2] / "T1w", mixed / people[2] / "nifti")
    (mixed / people[2] / "nifti" / "scan.nii.gz").rename(mixed / people[2] / "nifti" / "t1.nii.gz")
    theirs, ours = (
        convert(cohort / "dicom" / "train", tmp_path / "d"),
        convert(mixed, tmp_path / "m"),
    )
    assert set(ours) == set(theirs)
    for person, case in theirs.items():
        assert ours[person].present == case.present
        assert_same(case, ours[person])
    series = api.open_dataset(tmp_path / "m").series
    double = series[(series["patient"] == people[2]) & (series["modality"] == "T1w")]
    assert dict(zip(double["transfer_syntax"], double["verdict"], strict=True)) == {
        "Implicit VR Little Endian": "used", "NIfTI-1": "unused",
    }  # fmt: skip


def test_rules_make_modalities_of_channels(cohort, tmp_path, capsys, monkeypatch):
    """nnU-Net: one directory of everybody's files, a number a channel."""
    images = tmp_path / "raw" / "imagesTr"
    images.mkdir(parents=True)
    for path in (cohort / "reference").glob("*/*/scan.nii.gz"):
        person, modality = path.parts[-3:-1]
        shutil.copy(path, images / f"case_{person}_{list(BRATS).index(modality):04}.nii.gz")
    rules = tmp_path / "rules.json"
    said = outcome(survey.main, [tmp_path / "raw", "--write_rules", rules], capsys, monkeypatch)
    assert said[0] == 0
    assert "no_patient_id 24" in said[1]
    begun = json_value(rules.read_text())
    assert isinstance(begun, list)
    assert [rule["file_name"] for rule in begun] == [
        rf"(?:^|[-_. ])000{channel}\.nii" for channel in range(4)
    ]
    for modality in BRATS:
        rules.write_text(rules.read_text().replace('"?"', f'"{modality}"', 1))
    argv = [
        "--input",
        tmp_path / "raw",
        "--output",
        tmp_path / "no",
        "--series_rules",
        rules,
        *ARGV,
    ]
    code, _, told = outcome(dicom_to_tfrecord.main, argv, capsys, monkeypatch)
    assert code != 0
    assert "(of NIfTI: directory or file_name)" in told
    theirs = convert(cohort / "reference", tmp_path / "reference")
    ours = convert(
        tmp_path / "raw", tmp_path / "ds", "--patient_from", "file_name", "--series_rules",
        str(rules),
    )  # fmt: skip
    assert set(ours) == {f"case_{person}" for person in theirs}
    for person, case in theirs.items():
        np.testing.assert_array_equal(ours[f"case_{person}"].volume, case.volume)


def test_hashed_ids_leave_no_name_of_a_file(cohort, tmp_path):
    (tmp_path / "key").write_text("0123456789abcdef0123")
    flags = ("--id_policy", "hmac", "--id_key", str(tmp_path / "key"))
    convert(cohort / "brats", tmp_path / "ds", *flags)
    written = [path.read_bytes() for path in (tmp_path / "ds").rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not any(b"BraTS2021" in content or b"_flair" in content for content in written)


@pytest.mark.parametrize("choice", ["study", "patient_id"])
def test_what_nifti_does_not_have_is_refused_in_one_line(
    cohort, tmp_path, choice, capsys, monkeypatch
):
    argv = ["--input", cohort / "reference", "--output", tmp_path / "x", "--patient_from", choice]
    code, _, told = outcome(dicom_to_tfrecord.main, argv, capsys, monkeypatch)
    assert code == cli.EXIT_USAGE
    assert f"--patient_from {choice}: NIfTI files have neither study nor PatientID" in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_a_modality_that_no_name_says_is_refused(cohort, tmp_path, capsys, monkeypatch):
    argv = ["--input", cohort / "brats", "--output", tmp_path / "x", "--modalities", "T1w,ADC"]
    code, _, told = outcome(dicom_to_tfrecord.main, argv, capsys, monkeypatch)
    assert code == cli.EXIT_USAGE
    assert "unknown modality ADC" in told
    assert "no file's name says it" in told
