"""Stored samples: every transfer syntax, bit depth and rescale comes out as it went in."""

import time
import types
from unittest import mock

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.decoders.base import _PIXEL_DATA_DECODERS

from beam_jobs.common.files import local
from beam_jobs.core.dicom import codestreams, headers, pixels
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.reasons import Reason
from tests.dicom_files import (
    CODESTREAM_SHAPE,
    HTJ2K_SYNTAXES,
    NATIVE_SYNTAXES,
    assert_same_as_dcm2niix,
    codestream,
    decoded,
    encode_frame,
    enhanced_dataset,
    group,
    image_dataset,
    read_volume,
    recipe_image,
    save,
    write_slices,
)
from tests.pixel_files import ENCODABLE, SMALL, frames_of, modality_lut, refusal, short

# (bits allocated, bits stored), and the most bits a codec or its encoder takes where not 16.
DEPTHS = ((8, 8), (16, 12), (16, 16), (32, 20), (32, 32))
MOST_BITS = {uid.RLELossless: 32, uid.JPEG2000Lossless: 24}


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(
    ("syntax", "depth"),
    [
        (syntax, depth)
        for syntax in (*NATIVE_SYNTAXES, *ENCODABLE)
        for depth in DEPTHS
        if depth[1] <= (32 if syntax in NATIVE_SYNTAXES else MOST_BITS.get(syntax, 16))
    ],
    ids=lambda value: short(value) if isinstance(value, str) else str(value),
)
def test_lossless_syntax_gives_back_every_sample(tmp_path, syntax, depth, signed):
    allocated, stored = depth
    frames = frames_of(allocated, stored, signed=signed)
    paths = write_slices(
        tmp_path, frames, syntax, bits_allocated=allocated, bits_stored=stored, signed=signed
    )
    volume = read_volume(paths)
    assert volume.array.dtype == frames[0].dtype
    assert np.array_equal(volume.array, np.stack(frames, axis=-1))


@pytest.mark.parametrize("name", ["u8", "u16", "i16"])
@pytest.mark.parametrize("syntax", HTJ2K_SYNTAXES, ids=short)
def test_high_throughput_jpeg_2000_gives_back_every_sample(tmp_path, syntax, name):
    bits, signed = int(name[1:]), name[0] == "i"
    expected = recipe_image(bits, signed=signed, shape=CODESTREAM_SHAPE)
    frame = codestream(f"htj2k_{name}")
    paths = write_slices(
        tmp_path, [frame, frame], syntax, bits_allocated=bits, signed=signed, **SMALL
    )
    assert np.array_equal(read_volume(paths).array, np.stack([expected, expected], axis=-1))


@pytest.mark.parametrize(("name", "bits"), [("12_predictor_4", 12), ("16_predictor_7", 16)])
def test_jpeg_lossless_of_any_predictor_gives_back_every_sample(tmp_path, name, bits):
    frame = codestream(f"jpeg_{name}")
    paths = write_slices(tmp_path, [frame] * 2, uid.JPEGLossless, bits_stored=bits, **SMALL)
    expected = recipe_image(bits, shape=CODESTREAM_SHAPE)
    assert np.array_equal(read_volume(paths).array[..., 1], expected)


@pytest.mark.parametrize(
    ("name", "syntax", "bits", "tolerance"),
    [("htj2k_lossy", uid.HTJ2K, 16, 1), ("jpeg_12_lossy", uid.JPEGExtended12Bit, 12, 1)],
)
def test_lossy_codestream_is_what_its_encoders_library_decodes(
    tmp_path, name, syntax, bits, tolerance
):
    paths = write_slices(tmp_path, [codestream(name)] * 2, syntax, bits_stored=bits, **SMALL)
    found = read_volume(paths).array[..., 0].astype(int)
    assert np.abs(found - decoded(name)).max() <= tolerance
    assert np.ptp(found) > 100


