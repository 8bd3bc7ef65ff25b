"""What `convert.py` times: phantom series on a disk, and the ways from one to a volume."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from scipy import ndimage

from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.geometry import VolumeGeometry
from beam_jobs.core.preprocess import PreprocessSpec, prepare_case
from beam_jobs.core.record import PreparedCase
from beam_jobs.core.series import assemble
from beam_jobs.phantoms.anatomy import UNIT, Head, Lesion
from beam_jobs.phantoms.cohort import imaged
from beam_jobs.phantoms.series import SeriesSpec, write_series

# Called as its own documentation calls it; None where the extra `bench` is not installed.
sitk: Any = importlib.import_module("SimpleITK") if find_spec("SimpleITK") else None

GRID = (128, 128, 32)
FINE = (256, 256, 64)
BIG, NOISE, OBLIQUE, SMALL = "big", "big, noise in the air", "big, oblique 14°", "small"
_SEED = 20210713


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """A series on disk and the grid it is brought to.

    Attributes:
      name: as it stands in the table.
      folder: of the files.
      paths: the files by name.
      matrix: (rows, columns) of its slices.
      shape: (rows, columns, slices) wanted.
      vendor: whose headers its files' are shaped like, "" for short ones.
      sorted_paths: the files in the order that GDCM gives them.
      grid: where ours put the grid; SimpleITK resamples to the same.
    """

    name: str
    folder: Path
    paths: tuple[str, ...]
    matrix: tuple[int, int]
    shape: tuple[int, int, int]
    vendor: str
    sorted_paths: tuple[str, ...]
    grid: VolumeGeometry


def ours(source: Input) -> npt.NDArray[Any]:
    """Headers, order, resampling, scaling: all that the converter does but the record."""
    return prepare(source.paths, source.shape).volume[..., 0]


def prepare(paths: Sequence[str], shape: tuple[int, int, int]) -> PreparedCase:
    headers, _ = index_files(paths)
    (series,), _ = assemble(headers)
    spec = PreprocessSpec(modalities=("T1w",), shape=shape)
    return prepare_case("0", {"T1w": series}, spec).case


def plain(source: Input) -> npt.NDArray[Any]:
    """As notebooks do it: pydicom, each slice scaled by its own range, a cubic zoom."""
    datasets = [pydicom.dcmread(path) for path in source.paths]
    datasets.sort(key=lambda dataset: int(dataset.InstanceNumber))
    slices = []
    for dataset in datasets:
        image = dataset.pixel_array.astype(np.float32)
        image -= image.min()
        if image.max() > 0:
            image /= image.max()
        slices.append((image * 255).astype(np.uint8))
    volume = np.stack(slices, axis=-1)
    factors = [wanted / size for wanted, size in zip(source.shape, volume.shape, strict=True)]
    zoomed: npt.NDArray[Any] = ndimage.zoom(volume, factors, order=3)
    return zoomed


def simple_itk(source: Input) -> npt.NDArray[Any]:
    """ITK's series reader and linear resampling, without anti-aliasing and without scaling.

    The names come sorted, outside the clock; ours reads the headers and sorts within it.
    """
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(source.sorted_paths)
    row, column, slice_ = source.grid.spacing
    image = sitk.Resample(
        reader.Execute(),
        [source.shape[1], source.shape[0], source.shape[2]],
        sitk.Transform(),
        sitk.sitkLinear,
        source.grid.affine[:3, 3].tolist(),
        [column, row, slice_],
        np.eye(3).ravel().tolist(),
        0.0,
        sitk.sitkFloat32,
    )
    array: npt.NDArray[Any] = sitk.GetArrayFromImage(image)
    return array.transpose(1, 2, 0)


def simple_itk_from_folder(source: Input) -> npt.NDArray[Any]:
    """`simple_itk` from where ours starts too: GDCM reads the headers and sorts the names first."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(source.folder))
    return simple_itk(dataclasses.replace(source, sorted_paths=names))


def read(source: Input) -> int:
    """The floor: every file read whole, once, into one buffer that is used again."""
    buffer = bytearray(_LARGEST_FILE)
    return sum(_read_into(buffer, path) for path in source.paths)


