"""Small files that claim far more than they hold are refused before memory is taken for it."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from beam_jobs.core.dicom.headers import index_files, read_headers
from beam_jobs.core.preprocess import PreprocessSpec, resample_series
from beam_jobs.core.reasons import Reason, RejectedError
from beam_jobs.core.series import assemble
from beam_jobs.core.volume import load_volume
from tests import bombs
from tests.dicom_bytes import SEQUENCE_END, UNDEFINED, dicom, element, item, sequence
from tests.dicom_files import write_slices

# Slow because of the file's making or reading; the others take milliseconds.
SLOW = {
    "deflated: a private element of 1.5 GB",
    "deflated: pixels as large as they claim",
    "a million empty items, for pydicom",
    "a million empty items",
    "a million elements",
    "100,000 frames",
    "100,000 frames, of defined length",
    "20,000 frames",
    "2,000 compressed frames of 2048 x 2048",
    "RLE of 20000 x 20000",
}
# What is no bomb to its reader, and may be used or refused for something else.
OTHERWISE = {
    "deflated: ends too early": {Reason.CORRUPT_HEADER},
    "codestream of 65535 x 65535, header 16 x 16": {Reason.TOO_FEW_SLICES},
    "codestream of 16 x 16, header 65535 x 65535": {Reason.TOO_FEW_SLICES},
    "codestream of 16384 components": {Reason.UNDECODABLE_PIXELS},
    "10,000 frames of 65535 x 65535 in 2 kB": {Reason.NOT_AN_IMAGE_PLANE},
    "a length of 2^32 - 2": {Reason.NO_PIXELS},
    "sequences 10,000 deep": {Reason.CORRUPT_HEADER},
    "sequences 100,000 deep, for pydicom": {Reason.CORRUPT_HEADER},
    "a million empty items": {Reason.TOO_FEW_SLICES},
    "a spacing of 10 MB": {Reason.CORRUPT_HEADER},
    "20,000 frames": set(),
    "100,000 frames": set(),
    "100,000 frames, of defined length": set(),
    "4 x 4 pixels of 700 mm": set(),
}
_PEAK = """
import resource, sys
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.preprocess import PreprocessSpec, resample_series
from beam_jobs.core.reasons import RejectedError
from beam_jobs.core.series import assemble
headers, refused = index_files(sys.argv[1:])
series, left = assemble(headers)
reasons = [each.reason.value for each in refused + left]
for each in series:
    try:
        resample_series(each, PreprocessSpec())
    except RejectedError as error:
        reasons.append(error.reason.value)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, *sorted(set(reasons)))
