"""The conversion job, run as a user runs it: all input accounted for, the same bytes every time."""

import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest

from beam_jobs import dicom_to_tfrecord
from beam_jobs.common import cli
from beam_jobs.core.example import decode_case
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.preprocess import PreprocessSpec, prepare_case
from beam_jobs.core.record import FEATURES
from beam_jobs.core.tfrecord import read_records
from beam_jobs.phantoms.truth import read_truth
from tests.beam_jobs.core.test_grid import read_series
from tests.real_series import unpack_real_series

SHAPE = "32,32,16"


def convert(cohort: Path, output: Path, *more: str) -> int:
    return dicom_to_tfrecord.main(
        [
            *("--input", str(cohort / "train"), "--output", str(output), "--shape", SHAPE),
            *("--labels", str(cohort / "train_labels.csv"), "--quiet", *more),
        ]
    )


@pytest.fixture(scope="module")
def dataset(cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("dataset") / "d"
    assert convert(cohort, output) == cli.EXIT_OK
    return output


def load(dataset: Path) -> Manifest:
    return Manifest.loads((dataset / "manifest.json").read_text())


def cases(dataset: Path):
    manifest = load(dataset)
    for shard in manifest.shards:
        with (dataset / shard.name).open("rb") as stream:
            yield from (decode_case(data, manifest.schema) for data in read_records(stream))


def published(dataset: Path) -> dict[str, bytes]:
    """Every file of a dataset apart from its state: name to bytes."""
    return {path.name: path.read_bytes() for path in dataset.iterdir() if path.is_file()}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_patient_has_one_record_with_the_labels_spelling(cohort, dataset):
    labels = {row["BraTS21ID"]: int(row["MGMT_value"]) for row in rows(cohort / "train_labels.csv")}
    found = {case.patient_id: case.label for case in cases(dataset)}
    assert found == labels
    assert len(list(cases(dataset))) == 8


def test_records_hold_what_the_manifest_says(dataset):
    manifest = load(dataset)
    listed = [(p.patient_id, p.label, s.fold) for s in manifest.shards for p in s.patients]
    assert [(c.patient_id, c.label, c.fold) for c in cases(dataset)] == listed
    assert {shard.name for shard in manifest.shards} == {p.name for p in dataset.glob("*.tfrecord")}
    assert set(manifest.to_json()["schema"]["features"]) == set(FEATURES)
    assert {fold for _, _, fold in listed} == set(range(5))


def test_missing_and_black_series_are_zeros_and_reported(cohort, dataset):
    patients = [path.name for path in sorted((cohort / "train").iterdir())]
    by_id = {case.patient_id: case for case in cases(dataset)}
    without_flair = by_id[str(int(patients[1]))]
    with_black = by_id[str(int(patients[2]))]
    assert without_flair.present == (False, True, True, True)
    assert not without_flair.volume[..., 0].any()
    assert with_black.present == (True, False, True, True)
    (reject,) = rows(dataset / "rejects.csv")
    assert (reject["reason"], reject["modality"], reject["files"]) == ("blank_series", "T1w", "20")


def test_every_file_is_used_unused_or_rejected(cohort, dataset):
    files = sum(path.is_file() for path in (cohort / "train").rglob("*"))
    counts = load(dataset).counts["files"]
    assert sum(counts.values()) == files
    assert counts["rejected"] == 20
    series = rows(dataset / "series.csv")
    assert sum(int(row["files"]) for row in series) == files
    assert Counter(row["verdict"] for row in series) == {"used": 30, "rejected": 1}


def test_series_table_is_the_truth(cohort, dataset):
    truth = read_truth(cohort)
    for row in rows(dataset / "series.csv"):
        if row["verdict"] != "used":
            continue
        patient = truth.patient(row["path"].split("/")[0])
        (spec,) = (s for s in patient.series if s.modality == row["modality"])
        if spec.obliquity_degrees < 1:
            assert row["plane"] == spec.plane
        assert int(row["slices"]) == spec.slices
        assert float(row["slice_step"]) == pytest.approx(spec.slice_step, abs=1e-3)
        assert float(row["obliquity"]) <= spec.obliquity_degrees + 0.1


def test_blank_slices_of_each_series_are_the_phantoms(cohort, dataset):
    truth = read_truth(cohort)
    found = 0
    for row in rows(dataset / "series.csv"):
        patient = truth.patient(row["path"].split("/")[0])
        (spec,) = (s for s in patient.series if s.modality == row["modality"])
        expected = 20 if row["reason"] == "blank_series" else len(spec.blank_slices)
        assert int(row["blank_slices"]) == expected
        found += expected
    assert found > 60


def test_blank_slices_are_counted_in_the_series_that_were_read_and_in_no_other(cohort, tmp_path):
    few = tmp_path / "few"
    for patient in sorted((cohort / "train").iterdir())[:3]:
        shutil.copytree(patient, few / "train" / patient.name)
    shutil.copy(cohort / "train_labels.csv", few)
    required = ("--modalities", "FLAIR,T1w", "--require_modalities", "FLAIR,T1w", "--no_report")
    assert convert(few, tmp_path / "d", *required) == cli.EXIT_OK
    counted = {
        (row["reason"], row["blank_slices"] != "") for row in rows(tmp_path / "d/series.csv")
    }
    assert counted == {
        ("", True),
        ("blank_series", True),
        ("patient_rejected", True),
        ("unknown_modality", False),
    }


@pytest.mark.slow  # two processes of Beam
def test_two_processes_and_other_shard_order_give_the_same_bytes(cohort, dataset, tmp_path):
    """As a subprocess: worker processes belong to the command, not to the test runner."""
    command = [
        *(sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", "--quiet", "--shape", SHAPE),
        *("--input", str(cohort / "train"), "--output", str(tmp_path / "d")),
        *("--labels", str(cohort / "train_labels.csv")),
        *("--direct_running_mode=multi_processing", "--direct_num_workers=2"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert published(tmp_path / "d") == published(dataset)


def test_record_is_bit_for_bit_what_the_recipe_makes(cohort, dataset):
    """Phantom -> job -> record -> decode equals phantom -> prepare_case."""
    patient = sorted((cohort / "train").iterdir())[0]
    manifest = load(dataset)
    spec = PreprocessSpec.from_json(manifest.spec)
    series = {m: read_series(patient / m) for m in spec.modalities}
    case = prepare_case("x", series, spec).case
    record = next(c for c in cases(dataset) if c.patient_id == str(int(patient.name)))
    assert record.volume.tobytes() == case.volume.tobytes()
    assert np.array_equal(record.affine.astype(np.float32), case.affine.astype(np.float32))


def test_other_seed_deals_other_folds(cohort, dataset, tmp_path):
    assert convert(cohort, tmp_path / "d", "--seed", "7", "--folds", "2") == cli.EXIT_OK
    other = {p: f for p, _, f in load(tmp_path / "d").patients}
    assert {f for f in other.values()} == {0, 1}
    assert set(other) == {p for p, _, _ in load(dataset).patients}


def test_test_split_without_labels_is_unlabelled(cohort, tmp_path):
    argv = ["--input", str(cohort / "test"), "--output", str(tmp_path / "d"), "--shape", SHAPE]
    assert dicom_to_tfrecord.main([*argv, "--quiet"]) == cli.EXIT_OK
    names = [shard.name for shard in load(tmp_path / "d").shards]
    assert names == [f"unlabelled-0000{n}-of-00002.tfrecord" for n in (0, 1)]
    assert {case.label for case in cases(tmp_path / "d")} == {None}
    assert {case.fold for case in cases(tmp_path / "d")} == {None}


def test_heap_of_files_is_sorted_out_by_headers(cohort, dataset, tmp_path):
    """The same series under meaningless names in one directory make the same volumes."""
    heap = tmp_path / "heap"
    heap.mkdir()
    patient = sorted((cohort / "train").iterdir())[0]
    for index, path in enumerate(sorted(patient.rglob("*.dcm"))):
        shutil.copy(path, heap / f"IM{(index * 7919) % 100_003:06d}")
    argv = ["--input", str(heap), "--output", str(tmp_path / "d"), "--shape", SHAPE, "--quiet"]
    assert dicom_to_tfrecord.main([*argv, "--labels", str(cohort / "train_labels.csv")]) == 0
    (case,) = cases(tmp_path / "d")
    (reference,) = (c for c in cases(dataset) if c.patient_id == case.patient_id)
    assert np.array_equal(case.volume, reference.volume)


def test_hmac_hides_ids_and_paths_and_is_reproducible(cohort, dataset, tmp_path):
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef")
    policy = ("--id_policy", "hmac", "--id_key", str(key))
    assert convert(cohort, tmp_path / "d", *policy) == cli.EXIT_OK
    names = {path.name for path in (cohort / "train").iterdir()}
    found = load(tmp_path / "d")
    assert not {p for p, _, _ in found.patients} & (names | {str(int(n)) for n in names})
    text = "".join((tmp_path / "d" / n).read_text() for n in ("series.csv", "rejects.csv"))
    assert "Image-" not in text
    assert not any(f"{name}/" in text for name in names)
    hidden = sorted(case.volume.tobytes() for case in cases(tmp_path / "d"))
    assert hidden == sorted(case.volume.tobytes() for case in cases(dataset))


def test_damaged_files_get_their_reason_and_the_rest_is_converted(cohort, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(cohort / "train", broken / "train")
    shutil.copy(cohort / "train_labels.csv", broken)
    patient = sorted((broken / "train").iterdir())[3]
    images = sorted((patient / "T2w").iterdir())
    images[0].write_bytes(b"not an image at all" * 30)
    images[1].write_bytes(images[1].read_bytes()[:-50])
    (patient / "T2w" / "notes.txt").write_text("remember to ask about this patient")
    assert convert(broken, tmp_path / "d", "--strict") == cli.EXIT_REJECTED
    reasons = Counter(row["reason"] for row in rows(tmp_path / "d" / "rejects.csv"))
    assert reasons["not_dicom"] == 2
    assert reasons["truncated_pixels"] == 1
    assert len(list(cases(tmp_path / "d"))) == 8
    files = sum(path.is_file() for path in (broken / "train").rglob("*"))
    assert sum(load(tmp_path / "d").counts["files"].values()) == files


def test_patient_without_any_usable_series_is_rejected_by_name(cohort, tmp_path):
    root = tmp_path / "c"
    shutil.copytree(cohort / "train", root / "train")
    shutil.copy(cohort / "train_labels.csv", root)
    patient = sorted((root / "train").iterdir())[0]
    for modality in patient.iterdir():
        for path in sorted(modality.iterdir())[1:]:
            path.unlink()
    assert convert(root, tmp_path / "d") == cli.EXIT_OK
    found = [row for row in rows(tmp_path / "d" / "rejects.csv") if row["scope"] == "patient"]
    assert [(row["patient"], row["reason"]) for row in found] == [
        (patient.name, "no_usable_series")
    ]
    assert load(tmp_path / "d").counts["patients"]["labels_without_patient"] == 1


def test_required_modality_rejects_the_patient_and_counts_its_sound_series(cohort, tmp_path):
    assert convert(cohort, tmp_path / "d", "--require_modalities", "FLAIR,T1w") == cli.EXIT_OK
    found = load(tmp_path / "d")
    assert found.counts["patients"] == {
        "converted": 6, "rejected": 2, "without_label": 0, "labels_without_patient": 0
    }  # fmt: skip
    files = sum(path.is_file() for path in (cohort / "train").rglob("*"))
    assert sum(found.counts["files"].values()) == files
    assert found.counts["reasons"]["patient_rejected"] == 6


@pytest.fixture
def copy(dataset, tmp_path) -> Path:
    """The dataset, to be changed at will."""
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def test_second_run_keeps_every_shard_and_says_so(cohort, copy, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in copy.glob("*.tfrecord")}
    files = published(copy)
    argv = ["--input", str(cohort / "train"), "--labels", str(cohort / "train_labels.csv")]
    assert dicom_to_tfrecord.main([*argv, "--output", str(copy), "--shape", SHAPE]) == 0
    assert "8 kept, 0 converted" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in copy.glob("*.tfrecord")} == before
    assert published(copy) == files


def test_only_the_shard_whose_input_changed_is_converted_again(cohort, copy, tmp_path, capsys):
    changed = tmp_path / "changed"
    shutil.copytree(cohort / "train", changed / "train")  # keeps the times of change
    patient = sorted((changed / "train").iterdir())[4]
    victim = sorted((patient / "T2w").iterdir())[0]
    victim.unlink()
    argv = ["--input", str(changed / "train"), "--labels", str(cohort / "train_labels.csv")]
    assert dicom_to_tfrecord.main([*argv, "--output", str(copy), "--shape", SHAPE]) == 0
    printed = capsys.readouterr().out
    assert "7 kept, 1 converted" in printed
    assert "inputs changed" in printed
    fresh = tmp_path / "fresh"
    assert dicom_to_tfrecord.main([*argv, "--output", str(fresh), "--shape", SHAPE]) == 0
    assert published(fresh) == published(copy)


def test_damaged_shard_is_converted_again(cohort, dataset, copy, capsys):
    victim = sorted(copy.glob("*.tfrecord"))[0]
    data = bytearray(victim.read_bytes())
    data[500] ^= 1
    victim.write_bytes(bytes(data))
    argv = ["--input", str(cohort / "train"), "--labels", str(cohort / "train_labels.csv")]
    assert dicom_to_tfrecord.main([*argv, "--output", str(copy), "--shape", SHAPE]) == 0
    assert f"{victim.name}: file damaged" in capsys.readouterr().out
    assert published(copy) == published(dataset)


def test_shards_of_a_version_with_fewer_columns_are_converted_again(cohort, dataset, copy, capsys):
    for path in sorted((copy / ".state").glob("*.tfrecord.json"))[:2]:
        state = json.loads(path.read_text())
        for row in state["result"]["series"]:
            del row["blank_slices"]
        path.write_text(json.dumps(state))
    argv = ["--input", str(cohort / "train"), "--labels", str(cohort / "train_labels.csv")]
    assert dicom_to_tfrecord.main([*argv, "--output", str(copy), "--shape", SHAPE]) == 0
    assert "6 kept, 2 converted" in capsys.readouterr().out
    assert published(copy) == published(dataset)


def test_another_recipe_is_refused_with_both_sides_named(cohort, dataset, copy):
    with pytest.raises(cli.UsageError, match=r"spec.dtype: 'uint8' there, 'uint16' requested"):
        convert(cohort, copy, "--dtype", "uint16")
    assert published(copy) == published(dataset)
    assert convert(cohort, copy, "--dtype", "uint16", "--overwrite") == cli.EXIT_OK
    assert load(copy).schema.dtype == "uint16"


def test_output_of_an_earlier_recipe_is_another_dataset(cohort, dataset, copy):
    job = json.loads((copy / ".state" / "job.json").read_text())
    job["spec"]["recipe"] = 1
    (copy / ".state" / "job.json").write_text(json.dumps(job))
    with pytest.raises(cli.UsageError, match=r"\(spec.recipe: 1 there, 3 requested\); --overwrite"):
        convert(cohort, copy)
    assert published(copy) == published(dataset)
    assert convert(cohort, copy, "--overwrite") == cli.EXIT_OK
    assert published(copy) == published(dataset)


def test_leftovers_of_killed_or_larger_runs_are_removed(cohort, dataset, copy):
    (copy / "fold-9-00000-of-00001.tfrecord").write_bytes(b"left over")
    (copy / "fold-0-00000-of-00002.tfrecord.0123456789ab.part").write_bytes(b"left over")
    (copy / ".state" / "fold-9-00000-of-00001.tfrecord.json").write_text("{}")
    assert convert(cohort, copy) == cli.EXIT_OK
    assert published(copy) == published(dataset)
    names = {path.name for path in (copy / ".state").iterdir()}
    assert names == {path.name for path in (dataset / ".state").iterdir()}


def test_one_modality_of_the_layout_leaves_the_others_unused(cohort, tmp_path):
    assert convert(cohort, tmp_path / "d", "--modalities", "T1wCE") == cli.EXIT_OK
    found = load(tmp_path / "d")
    assert found.counts["patients"]["converted"] == 8
    assert found.counts["patients"]["rejected"] == 0
    assert set(found.counts["reasons"]) == {"unknown_modality"}


def test_names_that_are_not_utf8_and_unowned_files_are_rows(cohort, tmp_path):
    import os

    heap = tmp_path / "heap"
    heap.mkdir()
    image = next((cohort / "train").rglob("*.dcm"))
    shutil.copy(image, os.fsencode(heap) + b"/bad\xff.dcm")
    dataset = pydicom.dcmread(image)
    dataset.PatientID = ""
    dataset.SeriesInstanceUID += ".1"  # a series of its own, or it may be taken for a copy
    dataset.save_as(heap / "unowned.dcm")
    for path in image.parent.iterdir():
        shutil.copy(path, heap)
    argv = ["--input", str(heap), "--output", str(tmp_path / "d"), "--shape", SHAPE, "--quiet"]
    assert dicom_to_tfrecord.main(argv) == cli.EXIT_OK
    reasons = {row["reason"]: row["subject"] for row in rows(tmp_path / "d" / "rejects.csv")}
    assert reasons == {"unusable_name": r"bad\udcff.dcm", "no_patient_id": "unowned.dcm"}
    assert len(list(cases(tmp_path / "d"))) == 1


def test_two_jobs_on_one_output_refuse_each_other(cohort, dataset, copy):
    import fcntl

    with (copy / ".state" / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 1 on elsewhere")
        file.flush()
        with pytest.raises(cli.CommandError, match=r"another job is writing .*process 1"):
            convert(cohort, copy)
    assert published(copy) == published(dataset)


def test_real_series_becomes_one_record(tmp_path):
    folder = unpack_real_series(tmp_path)
    (tmp_path / "root" / "train" / "00001").mkdir(parents=True)
    folder.rename(tmp_path / "root" / "train" / "00001" / "T1w")
    argv = ["--input", str(tmp_path / "root" / "train"), "--output", str(tmp_path / "d")]
    assert dicom_to_tfrecord.main([*argv, "--quiet"]) == cli.EXIT_OK
    (case,) = cases(tmp_path / "d")
    assert case.patient_id == "00001"
    assert case.volume.shape == (128, 128, 32, 4)
    assert case.present == (False, True, False, False)
    head = case.volume[..., 1] > 40
    extent = np.ptp(np.argwhere(head), axis=0) * (1.875, 1.875, 5.0)
    # A head: longer than wide, and neither cut nor squeezed in the plane.
    assert 180 < extent[0] < 230
    assert 130 < extent[1] < 190
    assert extent[0] > extent[1] + 20


def test_manifest_is_json_with_a_privacy_note(dataset):
    data = json.loads((dataset / "manifest.json").read_text())
    assert data["format"] == "voxelbeam-dataset"
    assert "not anonymous" in data["privacy"]