@pytest.mark.parametrize(
    ("syntax", "bits"),
    [(uid.JPEGBaseline8Bit, 8), (uid.JPEGLSNearLossless, 12), (uid.JPEG2000, 12)],
    ids=str,
)
def test_lossy_syntax_is_what_simpleitk_decodes(tmp_path, syntax, bits):
    allocated = 8 if bits == 8 else 16
    frames = frames_of(allocated, bits)
    paths = write_slices(tmp_path, frames, syntax, bits_allocated=allocated, bits_stored=bits)
    volume = read_volume(paths)
    for index, path in enumerate(paths):
        oracle = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))[0]
        assert np.array_equal(volume.array[..., index], oracle)
        assert not np.array_equal(oracle, frames[index])  # it was lossy indeed


def test_jpeg_extended_with_8_bits_is_decoded(tmp_path):
    dataset = image_dataset(rows=36, columns=40, bits_allocated=8)
    frame = encode_frame(frames_of(8, 8)[0], uid.JPEGBaseline8Bit, dataset)
    one = read_volume(
        write_slices(tmp_path / "a", [frame] * 2, uid.JPEGBaseline8Bit, bits_allocated=8)
    )
    two = read_volume(
        write_slices(tmp_path / "b", [frame] * 2, uid.JPEGExtended12Bit, bits_allocated=8)
    )
    assert np.array_equal(one.array, two.array)


@pytest.mark.parametrize(
    "name",
    [
        "693_J2KI.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "JPEG2000.dcm",
        "JPGExtended.dcm",
        "JPEGLSNearLossless_08.dcm",
        "JPEGLSNearLossless_16.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "image_dfl.dcm",
    ],
)
def test_files_from_other_encoders_are_what_simpleitk_decodes(name):
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    (header,), _ = index_files([path])
    series = types.SimpleNamespace(headers=[header])
    (stored,) = pixels.stored_slices(series.headers)
    plain = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))[0]
    ours = stored.samples * stored.slope + stored.intercept
    # Lossy JPEG 2000 decoders may differ in the last bit.
    assert np.abs(ours - plain).max() <= (1 if header.transfer_syntax == uid.JPEG2000 else 0)


def test_every_compressed_syntax_of_pydicoms_table_has_its_decoder_installed():
    table = {str(syntax): entry for syntax, entry in _PIXEL_DATA_DECODERS.items()}
    compressed = set(table) - set(map(str, NATIVE_SYNTAXES))
    assert compressed == headers.ENCAPSULATED == set(codestreams.DECODERS)
    for syntax, name in codestreams.DECODERS.items():
        assert name in pydicom.pixels.get_decoder(uid.UID(syntax)).available_plugins


@pytest.mark.parametrize("syntax", [*NATIVE_SYNTAXES, uid.RLELossless], ids=short)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_bits_beside_the_stored_ones_are_dropped(tmp_path, syntax, signed):
    values = recipe_image(12, signed=signed)
    dirty = (values & 0x0FFF).astype("u2") | 0xA000
    paths = write_slices(tmp_path, [dirty] * 2, syntax, bits_stored=12, signed=signed)
    assert np.array_equal(read_volume(paths).array[..., 0], values)


@pytest.mark.parametrize("syntax", [*NATIVE_SYNTAXES, uid.RLELossless], ids=short)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_high_bit_says_where_the_stored_bits_lie(tmp_path, syntax, signed):
    values = recipe_image(12, signed=signed)
    shifted = ((values & 0x0FFF) << 4).astype("u2") | 0x0005
    paths = write_slices(
        tmp_path, [shifted] * 2, syntax, bits_stored=12, high_bit=15, signed=signed
    )
    assert np.array_equal(read_volume(paths).array[..., 0], values)


def test_packed_12_bit_samples_are_what_simpleitk_unpacks(tmp_path):
    values = recipe_image(12).astype(np.uint16).ravel()
    packed = np.empty(values.size // 2 * 3, np.uint8)
    packed[0::3] = values[0::2] & 0xFF
    packed[1::3] = values[0::2] >> 8 | (values[1::2] & 0x0F) << 4
    packed[2::3] = values[1::2] >> 4
    paths = write_slices(tmp_path, [packed.tobytes()] * 2, bits_allocated=12)
    found = read_volume(paths).array[..., 0]
    assert np.array_equal(found, recipe_image(12))
    assert np.array_equal(found, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(paths[0])))[0])