"""


def written(directory: Path, files: Sequence[bytes]) -> list[Path]:
    paths = [directory / f"{number}.dcm" for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    return paths


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=pytest.mark.slow) if each in SLOW else each for each in bombs.DICOM],
)
def test_a_bomb_takes_little_memory_and_has_a_reason(tmp_path: Path, name: str) -> None:
    paths = written(tmp_path, bombs.DICOM[name]())
    if name not in SLOW:
        started = time.process_time()
        headers, refused = index_files(paths)
        series, left = assemble(headers)
        reasons = {each.reason for each in refused + left}
        for each in series:
            try:
                resample_series(each, PreprocessSpec())
            except RejectedError as error:
                reasons.add(error.reason)
        assert time.process_time() - started < 5
        assert reasons == OTHERWISE.get(name, {Reason.TOO_LARGE})
        return

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    command = [sys.executable, "-c", _PEAK, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, preexec_fn=limited)
    peak, *found = done.stdout.split()
    assert int(peak) < 500 << 10, done.stderr  # kB
    wanted = OTHERWISE.get(name, {Reason.TOO_LARGE})
    assert wanted <= {Reason(each) for each in found}


def test_a_deflated_file_is_inflated_once_and_read_as_the_plain_one(tmp_path: Path) -> None:
    plain = bombs.multi_frame(300)
    deflated = bombs.deflated(
        plain.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
        .replace(b"\x02\0\x10\0UI\x14\0", b"\x02\0\x10\0UI\x16\0")
        .replace(b"\x02\0\0\0UL\x04\0\x1c", b"\x02\0\0\0UL\x04\0\x1e")
    )
    volumes = []
    for path in written(tmp_path, [plain, deflated]):
        [series], refused = assemble(read_headers(path))
        assert not refused
        volumes.append(load_volume(series).array)
    assert volumes[0].shape == (2, 2, 300)
    assert np.array_equal(volumes[0], volumes[1])


def test_frames_are_read_in_linear_time_and_given_up(tmp_path: Path) -> None:
    seconds = []
    for count in (500, 2000):
        [path] = written(tmp_path, [bombs.multi_frame(count)])
        started = time.process_time()
        assert len(read_headers(path)) == count
        seconds.append(time.process_time() - started)
    assert seconds[1] < 8 * seconds[0]
    assert seconds[1] < 3


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("defined", [False, True])
def test_what_follows_the_frames_is_read_too(tmp_path: Path, implicit: bool, defined: bool) -> None:
    groups = b"".join(bombs.frame_group(number, implicit=implicit) for number in range(3))
    content = groups if defined else groups + SEQUENCE_END
    length = len(groups) if defined else UNDEFINED
    pixels = element(bombs.PIXELS, "OW", bytes(range(24)), implicit=implicit)
    extra = {
        0x00280008: element(0x00280008, "IS", b"3 ", implicit=implicit),
        0x00280010: element(0x00280010, "US", b"\2\0", implicit=implicit),
        0x00280011: element(0x00280011, "US", b"\2\0", implicit=implicit),
        bombs.PER_FRAME: element(bombs.PER_FRAME, "SQ", content, implicit=implicit, length=length),
        0x54000100: element(0x54000100, "SQ", b"", implicit=implicit),
        bombs.PIXELS: pixels,
    }
    [path] = written(tmp_path, [dicom(extra, implicit=implicit)])
    headers = read_headers(path)
    assert [header.position for header in headers] == [(0, 0, 0), (0, 0, 1), (0, 0, 2)]
    assert {header.pixel_length for header in headers} == {24}
    [series], _ = assemble(headers)
    assert load_volume(series).array.shape == (2, 2, 3)


def test_a_frames_own_macro_replaces_the_shared_one_whole(tmp_path: Path) -> None:
    spacing = element(0x00280030, "DS", b"2\\2 ")
    thickness = element(0x00180050, "DS", b"5 ")
    shared = item(element(0x00289110, "SQ", item(spacing + thickness, defined=True)), defined=True)
    own = element(0x00289110, "SQ", item(element(0x00280030, "DS", b"3\\3 "), defined=True))
    groups = bombs.frame_group(0) + bombs.frame_group(1, extra=own)
    extra = (
        bombs.matrix(2, 2, bits=8)
        | bombs.frames(2)
        | {
            0x52009229: element(0x52009229, "SQ", shared),
            bombs.PER_FRAME: element(bombs.PER_FRAME, "SQ", groups),
            bombs.PIXELS: element(bombs.PIXELS, "OB", bytes(8)),
        }
    )
    [path] = written(tmp_path, [dicom(extra)])
    first, second = read_headers(path)
    assert (first.pixel_spacing, first.slice_thickness) == ((2, 2), 5)
    assert (second.pixel_spacing, second.slice_thickness) == ((3, 3), None)


def test_a_stack_of_few_voxels_fills_no_more_of_a_lattice_than_a_body(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 4096, (100, 8, 8), np.uint16)

    def spread(dataset: Dataset, index: int) -> None:
        dataset.PixelSpacing = [140.0, 140.0]
        dataset.ImagePositionPatient = [0.0, 0.0, 15.0 * index]

    paths = write_slices(tmp_path, noise, change=spread, rows=8, columns=8)
    [series], _ = assemble(index_files(paths)[0])
    fine = PreprocessSpec(shape=(256, 256, 256), fov_mm=(256.0, 256.0, 256.0))
    with pytest.raises(RejectedError, match="6400 voxels would fill") as caught:
        resample_series(series, fine)
    assert caught.value.reason is Reason.TOO_LARGE


def test_a_private_sequence_of_no_meaning_is_passed_over(tmp_path: Path) -> None:
    [path] = written(tmp_path, [dicom({bombs.PRIVATE: sequence(bombs.PRIVATE, item(b""))})])
    assert len(read_headers(path)) == 1
