"""The one real series tests may use, where a workspace has it; tests skip where it is absent."""

import tarfile
from pathlib import Path

import pytest

ARCHIVE = Path(__file__).resolve().parents[2] / "shared" / "data" / "t1_structural.tar.xz"


def unpack_real_series(folder: Path) -> Path:
    """Unpacks the series below `folder` and returns the directory of its files."""
    if not ARCHIVE.exists():
        pytest.skip("the real series is not here")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "dicoms"