@pytest.mark.parametrize("bits", [1, 24, 64])
def test_unknown_bits_allocated_are_refused(tmp_path, bits):
    paths = write_slices(tmp_path, [bytes(36 * 40 * 8)] * 2, bits_allocated=bits)
    assert refusal(paths) is Reason.UNSUPPORTED_PIXELS


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_monochrome1_is_turned_round_within_the_stored_range(tmp_path, signed):
    frames = frames_of(16, 12, signed=signed)
    paths = write_slices(
        tmp_path, frames, bits_stored=12, signed=signed, photometric="MONOCHROME1",
        RescaleSlope=2.0, RescaleIntercept=-7.0,
    )  # fmt: skip
    lowest, highest = (-2048, 2047) if signed else (0, 4095)
    inverted = lowest + highest - np.stack(frames, axis=-1).astype(float)
    assert np.array_equal(read_volume(paths).array, 2 * inverted - 7)


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless], ids=short)
@pytest.mark.parametrize("first", [0, 30, -30])
def test_modality_lut_maps_samples_and_clips_beyond_its_ends(tmp_path, syntax, vr, first):
    entries = (np.arange(60) ** 2 + 5).tolist()
    frames = frames_of(16, 8, signed=first < 0)
    paths = write_slices(
        tmp_path, frames, syntax, bits_stored=8, signed=first < 0,
        change=lambda dataset, _: setattr(
            dataset, "ModalityLUTSequence", modality_lut(first, entries, 12, vr)
        ),
    )  # fmt: skip
    stored = np.stack(frames, axis=-1).astype(int)
    expected = np.asarray(entries)[np.clip(stored - first, 0, 59)]
    assert np.array_equal(read_volume(paths).array, expected)


def test_slope_and_intercept_apply_slice_by_slice(tmp_path):
    frames = frames_of(16, 12)

    def rescale(dataset, index):
        if index:  # the first slice has none
            dataset.RescaleSlope, dataset.RescaleIntercept = f"{index * 0.37:.4f}", str(-index)

    paths = write_slices(tmp_path / "s", frames, bits_stored=12, change=rescale)
    volume = read_volume(paths)
    assert np.array_equal(volume.array[..., 0], frames[0])
    for index in (1, 2):
        expected = frames[index] * (index * 0.37) - index
        np.testing.assert_allclose(volume.array[..., index], expected, rtol=1e-6)


def test_rescaled_values_are_dcm2niixs_to_float32(tmp_path):
    paths = write_slices(
        tmp_path / "s", frames_of(16, 16), RescaleSlope="1.23456789", RescaleIntercept="-1024.5"
    )
    assert_same_as_dcm2niix(tmp_path / "s", read_volume(paths), tmp_path)


def test_unsigned_16_bit_beyond_32767_is_what_dcm2niix_reads(tmp_path):
    paths = write_slices(tmp_path / "s", frames_of(16, 16))
    volume = read_volume(paths)
    assert volume.array.max() > 32767
    assert_same_as_dcm2niix(tmp_path / "s", volume, tmp_path)


@pytest.mark.parametrize("slope", [0.0, "NaN"])
def test_impossible_rescale_is_refused(tmp_path, slope):
    def rescale(dataset, _):
        dataset.add_new("RescaleSlope", "DS", "0")
        dataset.RescaleIntercept = "0"
        if slope:
            dataset["RescaleSlope"] = pydicom.DataElement(0x00281053, "LO", slope)
            dataset["RescaleSlope"].VR = "LO"

    paths = write_slices(tmp_path, frames_of(16, 12), bits_stored=12, change=rescale)
    assert refusal(paths) is Reason.CORRUPT_HEADER


# Encapsulation.


def multi_frame(path, syntax, codestreams, data=None, **attributes):
    """An enhanced MR file of one stack, its pixel data given."""
    frames = [
        group(PlanePositionSequence={"ImagePositionPatient": [0, 0, 2.0 * k]})
        for k in range(len(codestreams))
    ]
    dataset = enhanced_dataset(frames, **attributes)
    save(dataset, path, syntax, codestreams)
    if data is not None:
        dataset.PixelData = data
        dataset["PixelData"].is_undefined_length = True
        dataset["PixelData"].VR = "OB"
        dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("table", ["basic", "empty", "extended", "wrong"])
