"""Maps as Parametric Maps, end to end: phantoms in every plane, the real series, an Orthanc.

The oracles are others' programs: dciodvfy (dicom3tools), dcmdump (DCMTK), highdicom's geometry of
the source series, and SciPy's interpolation of the map's NIfTI file.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from highdicom import get_volume_from_series
from highdicom.pm import ParametricMap
from scipy import ndimage

from tests.orthanc import orthanc
from tests.real_series import ARCHIVE, unpack_real_series

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
REAL = "09999"


class Made(NamedTuple):
    """A cohort, its dataset, a run on it, and what the command wrote of some patients.

    Attributes:
      maps: the directory of the Parametric Maps.
      command: of `trainer.saliency`, but for where maps go and where the series lie.
    """

    cohort: Path
    data: Path
    run: Path
    output: Path
    maps: Path
    command: list[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    from beam_jobs.dicom_to_tfrecord import main as convert
    from beam_jobs.phantoms.cohort import write_cohort
    from beam_jobs.phantoms.plan import PhantomConfig
    from trainer.saliency import main as explain
    from trainer.task import main as train

    base: Path = tmp_path_factory.mktemp("maps")
    cohort, data, trained = base / "cohort", base / "data", base / "run"
    config = PhantomConfig(
        patients=10, test_patients=0, seed=3, matrix=(40, 48), slices=(12, 16), trouble_rate=0
    )
    write_cohort(config, cohort, workers=2)
    root, labels = cohort / "train", cohort / "train_labels.csv"
    if ARCHIVE.exists():
        (root / REAL / "T1w").mkdir(parents=True)
        for path in unpack_real_series(base / "real").iterdir():
            image = pydicom.dcmread(path)
            image.PatientID = REAL
            image.save_as(root / REAL / "T1w" / path.name)
        with labels.open("a") as table:
            table.write(f"{REAL},1\n")
    flags = f"--labels {labels} --shape 32,32,20 --folds 2 --seed 1 --quiet"
    convert(f"--input {root} --output {data} {flags}".split())
    train(
        f"--data {data} --output_dir {trained} --cross_validate --model seed_cnn --epochs 1 "
        "--seed 1 --quiet".split()
    )
    patients = sorted(path.name for path in root.iterdir())
    chosen = [*patients[:4], *({REAL} & {*patients})]
    command = ["--run", str(trained), "--data", str(data), "--patients", *chosen, "--quiet"]
    maps = ["--dicom_pm", str(base / "pm"), "--dicom", str(root)]
    assert explain([*command, "--output", str(base / "out"), *maps]) == 0
    return Made(root, data, trained, base / "out", base / "pm", command)


@pytest.fixture(scope="module")
def files(made: Made) -> list[Path]:
    found = sorted(made.maps.iterdir())
    planes = {plane_of(pydicom.dcmread(path)) for path in found}
    assert planes == {"axial", "coronal", "sagittal"}
    assert len(found) >= 12
    return found


def plane_of(image: pydicom.Dataset) -> str:
    shared = image.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    turned = np.array(shared.ImageOrientationPatient, dtype=float)
    normal = np.abs(np.cross(turned[:3], turned[3:]))
    return ("sagittal", "coronal", "axial")[int(normal.argmax())]


def sources_of(made: Made, path: Path) -> list[pydicom.Dataset]:
    """The images of the series that a map is laid on, found by the map's own references."""
    patient, modality = path.stem.rsplit("-", 1)
    folder = made.cohort / patient.zfill(5) / modality
    wanted = {
        one.ReferencedSOPInstanceUID
        for one in pydicom.dcmread(path, stop_before_pixels=True).SourceImageSequence
    }
    images = [pydicom.dcmread(file) for file in folder.iterdir()]
    return [image for image in images if image.SOPInstanceUID in wanted]


def places_of(image: pydicom.Dataset) -> npt.NDArray[np.float64]:
    """LPS mm of every voxel, (frame, row, column, 3)."""
    shared = image.SharedFunctionalGroupsSequence[0]
    down, right = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    turned = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    rows, columns = np.mgrid[: image.Rows, : image.Columns][..., None]
    first = [
        group.PlanePositionSequence[0].ImagePositionPatient
        for group in image.PerFrameFunctionalGroupsSequence
    ]
    start = np.array(first, dtype=float)[:, None, None]
    found: npt.NDArray[np.float64] = start + rows * down * turned[3:] + columns * right * turned[:3]
    return found


def test_dciodvfy_finds_no_error(files: list[Path]) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    for path in files:
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        said = done.stderr + done.stdout
        assert "ParametricMap" in said
        assert "Error" not in said, (path.name, said)


