"""Times one series from DICOM files to a prepared volume, on one core, against two other ways.

Every way gets the same files in the page cache and runs in turn with the others, so that whatever
else the machine does falls on all of them. Ratios are taken within each round and the median of
the rounds is shown: on a busy machine a ratio holds still where a time does not.
"""

from __future__ import annotations

import os

# Before numpy and ITK are loaded: they make their threads once.
for _name in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{_name}_NUM_THREADS"] = "1"
os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import ctypes  # noqa: E402
import dataclasses  # noqa: E402
import functools  # noqa: E402
import importlib  # noqa: E402
import multiprocessing  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from importlib.util import find_spec  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import pydicom  # noqa: E402
from _harness import (  # noqa: E402
    Clock,
    Limit,
    conclude,
    on_one_core,
    parser,
    ratio,
    show,
    take_turns,
)
from scipy import ndimage  # noqa: E402

from beam_jobs.common import cli  # noqa: E402
from beam_jobs.core.dicom.headers import index_files  # noqa: E402
from beam_jobs.core.geometry import VolumeGeometry  # noqa: E402
from beam_jobs.core.preprocess import PreprocessSpec, prepare_case  # noqa: E402
from beam_jobs.core.record import PreparedCase  # noqa: E402
from beam_jobs.core.series import assemble  # noqa: E402
from beam_jobs.phantoms.anatomy import UNIT, Head, Lesion  # noqa: E402
from beam_jobs.phantoms.cohort import imaged  # noqa: E402
from beam_jobs.phantoms.series import SeriesSpec, write_series  # noqa: E402

# Called as its own documentation calls it; None where the extra `bench` is not installed.
sitk: Any = importlib.import_module("SimpleITK") if find_spec("SimpleITK") else None

_PROG = "python benchmarks/convert.py"
_GRID = (128, 128, 32)
_FINE = (256, 256, 64)
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
      sorted_paths: the files in the order that GDCM gives them.
      grid: where ours put the grid; SimpleITK resamples to the same.
    """

    name: str
    folder: Path
    paths: tuple[str, ...]
    matrix: tuple[int, int]
    shape: tuple[int, int, int]
    sorted_paths: tuple[str, ...]
    grid: VolumeGeometry


def ours(source: Input) -> npt.NDArray[Any]:
    """Headers, order, resampling, scaling: all that the converter does but the record."""
    return _prepare(source.paths, source.shape).volume[..., 0]


def _prepare(paths: Sequence[str], shape: tuple[int, int, int]) -> PreparedCase:
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


def read_and_copy(source: Input) -> list[npt.NDArray[np.int16]]:
    """`read`, and each file's pixels copied once, as they are stored, into an array that is kept.

    It is what a reader that gives the slices to its caller does at the least; most of its time
    is the system's, which hands out and clears the pages of the copies.
    """
    buffer = bytearray(_LARGEST_FILE)
    return [_pixels(source, buffer, path).copy() for path in source.paths]


def read_into_block(source: Input) -> npt.NDArray[np.int16]:
    """`read`, and the pixels copied once into one block for the whole volume.

    Stricter than `read_and_copy`, where the system backs so large a block by huge pages: shown,
    not judged.
    """
    volume = np.empty((len(source.paths), *source.matrix), np.int16)
    buffer = bytearray(_LARGEST_FILE)
    for index, path in enumerate(source.paths):
        volume[index] = _pixels(source, buffer, path)
    return volume


def _pixels(source: Input, buffer: bytearray, path: str) -> npt.NDArray[np.int16]:
    """A file's pixels, still in the buffer it was read into."""
    # They are the last element of a phantom's file, so that no header need be looked at.
    rows, columns = source.matrix
    end = _read_into(buffer, path)
    pixels = np.frombuffer(buffer, np.int16, rows * columns, end - 2 * rows * columns)
    return pixels.reshape(rows, columns)


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
    "read+copy": read_and_copy,
    "read+copy, one block": read_into_block,
    "read": read,
}
FLOORS = ("read+copy", "read+copy, one block", "read")


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
        ("big", big, quiet, (_GRID, _FINE)),
        ("big, noise in the air", big, noisy, (_GRID,)),
        ("big, oblique 14°", oblique, quiet, (_GRID,)),
        ("small", small, quiet, (_GRID,)),
    ):
        place = folder / f"series-{len(list(folder.iterdir()))}"
        paths = tuple(sorted(str(path) for path in write_series(spec, place, intensity).paths))
        ordered = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(place))
        for shape in shapes:
            case = _prepare(paths, shape)
            inputs.append(
                Input(
                    name=name,
                    folder=place,
                    paths=paths,
                    matrix=(spec.rows, spec.columns),
                    shape=shape,
                    sorted_paths=ordered,
                    grid=VolumeGeometry(shape=shape, affine=case.affine),
                )
            )
    return inputs


