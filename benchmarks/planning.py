"""Planning a large cohort: memory and rate of a conversion whose files are little but headers.

100,000 files of 4 x 4 pixels (250 patients of four series of 100 slices) are generated and
converted by the command; almost all of its work is listing, reading headers, grouping and planning.
Exit code 1: more than 2 GB of memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from beam_jobs.phantoms.series import SeriesSpec, write_series

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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=1)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "input"
        files = write_headers(root, flags.files)
        start = time.perf_counter()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", "--shape", "8,8,8"),
                *("--input", str(root), "--output", str(Path(scratch) / "output")),
                *("--processes", str(flags.processes)),
            ],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(
        f"{files} files in {seconds:.0f} s ({files / seconds:.0f}/s), "
        f"peak {peak:.2f} GB (at most {LIMIT_GB:g} GB)"
    )
    return 1 if done.returncode or peak > LIMIT_GB else 0


if __name__ == "__main__":
    sys.exit(main())
