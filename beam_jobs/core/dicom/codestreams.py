"""Compressed frames to samples: one decoder a transfer syntax, and nothing padded."""

from __future__ import annotations

import re
import struct
import warnings
from contextlib import suppress
from typing import Any, NamedTuple

import gdcm
import numpy as np
import numpy.typing as npt
from pydicom.encaps import encapsulate, generate_fragments, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from beam_jobs.core.dicom.headers import SliceHeader
from beam_jobs.core.reasons import Reason, RejectedError

_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_RLE = "1.2.840.10008.1.2.5"
# One decoder a syntax (pydicom's plugin names): values must not depend on what else is installed,
# and a frame that a strict decoder refuses must not go on to one that pads it.
DECODERS = {
    "1.2.840.10008.1.2.4.50": "gdcm",
    _JPEG_EXTENDED: "gdcm",
    "1.2.840.10008.1.2.4.57": "gdcm",
    "1.2.840.10008.1.2.4.70": "gdcm",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
    _RLE: "pylibjpeg",
}
# The last marker of JPEG (EOI), JPEG-LS (EOI) and JPEG 2000 (EOC) codestreams; by byte stuffing it
# cannot occur within their coded data. Encoders pad after it.
_END_OF_CODESTREAM = b"\xff\xd9"
_MOST_PADDING = 64
# Decoders take several times an image's bytes, which a blank one claims in a few: no scanner of
# volumes makes images of more than 4096 x 4096 pixels.
_MOST_BYTES = 64 << 20
# OpenJPEG keeps 7 KB for each tile, and for each precinct and code block some hundred bytes.
_MOST_TILES = 4096
_MOST_PRECINCTS = 1 << 16
_LARGE = 1 << 20  # pixels of an image that is worth the search for precincts
# Markers of JPEG 2000 (T.800 A.2); of segments those that decoders know.
_SOT, _SOD, _COD, _COC = 0xFF90, 0xFF93, 0xFF52, 0xFF53
_SEGMENTS = frozenset(
    0xFF00 | low for low in b"\x50\x51\x55\x57\x58\x59\x5c\x5d\x5e\x5f\x60\x61\x63\x64"
)
# Two bytes of RLE stand for 128 of its samples' bytes at most (PS3.5 G.3.1).
_MOST_RLE_EXPANSION = 64


def encapsulated_frames(header: SliceHeader, data: bytes) -> list[bytes]:
    """The frames of encapsulated pixel data, each of one or more fragments."""
    count = header.frames or 1
    try:
        _, *fragments = generate_fragments(data)  # the first item is the Basic Offset Table
        if count == 1:
            frames = [b"".join(fragments)]
        elif len(fragments) == count:
            # An Extended Offset Table is always of this kind, so none is searched.
            frames = fragments
        else:
            frames = list(generate_frames(data, number_of_frames=count))
    except Exception as error:
        raise RejectedError(
            Reason.UNDECODABLE_PIXELS,
            f"fragments cannot be parsed ({type(error).__name__})",
            path=header.path,
        ) from error
    if len(frames) != count or not all(frames):
        raise RejectedError(
            Reason.TRUNCATED_PIXELS,
            f"{count} compressed frames required, {sum(map(bool, frames))} found",
            path=header.path,
        )
    return frames


