"""Files come back from a real Orthanc byte for byte, whatever is in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid

from beam_jobs.common.files import interface as files
from beam_jobs.common.files.clients import StoreError
from beam_jobs.common.files.dicomweb import service, stow
from tests.dicom_files import recipe_image, write_slices
from tests.orthanc import Orthanc, orthanc
from tests.pixel_files import ENCODABLE

pytestmark = [pytest.mark.slow, pytest.mark.emulator]
SYNTAXES = [
    *ENCODABLE,
    *(uid.JPEG2000, uid.JPEGBaseline8Bit, uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian),
    uid.DeflatedExplicitVRLittleEndian,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


def odd_files(directory: Path) -> list[Path]:
    """A series of every transfer syntax."""
    paths = []
    for number, syntax in enumerate(SYNTAXES):
        eight = syntax == uid.JPEGBaseline8Bit
        frames = [recipe_image(8 if eight else 12, turn=turn) for turn in range(3)]
        paths += write_slices(
            directory / str(number),
            [frame.astype(np.uint8 if eight else np.uint16) for frame in frames],
            syntax,
            bits_allocated=8 if eight else 16,
            bits_stored=8 if eight else 12,
            series_uid=f"1.2.826.0.1.3680043.8.498.{number + 1}",
        )
    return paths


def read_all(root: str) -> list[bytes]:
    found = files.listing(root).entries
    with files.fetched_ahead(found, 64):
        return [files.read(entry.path) for entry in found]


def test_every_transfer_syntax_comes_back_as_it_was_stored(
    server: Orthanc, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = odd_files(tmp_path)
    for path in paths:
        stow.store(server.root, [(path.name, path.read_bytes())])
    assert sorted(read_all(server.root)) == sorted(path.read_bytes() for path in paths)
    series, instances, _ = service.fetched_since(server.root, {})
    assert (series, instances) == (len(SYNTAXES), len(paths))
    # Stored once more, the service keeps what it has, and that is no failure.
    stow.store(server.root, [(path.name, path.read_bytes()) for path in paths])


def test_one_damaged_file_costs_no_other(server: Orthanc, tmp_path: Path) -> None:
    one = "1.2.826.0.1.3680043.8.498.77"
    frames = [np.full((4, 5), n, np.uint16) for n in range(5)]
    paths = write_slices(tmp_path, frames, rows=4, columns=5, series_uid=one)
    server.store(paths)
    server.file_of(paths[2].read_bytes()).unlink()
    server.stop()  # it may hold the file in memory
    server.start()
    found = files.listing(f"{server.root}/studies/{one}.1").entries
    assert len(found) == 5
    data, refused = [], []
    for entry in found:
        try:
            data.append(files.read(entry.path))
        except OSError as error:
            refused.append(str(error))
    assert sorted(data) == sorted(path.read_bytes() for path in paths if path != paths[2])
    assert len(refused) == 1


def test_junk_among_what_is_stored_is_told(server: Orthanc, tmp_path: Path) -> None:
    one = "1.2.826.0.1.3680043.8.498.78"
    (good,) = write_slices(
        tmp_path, [np.zeros((4, 5), np.uint16)], rows=4, columns=5, series_uid=one
    )
    with pytest.raises(StoreError, match="not stored"):
        stow.store(server.root, [("good", good.read_bytes()), ("junk", b"junk" * 100)])
    assert read_all(f"{server.root}?SeriesInstanceUID={one}") == [good.read_bytes()]


def test_terms_find_what_they_say(server: Orthanc, tmp_path: Path) -> None:
    for number, name in enumerate(("Doe", "Roe")):
        server.store(
            write_slices(
                tmp_path / name,
                [np.zeros((4, 5), np.uint16)],
                rows=4,
                columns=5,
                series_uid=f"1.2.826.0.1.3680043.8.498.90{number}",
                PatientID=name,
                SeriesDescription=f"T{number + 1} axial",
                StudyDate=f"2021010{number + 1}",
            )
        )
    (tmp_path / "ids").write_text("Doe\nnobody\n")
    for terms, count in {
        "PatientID=Doe": 1,
        "PatientID=Doe&PatientID=Roe": 2,
        f"PatientID=@{tmp_path}/ids": 1,
        "PatientID=*oe&SeriesDescription=T2*": 1,
        "PatientID=*oe&Modality=CT": 0,
        "StudyDate=20210101-20210102": 2,
        "StudyDate=20210102-": 1,
        "PatientID=*oe&ModalitiesInStudy=MR": 2,
    }.items():
        assert len(files.listing(f"{server.root}?{terms}").entries) == count, terms
        assert files.holds_files(f"{server.root}?{terms}") is (count > 0), terms
