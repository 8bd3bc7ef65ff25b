"""NIfTI files in archives and stores are read as from a disk, and by a second decoder alike."""

from __future__ import annotations

import gzip
import threading
import tracemalloc
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs.api import assemble, find_files, index_files, load_volume
from beam_jobs.common.files import interface as files
from beam_jobs.common.files import local
from beam_jobs.convert import second_decoder
from beam_jobs.convert.second_decoder import Verdict
from beam_jobs.core.dicom.pixels import stored_slices
from beam_jobs.core.reasons import Reason, RejectedError
from tests import archives
from tests.beam_jobs.core.nifti.made import AXIAL, bytes_of, image, series_of, voxels, write

MEMBERS = {
    "1/1_t1.nii.gz": gzip.compress(bytes_of(image(voxels(dtype="f4")))),
    "1/1_flair.nii": bytes_of(image(voxels(dtype="u2"), version=2, order=">")),
    "2/2_t1.NII.GZ": gzip.compress(bytes_of(image(voxels((9, 4, 7))))),
}
SHAPES = [(4, 9, 7), (5, 6, 4), (5, 6, 4)]


@pytest.mark.parametrize("suffix", archives.SUFFIXES)
def test_an_archive_is_its_directory(tmp_path: Path, suffix: str) -> None:
    root = archives.make(tmp_path / f"cohort{suffix}", MEMBERS)
    headers, refused = index_files(find_files(root))
    series, left = assemble(headers)
    assert not refused
    assert not left
    assert sorted(load_volume(each).array.shape for each in series) == SHAPES


def test_a_damaged_member_is_refused(tmp_path: Path) -> None:
    damaged = {"1/1_t1.nii.gz": MEMBERS["1/1_t1.nii.gz"][:-20]}
    root = archives.make(tmp_path / "cohort.zip", damaged)
    with pytest.raises(RejectedError) as caught:
        load_volume(series_of(f"{root}!/1/1_t1.nii.gz"))
    assert caught.value.reason is Reason.UNREADABLE_FILE


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Nothing on stderr."""


@pytest.mark.slow  # the client of stores is imported
def test_a_web_server_gives_what_a_disk_does(tmp_path: Path) -> None:
    for name, data in MEMBERS.items():
        files.write(tmp_path / name, data)
    archives.make(tmp_path / "3.zip", MEMBERS)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        at = f"http://127.0.0.1:{server.server_port}"
        for name in MEMBERS:
            expected = load_volume(series_of(str(tmp_path / name))).array
            for place in (name, f"3.zip!/{name}"):
                assert np.array_equal(load_volume(series_of(f"{at}/{place}")).array, expected)
    finally:
        server.shutdown()
        server.server_close()


def _never(data: bytes) -> Any:
    raise AssertionError


def test_a_second_decoder_reads_the_same(tmp_path: Path) -> None:
    for name, data in MEMBERS.items():
        files.write(tmp_path / name, data)
    for name in MEMBERS:
        headers = series_of(str(tmp_path / name)).headers
        found = list(second_decoder.compare(headers[1:], _never))
        assert [each.verdict for each in found] == [Verdict.SAME] * (len(headers) - 1)
    path = write(tmp_path / "short.nii.gz", MEMBERS["1/1_flair.nii"][:-10])
    found = list(second_decoder.compare(series_of(path).headers, _never))
    assert {each.verdict for each in found} == {Verdict.REFUSED}


@pytest.mark.parametrize("signs", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_a_second_decoder_reads_the_same_whichever_way_axes_run(
    tmp_path: Path, signs: tuple[int, int]
) -> None:
    path = write(tmp_path / "1_t1.nii", bytes_of(image(affine=AXIAL @ np.diag([*signs, 1, 1]))))
    found = list(second_decoder.compare(series_of(path).headers, _never))
    assert {each.verdict for each in found} == {Verdict.SAME}


class _Counting(files.LocalBytes):
    """A local file that counts what is read of it."""

    __slots__ = ()
    total = 0

    def read_at(self, offset: int, length: int) -> bytes:
        data = super().read_at(offset, length)
        _Counting.total += len(data)
        return data


def test_a_packed_file_is_read_once_in_the_memory_of_a_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (128, 96, 120)).astype(np.int16)
    path = write(tmp_path / "x.nii.gz", bytes_of(image(values)))
    headers = series_of(path).headers
    monkeypatch.setattr(local, "LocalBytes", _Counting)
    monkeypatch.setattr(_Counting, "total", 0)
    tracemalloc.start()
    try:
        total = sum(int(stored.samples.sum()) for stored in stored_slices(headers))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == values.sum()
    size = Path(path).stat().st_size
    assert size <= _Counting.total < size + (256 << 10)
    assert peak < values[..., 0].nbytes * 4 + (512 << 10) < values.nbytes / 4