def decode_frame(header: SliceHeader, frame: bytes) -> npt.NDArray[Any]:
    """Samples of one codestream, in the type that the header's bits allocated require.

    Raises:
      RejectedError: it is cut short or of another matrix, no decoder is installed, or the decoder
        refuses.
    """
    if header.transfer_syntax != _RLE and _END_OF_CODESTREAM not in frame[-_MOST_PADDING:]:
        # Most decoders fill the missing part with grey and say nothing.
        raise RejectedError(
            Reason.TRUNCATED_PIXELS,
            f"frame {header.frame} has no end-of-image marker",
            path=header.path,
        )
    _require_matrix(header, frame)
    options: dict[str, Any] = {
        "rows": header.rows,
        "columns": header.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": header.photometric,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored,
        "pixel_representation": header.pixel_representation or 0,
    }
    name = DECODERS[header.transfer_syntax]
    decoder = get_decoder(UID(header.transfer_syntax))
    if name not in decoder.available_plugins:
        raise RejectedError(
            Reason.UNSUPPORTED_PIXELS,
            f"decoder {name} for {decoder.UID.name} is not installed",
            path=header.path,
        )
    # PS3.5 8.2.1. GDCM does not refuse others: it ends the process.
    if name == "gdcm" and header.bits_allocated not in (8, 16):
        raise RejectedError(
            Reason.UNDECODABLE_PIXELS,
            f"JPEG holds 8 or 16 bits allocated, the header says {header.bits_allocated}",
            path=header.path,
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if header.transfer_syntax == _JPEG_EXTENDED and header.bits_stored != 8:
                samples = _decode_jpeg_of_12_bits(header, frame)
            else:
                # RLE keeps the allocated bits; the other codecs keep the stored ones alone.
                if header.transfer_syntax == _RLE:
                    options["correct_unused_bits"] = False
                samples, _ = decoder.as_array(
                    encapsulate([frame], has_bot=False), index=0, decoding_plugin=name, **options
                )
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a decoder in Rust is not an Exception
        raise RejectedError(
            Reason.UNDECODABLE_PIXELS,
            f"pixels do not decode ({type(error).__name__})",
            path=header.path,
        ) from error
    return only_stored_bits(header, samples) if header.transfer_syntax == _RLE else samples


def _require_matrix(header: SliceHeader, frame: bytes) -> None:
    """Refuses a codestream of another matrix before a decoder allocates what the header claims."""
    needed, most = header.frame_bytes, _MOST_RLE_EXPANSION * len(frame)
    if needed > _MOST_BYTES:
        raise RejectedError(
            Reason.TOO_LARGE,
            f"a compressed image of {needed} bytes, {_MOST_BYTES} are allowed",
            path=header.path,
        )
    if header.transfer_syntax == _RLE:
        if needed > most:
            raise RejectedError(
                Reason.TRUNCATED_PIXELS,
                f"{needed} bytes required, {len(frame)} RLE bytes hold {most} at most",
                path=header.path,
            )
        return
    try:
        found = _codestream_header(frame)
    except struct.error:
        found = None
    if found is None or found.shape != (header.rows, header.columns) or found.components != 1:
        shape = None if found is None else found.shape
        many = f" with {found.components} components" if found and found.components != 1 else ""
        raise RejectedError(
            Reason.UNDECODABLE_PIXELS,
            f"codestream of {shape}{many}, header says ({header.rows}, {header.columns})",
            path=header.path,
        )
    if found.tiles > _MOST_TILES or found.precincts > _MOST_PRECINCTS:
        raise RejectedError(
            Reason.TOO_LARGE,
            f"a codestream of {found.tiles} tiles with {found.precincts} precincts",
            path=header.path,
        )


class _Codestream(NamedTuple):
    """What a codestream's own header says.

    Attributes:
      shape: (rows, columns).
      components: colours.
      tiles: how many.
      precincts: how many all tiles have at least, by the smallest that are named anywhere.
    """

    shape: tuple[int, int]
    components: int
    tiles: int = 1
    precincts: int = 1


def _codestream_header(frame: bytes) -> _Codestream | None:
    """What a codestream is of; None where it is none.

    Source: SIZ of JPEG 2000 (ITU-T T.800 A.5.1), SOF of JPEG (T.81 B.2.2) and JPEG-LS (T.87 C.2.2).

    Raises:
      struct.error: it ends in its header.
    """
    # Coded data may have the bytes by chance: a JPEG is known by its begin.
    at = -1 if frame.startswith(b"\xff\xd8") else frame.find(b"\xff\x4f\xff\x51")
    # In a file of boxes (JP2) one of them could name another image than is decoded.
    if at == 0 or (at > 0 and frame.find(b"\xff\x4f\xff\x51", at + 1) < 0):
        right, bottom, left, top, width, height, first, upper, components = struct.unpack_from(
            ">8LH", frame, at + 8
        )
        across = -(-(right - first) // max(width, 1))
        tiles = across * -(-(bottom - upper) // max(height, 1))
        shape = bottom - top, right - left
        return _Codestream(shape, components, tiles, _precincts(frame, at, shape))
    if at >= 0:
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns, components = struct.unpack_from(">HHB", frame, at + 5)
            return _Codestream((rows, columns), components)
        # A marker may be preceded by any number of fill bytes 0xFF.
        at += 1 if marker == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _precincts(frame: bytes, start: int, shape: tuple[int, int]) -> int:
    """Precincts and groups of 64 code blocks that the smallest named ones of a large image give.

    Any COD or COC (T.800 A.6.1, A.6.2), of a tile too, may name some.
    """
    pixels = shape[0] * shape[1]
    if pixels < _LARGE:
        return 1
    smallest = _LARGE
    for at, marker in _coding_styles(frame, start):
        style, blocks = (4, 10) if marker == _COD else (5, 7)
        width, height = frame[at + blocks] & 0xF, frame[at + blocks + 1] & 0xF
        smallest = min(smallest, 64 << (width + height + 4))
        if frame[at + style] & 1:
            levels = min(frame[at + blocks - 1], 32) + 1
            sizes = frame[at + blocks + 4 : at + blocks + 4 + levels]
            # The last one, of the full resolution, has most; coarser ones a quarter each.
            for level, each in enumerate(reversed(sizes)):
                area = 1 << ((each & 0xF) + (each >> 4) + 2 * level)
                smallest = min(smallest, area)
    return pixels // max(smallest, 1)


def _coding_styles(frame: bytes, start: int) -> list[tuple[int, int]]:
    """Where segments COD and COC begin, and which they are, in all headers (T.800 A.3, A.4).

    Coded data has the bytes of their markers by chance: it is passed over. Where segments do not
    lead from one to the next, a decoder may search, and every occurrence counts.
    """
    found: list[tuple[int, int]] = []
    at, part, length = start + 2, 0, 0
    with suppress(struct.error):
        while True:
            marker, size = struct.unpack_from(">HH", frame, at)
            if marker == _SOT:
                part, length = at, struct.unpack_from(">L", frame, at + 6)[0]
            elif marker in (_COD, _COC):
                found.append((at, marker))
            elif marker == _SOD:
                at, size = part + length, 0
                following = frame[at : at + 2]
                # Data without a length are all that follows.
                if length == 0 or following == _END_OF_CODESTREAM:
                    return _whole(frame, found)
                if length < 14 or following != _SOT.to_bytes(2, "big"):
                    break
                continue
            elif marker not in _SEGMENTS:
                break
            at += 2 + size
    anywhere = re.finditer(rb"\xff[\x52\x53]", frame)
    return _whole(frame, [(each.start(), 0xFF00 | each[0][1]) for each in anywhere])


def _whole(frame: bytes, found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(at, marker) for at, marker in found if at + 14 < len(frame)]


def _decode_jpeg_of_12_bits(header: SliceHeader, frame: bytes) -> npt.NDArray[Any]:
    """JPEG Extended by GDCM, which pydicom's plugin gives 8-bit samples only."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    stored = header.bits_stored or 12
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((header.columns, header.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    syntax = gdcm.TransferSyntax.GetTSType(_JPEG_EXTENDED)
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    image.SetPixelFormat(gdcm.PixelFormat(1, header.bits_allocated, stored, stored - 1, 0))
    # GDCM's Python binding gives bytes as text.
    data = image.GetBuffer().encode("utf-8", "surrogateescape")
    samples = np.frombuffer(bytearray(data), dtype=f"<u{(header.bits_allocated or 16) // 8}")
    samples = samples.reshape(header.rows or 0, header.columns or 0)
    if header.pixel_representation:
        samples = samples.view(samples.dtype.str.replace("u", "i"))
    return only_stored_bits(header._replace(high_bit=None), samples)


def only_stored_bits(header: SliceHeader, samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Native samples without the bits beside the stored ones, sign extended; changed in place.

    Bits above the high bit and below the lowest stored one may hold anything (old overlays):
    PS3.5 8.1.1.
    """
    width = samples.dtype.itemsize * 8
    stored = header.bits_stored or width
    high_bit = stored - 1 if header.high_bit is None else header.high_bit
    if not stored - 1 <= high_bit < width:
        raise RejectedError(
            Reason.CORRUPT_HEADER,
            f"high bit {high_bit} of {stored} bits stored in {width}",
            path=header.path,
        )
    if stored < width:
        if high_bit == stored - 1 and samples.dtype.kind == "u":
            samples &= samples.dtype.type((1 << stored) - 1)
        else:
            samples <<= width - 1 - high_bit
            samples >>= width - stored
    return samples


def unpack_12_bits(packed: memoryview) -> npt.NDArray[np.uint16]:
    """Samples of 12 bits allocated (retired from PS3.5), two in three bytes, low bits first."""
    pairs = np.frombuffer(packed, dtype=np.uint8).reshape(-1, 3).astype(np.uint16)
    first = pairs[:, 0] | (pairs[:, 1] & 0x0F) << 8
    second = pairs[:, 1] >> 4 | pairs[:, 2] << 4
    samples: npt.NDArray[np.uint16] = np.stack([first, second], axis=1).ravel()
    return samples
