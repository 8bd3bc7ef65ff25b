"""Planning a large cohort: memory and rate of a conversion whose files are little but headers.

100,000 files of 4 x 4 pixels (250 patients of four series of 100 slices) are generated and
converted by the command; almost all of its work is listing, reading headers, grouping and planning.
Exit code 1: more than 2 GB of memory.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from _harness import Limit, conclude, parser, run

from beam_jobs.common import cli
from beam_jobs.phantoms.series import SeriesSpec, write_series

PROG = "python benchmarks/planning.py"
LIMIT_GB = 2.0
MODALITIES = ("FLAIR", "T1w", "T1wCE", "T2w")
SLICES = 100


def write_headers(root: Path, files: int) -> int:
    """Copies of one tiny series under other patients' and series' identifiers."""
    template = root.parent / "template"
    spec = SeriesSpec(modality="T1w", rows=4, columns=4, slices=SLICES, slice_step=1.5)
    paths = write_series(spec, template, lambda xyz: 100 + xyz[..., 0] ** 2).paths
    images = [path.read_bytes() for path in paths]
    uid = _series_uid(images[0])
    written = 0
    for patient in range(-(-files // (SLICES * len(MODALITIES)))):
        for number, modality in enumerate(MODALITIES):
            folder = root / f"{patient:05d}" / modality
            folder.mkdir(parents=True)
            other = f"{patient:07d}{number}".encode().rjust(len(uid), b"1")
            for index, image in enumerate(images):
                (folder / f"Image-{index}.dcm").write_bytes(image.replace(uid, other))
                written += 1
    return written


def _series_uid(image: bytes) -> bytes:
    """The last digits of the series UID, to be replaced by others of the same length."""
    start = image.index(b"\x20\x00\x0e\x00UI")
    length = int.from_bytes(image[start + 6 : start + 8], "little")
    return image[start + 8 : start + 8 + length].rstrip(b"\0")[-20:]


def main(argv: Sequence[str]) -> int:
    """Measures and prints; returns 1 if the limit is missed."""
    made = parser("planning.py", __doc__ or "", rounds=None)
    made.add_argument("--files", type=int, default=100_000)
    made.add_argument("--processes", type=int, default=1)
    flags = made.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "input"
        files = write_headers(root, flags.files)
        ran = run(
            [
                *(sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", "--shape", "8,8,8"),
                *("--input", str(root), "--output", str(Path(scratch) / "output")),
                *("--processes", str(flags.processes)),
            ]
        )
    print(f"{files} files in {ran.wall:.0f} s ({files / ran.wall:.0f}/s)")
    peak = Limit(figure="peak GB", value=ran.peak_mb / 1e3, at_most=LIMIT_GB)
    return conclude([peak], {"files": files, "seconds": ran.wall}, flags.json)


if __name__ == "__main__":
    cli.run(main, PROG)
