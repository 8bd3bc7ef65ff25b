"""Classic series as vendors write them: every stack is what dcm2niix makes of it."""

import numpy as np
import pytest
from pydicom import uid

from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.reasons import Reason
from beam_jobs.core.series import assemble
from beam_jobs.core.volume import load_volume
from tests.dicom_files import (
    assert_same_as_dcm2niix,
    assert_same_as_nifti,
    read_stacks,
    read_volume,
    recipe_image,
    run_dcm2niix,
    write_slices,
)


def images(count, bits=12):
    return [recipe_image(bits, turn=k).astype(np.uint16) for k in range(count)]


def turned(axes, degrees):
    """ImageOrientationPatient tilted about its own first direction."""
    row, column = np.array(axes[:3], float), np.array(axes[3:], float)
    angle = np.deg2rad(degrees)
    column = np.cos(angle) * column + np.sin(angle) * np.cross(row, column)
    return [*row, *column]


AXES = {
    "axial": [1, 0, 0, 0, 1, 0],
    "sagittal": [0, 1, 0, 0, 0, -1],
    "coronal": [1, 0, 0, 0, 0, -1],
    "feet first": [-1, 0, 0, 0, 1, 0],
}


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.JPEGLosslessSV1])
@pytest.mark.parametrize("direction", [1, -1], ids=["ascending", "descending"])
@pytest.mark.parametrize("degrees", [0, 17])
@pytest.mark.parametrize("axes", AXES)
def test_interleaved_series_of_any_plane(tmp_path, axes, degrees, direction, syntax):
    orientation = [round(v, 9) for v in turned(AXES[axes], degrees)]
    normal = np.cross(orientation[:3], orientation[3:])
    acquired = [0, 2, 4, 6, 1, 3, 5]

    def change(dataset, index):
        position = [5.0, -7.0, 11.0] + direction * 3.3 * acquired[index] * normal
        dataset.ImageOrientationPatient = [f"{v:.9g}" for v in orientation]
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in position]
        dataset.SpacingBetweenSlices, dataset.SliceThickness = 3.3, 3.0

    paths = write_slices(tmp_path / "s", images(7), syntax, bits_stored=12, change=change)
    assert_same_as_dcm2niix(tmp_path / "s", read_volume(paths), tmp_path)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_ct_in_hounsfield_units(tmp_path, signed):
    frames = [
        recipe_image(12, signed=signed, turn=k).astype("i2" if signed else "u2") for k in range(6)
    ]
    paths = write_slices(
        tmp_path / "s", frames, sop_class=uid.CTImageStorage, bits_stored=12, signed=signed,
        RescaleSlope="1", RescaleIntercept="-1024",
    )  # fmt: skip
    assert_same_as_dcm2niix(tmp_path / "s", read_volume(paths), tmp_path)


def test_gantry_tilt_keeps_the_sheared_lattice(tmp_path):
    orientation = turned(AXES["axial"], 15)

    def change(dataset, index):
        dataset.ImageOrientationPatient = [f"{v:.9g}" for v in orientation]
        dataset.ImagePositionPatient = [-20, -30, 5.0 * index]
        dataset.GantryDetectorTilt, dataset.SliceThickness = "15", 5.0

    paths = write_slices(
        tmp_path / "s", images(6), sop_class=uid.CTImageStorage, bits_stored=12, change=change,
        RescaleSlope="1", RescaleIntercept="-1024",
    )  # fmt: skip
    volume = read_volume(paths)
    # Between two slices of one tilted stack the table moves along the patient's axis alone.
    np.testing.assert_allclose(volume.affine[:3, 2], [0, 0, 5.0], atol=1e-6)
    images_found = run_dcm2niix(tmp_path / "s", tmp_path)
    (plain,) = (image for image in images_found if "Tilt" not in image.get_filename())
    # Its plain file has the slices unmoved, rows bottom up; its _Tilt file is resampled.
    theirs = np.flip(np.asarray(plain.dataobj).transpose(1, 0, 2), axis=0)
    assert np.array_equal(theirs, volume.array)


SEPARATED = {
    "echoes": lambda t: {"EchoNumbers": t + 1, "EchoTime": [10.0, 90.0, 120.0][t]},
    "temporal positions": lambda t: {"TemporalPositionIdentifier": t + 1},
    "acquisition numbers": lambda t: {"AcquisitionNumber": t + 1},
    "instance numbers": lambda t: {},
    "b values": lambda t: {"DiffusionBValue": [0.0, 500.0, 1000.0][t]},
}