@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_frames_are_found_with_and_without_offset_tables(tmp_path, syntax, table):
    frames = frames_of(16, 12)
    dataset = image_dataset(rows=36, columns=40, bits_stored=12)
    streams = [encode_frame(frame, syntax, dataset) for frame in frames]
    extra = {}
    data = encapsulate(streams, has_bot=table != "empty")
    if table == "extended":
        data, offsets, lengths = encapsulate_extended(streams)
        extra = {"ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
    if table == "wrong":
        data = data[:8] + np.array([0, 2, 4], "<u4").tobytes() + data[20:]
    path = multi_frame(tmp_path / "m.dcm", syntax, streams, data, bits_stored=12, **extra)
    assert np.array_equal(read_volume([path]).array, np.stack(frames, axis=-1))


@pytest.mark.parametrize("has_bot", [True, False])
@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEGLosslessSV1, uid.JPEG2000Lossless])
def test_frames_of_several_fragments_are_joined(tmp_path, syntax, has_bot):
    frames = frames_of(16, 12)
    dataset = image_dataset(rows=36, columns=40, bits_stored=12)
    streams = [encode_frame(frame, syntax, dataset) for frame in frames]
    data = encapsulate(streams, fragments_per_frame=4, has_bot=has_bot)
    path = multi_frame(tmp_path / "m.dcm", syntax, streams, data, bits_stored=12)
    assert np.array_equal(read_volume([path]).array, np.stack(frames, axis=-1))


def test_single_frame_of_several_fragments_is_joined(tmp_path):
    frames = frames_of(16, 12)

    def refragment(path):
        dataset = pydicom.dcmread(path)
        (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
        dataset.PixelData = encapsulate([frame], fragments_per_frame=5, has_bot=False)
        dataset.save_as(path)

    paths = write_slices(tmp_path, frames, uid.JPEGLSLossless, bits_stored=12)
    for path in paths:
        refragment(path)
    assert np.array_equal(read_volume(paths).array, np.stack(frames, axis=-1))


@pytest.mark.parametrize("found", [2, 4])
def test_wrong_number_of_compressed_frames_is_refused(tmp_path, found):
    dataset = image_dataset(rows=36, columns=40, bits_stored=12)
    stream = encode_frame(frames_of(16, 12)[0], uid.RLELossless, dataset)
    path = multi_frame(
        tmp_path / "m.dcm", uid.RLELossless, [stream] * 3, encapsulate([stream] * found),
        bits_stored=12,
    )  # fmt: skip
    assert refusal([path]) in (Reason.TRUNCATED_PIXELS, Reason.UNDECODABLE_PIXELS)


def test_three_hundred_compressed_frames_are_read_in_linear_time(tmp_path, monkeypatch):
    dataset = image_dataset(rows=36, columns=40, bits_stored=12)
    streams = [encode_frame(frame, uid.RLELossless, dataset) for frame in frames_of(16, 12)] * 100
    data = encapsulate(streams, has_bot=False)
    path = multi_frame(tmp_path / "m.dcm", uid.RLELossless, streams, data, bits_stored=12)
    cut = mock.Mock(wraps=codestreams.encapsulated_frames)
    monkeypatch.setattr(pixels, "encapsulated_frames", cut)
    start = time.perf_counter()
    volume = read_volume([path])
    assert time.perf_counter() - start < 5
    assert cut.call_count == 1
    assert np.array_equal(volume.array[..., 299], frames_of(16, 12)[2])


def test_native_frames_are_each_read_once_at_their_offset(tmp_path, monkeypatch):
    frames = frames_of(16, 12, count=5)
    path = multi_frame(tmp_path / "m.dcm", uid.ExplicitVRLittleEndian, frames, bits_stored=12)
    (header, *_), _ = index_files([str(path)])
    requests = []
    whole = local.LocalBytes.read_into

    def read_into(source, buffer, offset):
        requests.append((offset, len(buffer)))
        return whole(source, buffer, offset)

    monkeypatch.setattr(local.LocalBytes, "read_into", read_into)
    volume = read_volume([path])
    size = 36 * 40 * 2
    assert requests == [(header.pixel_offset + k * size, size) for k in range(5)]
    assert np.array_equal(volume.array, np.stack(frames, axis=-1))
