"""Canaries: nothing that a header, a file name or a directory name says gets out of an hmac run."""

import random
import subprocess
import sys
import zlib
from pathlib import Path

import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from beam_jobs.phantoms.series import SeriesSpec, write_series

CANARY = "CANARYxQ7"
DATE = "19530417"
UID = "1.2.826.0.1.77777777"

TEXT_VRS = {"LO", "SH", "PN", "LT", "ST", "UT", "UC", "AE", "AS"}
# What the chain has to read, and what pydicom must find plausible to write the file.
KEEP = {"PixelData", "SeriesDescription", "PhotometricInterpretation", "PixelRepresentation"}


def poison(path: Path) -> None:
    """Puts a canary into every text, date and UID element of the dictionary, and private tags."""
    dataset = pydicom.dcmread(path)
    for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
        group = tag >> 16
        if retired or not keyword or keyword in KEEP or group in (0x0002, 0x0004, 0x0028, 0x7FE0):
            continue
        if group < 0x0008 or "or" in vr or keyword in dataset:
            continue
        if vr in TEXT_VRS:
            setattr(dataset, keyword, f"{CANARY}" if vr != "AS" else "042Y")
        elif vr == "DA":
            setattr(dataset, keyword, DATE)
        elif vr == "UI":
            setattr(dataset, keyword, f"{UID}.{tag}")
    for keyword in ("PatientName", "InstitutionName", "ProtocolName", "SequenceName"):
        setattr(dataset, keyword, CANARY)
    dataset.PatientID = f"{CANARY}-id"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(dataset, keyword, f"{UID}.{len(keyword)}.{zlib.crc32(str(path.parent).encode())}")
    block = dataset.private_block(0x0029, f"{CANARY} BLOCK", create=True)
    block.add_new(1, "LO", CANARY)
    nested = Dataset()
    nested.PatientName = CANARY
    dataset[Tag(0x00081140)] = pydicom.DataElement(0x00081140, "SQ", [nested])
    dataset.save_as(path)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("canary") / "input"
    for number in range(3):
        for modality in ("T1w", "FLAIR"):
            folder = root / f"{CANARY}-patient-{number}" / modality
            spec = SeriesSpec(modality=modality, rows=16, columns=16, slices=6)
            written = write_series(spec, folder, lambda xyz: xyz[..., 0] ** 2, seed=number)
            for path in written.paths:
                poison(path)
                path.rename(path.with_name(f"{CANARY}-{path.name}"))
    rng = random.Random(0)
    images = sorted(root.rglob("*.dcm"))
    damaged = rng.sample(images, 6)
    damaged[0].write_bytes(CANARY.encode() * 100)
    damaged[1].write_bytes(damaged[1].read_bytes()[:-99])
    damaged[2].write_bytes(damaged[2].read_bytes()[:700])
    dataset = pydicom.dcmread(damaged[3])
    dataset.PhotometricInterpretation = CANARY
    dataset.save_as(damaged[3])
    dataset = pydicom.dcmread(damaged[4])
    dataset.ImagePositionPatient = [1e9, 0, 0]
    dataset.save_as(damaged[4])
    (root / f"{CANARY}-patient-1" / f"{CANARY}.txt").write_text(CANARY)
    (root.parent / "labels.csv").write_text(
        "BraTS21ID,MGMT_value\n" + "".join(f"{CANARY}-patient-{n},{n % 2}\n" for n in range(3))
    )
    (root.parent / "key").write_text("a secret of at least sixteen bytes")
    return root


def convert(cohort, output, *more):
    command = [
        *(sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", "--shape", "16,16,8"),
        *("--input", str(cohort), "--output", str(output), "--modalities", "T1w,FLAIR"),
        *("--id_policy", "hmac", "--id_key", str(cohort.parent / "key"), *more),
    ]
    return subprocess.run(command, capture_output=True)


def assert_no_canary(output, *texts):
    found = b"".join(texts)
    for path in output.rglob("*"):
        found += str(path.relative_to(output)).encode()
        found += path.read_bytes() if path.is_file() else b""
    for canary in (CANARY, DATE, UID, "77777777"):
        assert canary.encode() not in found
        assert canary.lower().encode() not in found


def test_no_canary_leaves_an_hmac_run(cohort, tmp_path):
    labels = str(cohort.parent / "labels.csv")
    done = convert(cohort, tmp_path / "d", "--labels", labels, "--format", "npz")
    assert done.returncode == 0, done.stderr.decode()
    rejects = (tmp_path / "d" / "rejects.csv").read_text()
    assert "not_dicom" in rejects
    assert "truncated_pixels" in rejects
    assert "not_greyscale" in rejects
    assert (tmp_path / "d" / "manifest.json").exists()
    assert_no_canary(tmp_path / "d", done.stdout, done.stderr)


def test_no_canary_in_the_error_of_a_failing_hmac_run(cohort, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("BraTS21ID,MGMT_value\n5,1\n005,0\n")
    patient = tmp_path / "input" / "0005" / "T1w"
    write_series(SeriesSpec(slices=3), patient, lambda xyz: xyz[..., 0] ** 2)
    (tmp_path / "key").write_text("a secret of at least sixteen bytes")
    done = convert(tmp_path / "input", tmp_path / "d", "--labels", str(labels), "--quiet")
    assert done.returncode != 0
    assert b"005" not in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_the_canary_would_be_found(cohort, tmp_path):
    """Without hmac the tables name files: the search above can fail."""
    command = [
        *(sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", "--shape", "16,16,8"),
        *("--input", str(cohort), "--output", str(tmp_path / "d"), "--modalities", "T1w,FLAIR"),
    ]
    done = subprocess.run(command, capture_output=True)
    with pytest.raises(AssertionError):
        assert_no_canary(tmp_path / "d", done.stdout, done.stderr)