@pytest.mark.parametrize("repetitions", [2, 3])
@pytest.mark.parametrize("separator", SEPARATED)
def test_repetitions_under_one_uid_are_the_volumes_of_dcm2niix(tmp_path, separator, repetitions):
    def change(dataset, index):
        repetition, place = divmod(index, 6)
        dataset.ImagePositionPatient = [-20.0, -30.0, 2.0 * place]
        dataset.AcquisitionTime = f"1200{repetition:02}"
        for keyword, value in SEPARATED[separator](repetition).items():
            setattr(dataset, keyword, value)

    paths = write_slices(tmp_path / "s", images(6 * repetitions), bits_stored=12, change=change)
    stacks = read_stacks(paths)
    volumes = sorted(map(load_volume, stacks), key=lambda volume: volume.array[0, 0, 0])
    assert len(volumes) == repetitions
    theirs = [
        (image, t if image.ndim == 4 else None)
        for image in run_dcm2niix(tmp_path / "s", tmp_path)
        for t in range(image.shape[3] if image.ndim == 4 else 1)
    ]
    assert len(theirs) == repetitions
    for volume, (image, frame) in zip(volumes, theirs, strict=True):
        assert_same_as_nifti(image, volume, frame)


def test_half_a_repetition_is_left_out_and_the_whole_one_kept(tmp_path):
    def change(dataset, index):
        dataset.ImagePositionPatient = [0.0, 0.0, 2.0 * (index % 6)]
        dataset.AcquisitionNumber = 1 + index // 6

    paths = write_slices(tmp_path, images(9), bits_stored=12, change=change)
    headers, _ = index_files(map(str, paths))
    (series,), (rejection,) = assemble(headers)
    assert sorted(series.paths) == [str(path) for path in paths[:6]]
    assert rejection.reason is Reason.INCOMPLETE_REPETITION
    assert rejection.paths == tuple(str(path) for path in paths[6:])


def test_interleaved_acquisitions_of_one_stack_stay_together(tmp_path):
    paths = write_slices(
        tmp_path, images(8), bits_stored=12,
        change=lambda dataset, index: setattr(dataset, "AcquisitionNumber", 1 + index % 2),
    )  # fmt: skip
    assert read_volume(paths).array.shape[2] == 8


def private(dataset, group, creator, **values):
    """Private elements: xNN=(VR, value)."""
    block = dataset.private_block(group, creator, create=True)
    for element, (vr, value) in values.items():
        block.add_new(int(element[1:], 16), vr, value)


def ge_diffusion(dataset, b, direction):
    stored = ("IS", [1_000_000_000 + b if b else 0, 8, 0, 0])
    private(dataset, 0x0043, "GEMS_PARM_01", x39=stored)
    names = ("xBB", "xBC", "xBD")
    elements = {n: ("DS", f"{v:.6f}") for n, v in zip(names, direction, strict=True)}
    private(dataset, 0x0019, "GEMS_ACQU_01", **elements)


def philips_diffusion(dataset, b, direction):
    private(dataset, 0x2001, "Philips Imaging DD 001", x03=("FL", float(b)))
    names = ("xB0", "xB1", "xB2")
    elements = {n: ("FL", v) for n, v in zip(names, direction, strict=True)}
    private(dataset, 0x2005, "Philips MR Imaging DD 001", **elements)
    dataset.TemporalPositionIdentifier = 1


def siemens_diffusion(dataset, b, direction):
    private(dataset, 0x0019, "SIEMENS MR HEADER", x0C=("IS", str(b)), x0E=("FD", direction))


def uih_diffusion(dataset, b, direction):
    elements = {"x09": ("FD", float(b)), "x37": ("FD", direction)}
    private(dataset, 0x0065, "Image Private Header", **elements)


@pytest.mark.parametrize(
    ("maker", "write", "slice_by_slice"),
    [
        ("GE MEDICAL SYSTEMS", ge_diffusion, True),
        ("Philips Medical Systems", philips_diffusion, True),
        ("SIEMENS", siemens_diffusion, False),  # numbered otherwise, dcm2niix mixes these
        ("UIH", uih_diffusion, False),
    ],
)
@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
def test_diffusion_directions_of_each_maker_are_the_volumes_of_dcm2niix(
    tmp_path, maker, write, slice_by_slice, syntax
):
    directions = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.6, 0.8], [0.0, -0.8, 0.6]]

    def change(dataset, index):
        volume, place = divmod(index, 6)
        dataset.ImagePositionPatient = [-20.0, -30.0, 2.0 * place]
        dataset.SpacingBetweenSlices, dataset.AcquisitionNumber = 2.0, 1
        dataset.InstanceNumber = 1 + (4 * place + volume if slice_by_slice else index)
        write(dataset, 1000 if volume else 0, directions[volume])

    paths = write_slices(
        tmp_path / "s", images(24), syntax, bits_stored=12, change=change, Manufacturer=maker
    )
    volumes = list(map(load_volume, read_stacks(paths)))
    (image,) = run_dcm2niix(tmp_path / "s", tmp_path)
    assert image.shape[3] == len(volumes) == 4
    for k, volume in enumerate(volumes):
        assert_same_as_nifti(image, volume, k)