def test_dcmtk_reads_every_map(files: list[Path]) -> None:
    if shutil.which("dcmdump") is None:
        pytest.skip("dcmdump is not installed (Debian: dcmtk)")
    for path in files:
        done = subprocess.run(["dcmdump", path], capture_output=True, text=True, errors="replace")
        assert (done.returncode, done.stderr) == (0, "")
        assert "=ParametricMapStorage" in done.stdout


def test_highdicom_reads_the_geometry_of_the_source_series(made: Made, files: list[Path]) -> None:
    volumes = 0
    for path in files:
        found, images = ParametricMap.from_file(path), sources_of(made, path)
        assert len(images) == found.NumberOfFrames
        assert found.FrameOfReferenceUID == images[0].FrameOfReferenceUID
        assert found.StudyInstanceUID == images[0].StudyInstanceUID
        # The real series writes more digits than a decimal string may have (PS3.5 6.2).
        places = sorted(list(map(float, image.ImagePositionPatient)) for image in images)
        own = sorted(
            list(map(float, group.PlanePositionSequence[0].ImagePositionPatient))
            for group in found.PerFrameFunctionalGroupsSequence
        )
        np.testing.assert_allclose(own, places, rtol=0, atol=1e-11)
        if found.get("DimensionOrganizationType") == "3D":
            source = get_volume_from_series(images)
            np.testing.assert_allclose(found.get_volume().affine, source.affine, atol=1e-9)
            assert found.get_volume().spatial_shape == source.spatial_shape
            volumes += 1
    assert volumes >= 8


def test_numbers_are_those_of_the_map_at_the_same_place_in_the_patient(
    made: Made, files: list[Path]
) -> None:
    order = ("FLAIR", "T1w", "T1wCE", "T2w")
    for path in files:
        patient, modality = path.stem.rsplit("-", 1)
        nifti: Any = nibabel.load(made.output / f"{patient}.nii.gz")
        grid = nifti.get_fdata()[..., order.index(modality)]
        image = pydicom.dcmread(path)
        numbers = np.frombuffer(image.FloatPixelData, "<f4")
        ras = places_of(image) * (-1, -1, 1)
        index = np.moveaxis(nibabel.affines.apply_affine(np.linalg.inv(nifti.affine), ras), -1, 0)
        expected = ndimage.map_coordinates(grid, index, order=1, cval=0.0)
        # The affines of NIfTI are float32 and move a slice on the grid's edge in or out.
        last = np.array(grid.shape)[:, None, None, None] - 1
        sure = (np.abs(index) > 0.01).all(axis=0) & (np.abs(index - last) > 0.01).all(axis=0)
        assert expected[sure].any()
        scale = np.abs(grid).max()
        difference = np.abs(numbers.reshape(expected.shape) - expected)[sure]
        assert difference.max() < 1e-4 * scale


def test_the_same_command_writes_the_same_bytes(
    made: Made, files: list[Path], tmp_path: Path
) -> None:
    from trainer.saliency import main as explain

    maps = ["--dicom_pm", str(tmp_path / "pm"), "--dicom", str(made.cohort)]
    assert explain([*made.command, "--output", str(tmp_path / "out"), *maps]) == 0
    assert sorted(path.name for path in (tmp_path / "pm").iterdir()) == [p.name for p in files]
    for path in files:
        assert (tmp_path / "pm" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.emulator
def test_maps_go_to_an_orthanc_and_come_back_as_they_are(
    made: Made, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a PACS to a dataset of the same bytes, and the maps of its series back into it."""
    from beam_jobs.dicom_to_tfrecord import main as convert
    from trainer.saliency import main as explain

    monkeypatch.setenv("VOXELBEAM_SPOOL", str(tmp_path / "spool"))
    with orthanc(tmp_path / "pacs") as server:
        server.store(path for path in sorted(made.cohort.rglob("*")) if path.is_file())
        before = len(server.get("/instances"))
        labels = made.cohort.parent / "train_labels.csv"
        data = tmp_path / "data"
        flags = f"--labels {labels} --shape 32,32,20 --folds 2 --seed 1 --quiet"
        convert(f"--input {server.root} --output {data} {flags}".split())
        command = list(made.command)
        command[command.index("--data") + 1] = str(data)
        flags_of_maps = ["--dicom_pm", server.root, "--dicom", server.root]
        for _ in range(2):  # what it holds already, it holds once
            assert explain([*command, "--output", str(tmp_path / "out"), *flags_of_maps]) == 0
        assert len(server.get("/instances")) == before + len(files)
        for path in files:
            uid = str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)
            stored = server.request("GET", f"{server.below('Instance', uid)}/file")
            assert stored == path.read_bytes()