def read_into_block(source: Input) -> npt.NDArray[np.int16]:
    """`read`, and the pixels copied once into one block for the whole volume.

    It is what a reader that gives the volume to its caller does at the least. Where the system
    backs so large a block by huge pages, half of it is the system's time, else more.
    """
    volume = np.empty((len(source.paths), *source.matrix), np.int16)
    buffer = bytearray(_LARGEST_FILE)
    rows, columns = source.matrix
    for index, path in enumerate(source.paths):
        # They are the last element of a phantom's file, so that no header need be looked at.
        end = _read_into(buffer, path)
        pixels = np.frombuffer(buffer, np.int16, rows * columns, end - 2 * rows * columns)
        volume[index] = pixels.reshape(rows, columns)
    return volume


_LARGEST_FILE = 1 << 20


def _read_into(buffer: bytearray, path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(descriptor, [buffer], 0)
    finally:
        os.close(descriptor)


# In the order of a round: ours stands between those it is compared with.
WAYS: dict[str, Callable[[Input], Any]] = {
    "plain": plain,
    "SimpleITK": simple_itk,
    "SimpleITK + sort": simple_itk_from_folder,
    "ours": ours,
    "read + one block": read_into_block,
    "read": read,
}
FLOORS = ("read + one block", "read")


def write_inputs(folder: Path) -> list[Input]:
    """Writes the phantom series, which also puts them into the page cache."""
    head = Head(
        rotation_degrees=(4.0, -3.0, 6.0),
        lesion=Lesion(kind="ring", centre=(-24.0, 14.0, 31.0), radius=15.0),
    )
    big = SeriesSpec(
        modality="T1w", rows=512, columns=512, slices=170, signed=True,
        row_spacing=0.47, column_spacing=0.47, slice_step=1.0,
    )  # fmt: skip
    small = dataclasses.replace(
        big, rows=256, columns=256, slices=40,
        row_spacing=0.9375, column_spacing=0.9375, slice_step=4.0,
    )  # fmt: skip
    oblique = dataclasses.replace(big, obliquity_degrees=14.0, obliquity_axis_degrees=30.0)
    # As scanners store them: GE signed, the others 12 bits, Philips with a slope.
    whole = dataclasses.replace(small, slices=170, slice_step=1.0, signed=False, bits_stored=12)
    vendors = {
        "GE-like": dataclasses.replace(whole, vendor="GE", signed=True, bits_stored=16),
        "Philips-like": dataclasses.replace(whole, vendor="Philips", slope=0.4),
        "UIH-like": dataclasses.replace(whole, vendor="UIH"),
        "Siemens-like": dataclasses.replace(whole, vendor="Siemens"),
    }
    for name, spec in list(vendors.items()):
        vendors[f"{name}, implicit"] = dataclasses.replace(spec, transfer_syntax="implicit")
    air_noise = np.random.default_rng(_SEED)

    def noisy(xyz: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        # Scanners leave noise in the air, so that there is no zero background to skip.
        values = quiet(xyz)
        air = values == 0
        parts = air_noise.standard_normal((2, int(air.sum())), dtype=np.float32)
        values[air] = np.hypot(*parts) * np.float32(0.025 * UNIT) + 1
        return values

    quiet = imaged(head, "T1w", seed=(_SEED, 0))
    inputs = []
    for name, spec, intensity, shapes in (
        (BIG, big, quiet, (GRID, FINE)),
        (NOISE, big, noisy, (GRID,)),
        (OBLIQUE, oblique, quiet, (GRID,)),
        (SMALL, small, quiet, (GRID,)),
        *((name, spec, noisy, (GRID,)) for name, spec in vendors.items()),
    ):
        place = folder / f"series-{len(list(folder.iterdir()))}"
        paths = tuple(sorted(str(path) for path in write_series(spec, place, intensity).paths))
        ordered = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(place))
        for shape in shapes:
            case = prepare(paths, shape)
            inputs.append(
                Input(
                    name=name,
                    folder=place,
                    paths=paths,
                    matrix=(spec.rows, spec.columns),
                    shape=shape,
                    vendor=spec.vendor,
                    sorted_paths=ordered,
                    grid=VolumeGeometry(shape=shape, affine=case.affine),
                )
            )
    return inputs