def require_same_work(source: Input) -> None:
    """Ours and SimpleITK's volumes must show the same thing, or times mean nothing."""
    mine, theirs = ours(source).ravel(), simple_itk(source).ravel()
    correlation = float(np.corrcoef(mine, theirs)[0, 1])
    if correlation < 0.95:
        raise cli.CommandError(
            f"{source.name}: ours and SimpleITK's volume correlate by {correlation:.3f} only"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured of one input: clocks a way and round, MB a way."""

    source: Input
    clocks: dict[str, list[Clock]]
    peak_mb: dict[str, float]

    def cpu(self, way: str) -> list[float]:
        """CPU seconds a round."""
        return [clock.cpu for clock in self.clocks[way]]

    def typical(self, way: str) -> float:
        """CPU seconds: the median over the rounds; of the floors the least.

        A floor is what no way can be faster than, and making huge pages for its fresh volume
        stalls some rounds of it tenfold.
        """
        return min(self.cpu(way)) if way in FLOORS else statistics.median(self.cpu(way))

    def ratio(self, way: str, over: str) -> float:
        """One way's CPU time over another's: median over the rounds, or typical over a floor."""
        if over in FLOORS:
            return self.typical(way) / self.typical(over)
        return ratio(self.cpu(way), self.cpu(over))

    def to_json(self) -> dict[str, Any]:
        return {
            "series": self.source.name,
            "files": len(self.source.paths),
            "shape": self.source.shape,
            "clocks": self.clocks,
            "peak_mb": self.peak_mb,
        }


def measure(source: Input, warm_up: Input, rounds: int, plain_rounds: int) -> Figures:
    """Runs all ways in turn, `rounds` times; the slow plain way in the first few."""
    peaks = {way: peak_memory(way, source, warm_up) for way in ("plain", "SimpleITK", "ours")}
    ways = {way: functools.partial(function, source) for way, function in WAYS.items()}
    clocks = take_turns(ways, rounds, only_first={"plain": plain_rounds})
    return Figures(source=source, clocks=clocks, peak_mb=peaks)


def peak_memory(way: str, source: Input, warm_up: Input) -> float:
    """MB by which one run rises above the state before it, in a process of its own.

    The process has run the same way on another, small series: imports and tables are there.
    """
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_peak_here, (way, source, warm_up))


def _peak_here(way: str, source: Input, warm_up: Input) -> float:
    WAYS[way](warm_up)
    # Memory that was freed but kept would hide what the run takes.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS: proc(5)
    before = _status_kb("VmRSS")
    result = WAYS[way](source)
    peak = _status_kb("VmHWM")
    del result
    return (peak - before) / 1024


def _status_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise cli.CommandError(f"/proc/self/status has no {field}")


def judge(measured: Sequence[Figures]) -> list[Limit]:
    """Each limit of the documentation beside its figure."""
    found = {figures.source.name: figures for figures in measured if figures.source.shape == _GRID}
    big, oblique = found["big"], found["big, oblique 14°"]
    return [
        Limit(
            figure="big: times faster than the plain way",
            value=big.ratio("plain", "ours"),
            at_least=30.0,
        ),
        Limit(
            figure="big: times faster than SimpleITK from the same folder",
            value=big.ratio("SimpleITK + sort", "ours"),
            at_least=3.5,
        ),
        Limit(
            figure="big: times the time of reading and copying the pixels once",
            value=big.ratio("ours", "read+copy"),
            at_most=1.5,
        ),
        Limit(figure="big: MB above the state before", value=big.peak_mb["ours"], at_most=40.0),
        Limit(
            figure="big, oblique 14°: times faster than the plain way",
            value=oblique.ratio("plain", "ours"),
            at_least=15.0,
        ),
    ]


def print_times(measured: Sequence[Figures]) -> None:
    """The table of docs/explanation/speed.md: one row a series."""
    ways = list(WAYS)
    ratios = (
        ("plain", "ours"),
        ("SimpleITK", "ours"),
        ("SimpleITK + sort", "ours"),
        ("ours", "read+copy"),
        ("ours", "read+copy, one block"),
    )
    print("CPU ms: median of the rounds, least of the read columns; peak: MB above the start\n")
    titles = ["series", "to", *ways, *(f"{a} / {b}" for a, b in ratios)]
    titles += ["peak ours / plain / SimpleITK"]
    rows = []
    for figures in measured:
        cells = [figures.source.name, "×".join(map(str, figures.source.shape))]
        for way in ways:
            cells.append(f"{1e3 * figures.typical(way):.{0 if way == 'plain' else 1}f}")
        for a, b in ratios:
            cells.append(f"{figures.ratio(a, b):.{0 if a == 'plain' else 2}f}×")
        peaks = (figures.peak_mb[way] for way in ("ours", "plain", "SimpleITK"))
        rows.append([*cells, " / ".join(f"{peak:.0f}" for peak in peaks)])
    show(titles, rows)


def main(argv: Sequence[str]) -> int:
    """Writes the series, measures, prints; returns 1 if a limit is missed."""
    made = parser(
        "convert.py",
        "Time one DICOM series → prepared volume, on one core: the converter against\n"
        "the plain way (pydicom, per-slice scaling, ndimage.zoom order 3), SimpleITK (series\n"
        "reader, linear resampling), and against reading the files and copying their pixels.\n"
        "Phantom series are written to a temporary folder (400 MB) and removed. Needs the extra\n"
        "`bench` and Linux.",
        examples=f"  {_PROG} --rounds 21 --json convert.json\n",
        rounds=9,
    )
    made.add_argument(
        "--plain_rounds", type=int, default=3, metavar="N", help="rounds with the plain way"
    )
    made.add_argument("--core", type=int, metavar="N", help="to work on (default: the first)")
    flags = made.parse_args(argv)
    if not 1 <= flags.plain_rounds <= flags.rounds:
        raise cli.UsageError("--rounds must be at least --plain_rounds, and that at least 1")
    if sitk is None:
        raise cli.CommandError("SimpleITK is not installed; `make setup` installs the extra bench")
    on_one_core(flags.core)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="voxelbeam-convert-") as folder:
        print("writing the series ...", file=sys.stderr)
        inputs = write_inputs(Path(folder))
        warm_up = inputs[-1]
        measured = []
        for source in inputs:
            print(f"{source.name} to {source.shape} ...", file=sys.stderr)
            require_same_work(source)
            measured.append(measure(source, warm_up, flags.rounds, flags.plain_rounds))
    print_times(measured)
    print(f"\nlimits are to {'×'.join(map(str, _GRID))}; {time.perf_counter() - start:.0f} s")
    figures = [figures.to_json() for figures in measured]
    return conclude(judge(measured), {"series": figures}, flags.json)


if __name__ == "__main__":
    cli.run(main, _PROG)
