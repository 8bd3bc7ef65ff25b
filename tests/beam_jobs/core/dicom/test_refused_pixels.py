"""Pixels that are cut short, of another size or of no known encoding: refused, never padded."""

import struct
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file

from beam_jobs.core.dicom import pixels
from beam_jobs.core.dicom.codestreams import decode_frame
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.reasons import Reason, RejectedError
from tests.dicom_files import (
    NATIVE_SYNTAXES,
    codestream,
    encode_frame,
    image_dataset,
    read_volume,
    write_slices,
)
from tests.pixel_files import ENCODABLE, SMALL, frames_of, refusal, short


@pytest.mark.parametrize("syntax", NATIVE_SYNTAXES, ids=short)
def test_short_native_pixel_element_is_refused(tmp_path, syntax):
    frames = [frame.tobytes() for frame in frames_of(16, 12)]
    paths = write_slices(tmp_path, [*frames[:2], frames[2][:-40]], syntax, bits_stored=12)
    assert refusal(paths) is Reason.TRUNCATED_PIXELS


@pytest.mark.parametrize("syntax", NATIVE_SYNTAXES, ids=short)
def test_native_file_cut_short_is_refused(tmp_path, syntax):
    noise = np.random.default_rng(0).integers(0, 4096, (3, 36, 40), np.uint16)
    paths = write_slices(tmp_path, noise, syntax, bits_stored=12)
    paths[1].write_bytes(paths[1].read_bytes()[:-500])
    assert refusal(paths) in (Reason.TRUNCATED_PIXELS, Reason.CORRUPT_HEADER)


def streams_to_cut():
    for syntax in (*ENCODABLE, uid.JPEGBaseline8Bit, uid.JPEGLSNearLossless, uid.JPEG2000):
        bits = 8 if syntax == uid.JPEGBaseline8Bit else 12
        dataset = image_dataset(
            rows=36, columns=40, bits_allocated=8 if bits == 8 else 16, bits_stored=bits
        )
        yield (
            syntax,
            dataset,
            encode_frame(frames_of(dataset.BitsAllocated, bits)[0], syntax, dataset),
        )
    small = image_dataset(**SMALL, bits_stored=12)
    yield uid.JPEGExtended12Bit, small, codestream("jpeg_12_lossy")
    yield uid.HTJ2KLossless, image_dataset(**SMALL), codestream("htj2k_u16")


@pytest.mark.parametrize(
    ("syntax", "dataset", "stream"),
    list(streams_to_cut()),
    ids=lambda v: short(v) if isinstance(v, str) else "",
)
def test_compressed_frame_cut_anywhere_is_refused(tmp_path, syntax, dataset, stream):
    attributes = {
        "rows": dataset.Rows, "columns": dataset.Columns,
        "bits_allocated": dataset.BitsAllocated, "bits_stored": dataset.BitsStored,
    }  # fmt: skip
    body = len(stream.rstrip(b"\0"))
    assert read_volume(write_slices(tmp_path / "whole", [stream] * 2, syntax, **attributes))
    for index, cut in enumerate(np.linspace(4, body - 2, 9).astype(int)):
        paths = write_slices(tmp_path / str(index), [stream, stream[:cut]], syntax, **attributes)
        assert refusal(paths) in (Reason.TRUNCATED_PIXELS, Reason.UNDECODABLE_PIXELS), cut


@pytest.mark.parametrize(
    "syntax", [uid.RLELossless, uid.JPEGBaseline8Bit, uid.JPEG2000Lossless], ids=short
)
def test_compressed_file_cut_short_is_refused(tmp_path, syntax):
    frames = frames_of(8, 8)
    paths = write_slices(tmp_path, frames, syntax, bits_allocated=8)
    paths[2].write_bytes(paths[2].read_bytes()[:-120])
    assert refusal(paths) in (
        Reason.TRUNCATED_PIXELS, Reason.UNDECODABLE_PIXELS, Reason.CORRUPT_HEADER, Reason.NO_PIXELS,
    )  # fmt: skip


def test_jpeg_of_32_bits_allocated_is_refused_where_gdcm_would_end_the_process(tmp_path):
    dataset = pydicom.dcmread(str(get_testdata_file("JPEG-lossy.dcm")))
    dataset.BitsAllocated = 32
    dataset.save_as(tmp_path / "wide.dcm")
    found, _ = index_files([tmp_path / "wide.dcm"])
    with pytest.raises(RejectedError) as refused:
        next(pixels.stored_slices(found))
    assert refused.value.reason is Reason.UNDECODABLE_PIXELS


def test_codestream_of_another_size_is_refused(tmp_path):
    stream = codestream("htj2k_u16")
    paths = write_slices(tmp_path, [stream] * 2, uid.HTJ2K, rows=16, columns=12)
    assert refusal(paths) is Reason.UNDECODABLE_PIXELS


@pytest.mark.slow
def test_coded_data_with_the_bytes_of_a_marker_is_no_header(tmp_path):
    noise = np.random.default_rng(0).integers(0, 1 << 16, (1024, 1024), np.uint16)
    attributes: dict[str, Any] = {"rows": 1024, "columns": 1024}
    syntax = uid.JPEG2000Lossless
    stream = encode_frame(noise, syntax, image_dataset(**attributes))
    assert stream.count(b"\xff\x52") > 10  # a COD's
    [path] = write_slices(tmp_path / "noise", [stream], syntax, **attributes)
    [header] = index_files([str(path)])[0]
    assert np.array_equal(next(pixels.stored_slices([header])).samples, noise)

    at = stream.index(b"\xff\x90")  # SOT, the first of a tile-part's header
    tiny = b"\xff\x52" + struct.pack(">HBBHBBBBBB6B", 18, 1, 0, 1, 0, 5, 4, 4, 0, 1, *[0] * 6)
    length = struct.unpack_from(">L", stream, at + 6)[0]
    for claimed in (length + len(tiny), length, 1 << 31):  # right, and leading elsewhere
        part = stream[at : at + 6] + struct.pack(">L", claimed) + stream[at + 10 : at + 12]
        bomb = stream[:at] + part + tiny + stream[at + 12 :]
        with pytest.raises(RejectedError) as refused:
            decode_frame(header, bomb)
        assert refused.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.102", "1.2.3.4"])
def test_syntax_without_a_decoder_is_refused(tmp_path, syntax):
    dataset = image_dataset(rows=36, columns=40)
    paths = write_slices(tmp_path, frames_of(16, 16), uid.RLELossless)
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
        dataset.save_as(path, implicit_vr=False, little_endian=True)
    assert refusal(paths) is Reason.UNSUPPORTED_PIXELS


@pytest.mark.parametrize(
    ("photometric", "samples"), [("RGB", 3), ("PALETTE COLOR", 1), ("YBR_FULL_422", 3)]
)
def test_colour_is_refused_by_rule(tmp_path, photometric, samples):
    paths = write_slices(
        tmp_path, [bytes(36 * 40 * samples)] * 2, bits_allocated=8, SamplesPerPixel=samples,
        photometric=photometric, sop_class=uid.SecondaryCaptureImageStorage,
    )  # fmt: skip
    assert refusal(paths) is Reason.NOT_GREYSCALE
