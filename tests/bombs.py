"""Small files that claim, or unpack to, far more than they hold."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from tests.dicom_bytes import SEQUENCE_END, UNDEFINED, dicom, element, item, sequence

DEFLATED = "1.2.840.10008.1.2.1.99"
J2K, JPEG_LS, JPEG = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.70"
RLE = "1.2.840.10008.1.2.5"
PRIVATE, PER_FRAME, PIXELS = 0x00091001, 0x52009230, 0x7FE00010
_HEAD = 128 + 4 + 12  # preamble, DICM, group length


def deflated(data: bytes, *, zeros: int = 0, after: bytes = b"") -> bytes:
    """A file in the deflated transfer syntax.

    Args:
      data: the same file, inflated (`syntax=DEFLATED`).
      zeros: that follow its data set.
      after: bytes that follow these.
    """
    begin = _HEAD + int.from_bytes(data[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = [packer.compress(data[begin:])]
    block = bytes(1 << 20)
    while zeros > 0:
        packed.append(packer.compress(block[:zeros]))
        zeros -= len(block)
    packed.append(packer.compress(after))
    return data[:begin] + b"".join([*packed, packer.flush()])


def short(tag: int, number: int) -> tuple[int, bytes]:
    return tag, element(tag, "US", struct.pack("<H", number))


def matrix(rows: int, columns: int, *, bits: int = 16) -> dict[int, bytes]:
    """An image's size, and pixels so small that it is nowhere metres wide."""
    return dict(
        [
            (0x00280030, element(0x00280030, "DS", b"0.02\\0.02 ")),
            short(0x00280010, rows),
            short(0x00280011, columns),
            short(0x00280100, bits),
            short(0x00280101, bits),
            short(0x00280102, bits - 1),
        ]
    )


def frames(count: int) -> dict[int, bytes]:
    text = str(count).encode()
    return {0x00280008: element(0x00280008, "IS", text + b" " * (len(text) % 2))}


def encapsulated(*fragments: bytes) -> bytes:
    items = (b"\xfe\xff\x00\xe0" + struct.pack("<L", len(each)) + each for each in fragments)
    content = b"\xfe\xff\x00\xe0\0\0\0\0" + b"".join(items) + SEQUENCE_END
    return element(PIXELS, "OB", content, length=UNDEFINED)


def codestream(
    rows: int, columns: int, *, tile: tuple[int, int] | None = None, components: int = 1
) -> bytes:
    """The main header of a JPEG 2000 codestream, one tile-part without data, and its end."""
    tile_rows, tile_columns = tile or (rows, columns)
    size = struct.pack(
        ">HHLLLLLLLLH", 38 + 3 * components, 0, columns, rows, 0, 0, tile_columns, tile_rows, 0, 0,
        components,
    ) + b"\x0f\1\1" * components  # fmt: skip
    style = b"\xff\x52" + struct.pack(">HBBHBBBBBB", 12, 0, 0, 1, 0, 5, 4, 4, 0, 1)
    steps = b"\xff\x5c" + struct.pack(">HB", 19, 0x40) + b"\x88" * 16
    part = b"\xff\x90" + struct.pack(">HHLBB", 10, 0, 14, 0, 1) + b"\xff\x93"
    return b"\xff\x4f\xff\x51" + size + style + steps + part + b"\xff\xd9"


def blank_codestream(rows: int, columns: int, *, syntax: str = J2K) -> bytes:
    """An image of zeros as an encoder makes it."""
    from pydicom.pixels import get_encoder
    from pydicom.uid import UID

    return get_encoder(UID(syntax)).encode(
        bytes(rows * columns),
        rows=rows, columns=columns, number_of_frames=1, samples_per_pixel=1, bits_allocated=8,
        bits_stored=8, pixel_representation=0, photometric_interpretation="MONOCHROME2",
    )  # fmt: skip


def frame_group(number: int, *, extra: bytes = b"", implicit: bool = False) -> bytes:
    """One frame's functional groups: its position."""
    height = f"0\\0\\{number}".encode()
    place = element(0x00200032, "DS", height + b" " * (len(height) % 2), implicit=implicit)
    return item(
        element(0x00209113, "SQ", item(place, defined=True), implicit=implicit) + extra,
        defined=True,
    )


def multi_frame(count: int, *, extra: bytes = b"", defined: bool = False) -> bytes:
    """An enhanced object of `count` frames of 2 x 2 bytes."""
    groups = b"".join(frame_group(number, extra=extra) for number in range(count))
    length = len(groups) if defined else UNDEFINED
    end = b"" if defined else SEQUENCE_END
    pixels = element(PIXELS, "OB", np.arange(4 * count, dtype=np.uint8).tobytes())
    per_frame = element(PER_FRAME, "SQ", groups + end, length=length)
    return dicom(matrix(2, 2, bits=8) | frames(count) | {PER_FRAME: per_frame, PIXELS: pixels})


def nested(depth: int) -> bytes:
    """A private sequence within itself, and so on."""
    begin = sequence(PRIVATE, vr="SQ")[:-8] + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0" + SEQUENCE_END
    return begin * depth + end * depth


def _unsorted(content: bytes) -> dict[int, bytes]:
    """An element that only pydicom reads, for it comes out of order, before what follows it."""
    late = element(0x00280002, "US", b"\1\0")
    return {0x00080005: content + late}


def _volume(
    files: int, make: Callable[[int], dict[int, bytes]], *, syntax: str = ""
) -> list[bytes]:
    found = []
    for number in range(files):
        uid = f"1.2.3.4.{number}".encode()
        place = f"1\\2\\{number}".encode()
        own = {
            0x00080018: element(0x00080018, "UI", uid + b"\0" * (len(uid) % 2)),
            0x00100020: element(0x00100020, "LO", b"00001 "),
            0x00200013: element(0x00200013, "IS", f"{number:<4}".encode()),
            0x00200032: element(0x00200032, "DS", place + b" " * (len(place) % 2)),
            0x00080060: element(0x00080060, "CS", b"MR"),
            0x0008103E: element(0x0008103E, "LO", b"FLAIR "),
        }
        found.append(dicom(own | make(number), syntax=syntax))
    return found


def _empty_items(count: int) -> bytes:
    return element(
        PRIVATE, "SQ", b"\xfe\xff\x00\xe0\0\0\0\0" * count + SEQUENCE_END, length=UNDEFINED
    )


def _mib(count: int) -> int:
    return count << 20


def _wide(rows: int, columns: int, spacing: str) -> list[bytes]:
    text = f"{spacing}\\{spacing}".encode()
    place = element(0x00280030, "DS", text + b" " * (len(text) % 2))
    data = np.arange(rows * columns, dtype="<u2").tobytes()
    return _volume(
        3,
        lambda number: (
            matrix(rows, columns) | {0x00280030: place, PIXELS: element(PIXELS, "OW", data)}
        ),
    )


# Name → the files of one series; each at most 10 MB.
DICOM: dict[str, Callable[[], list[bytes]]] = {
    "deflated: zeros behind the data set": lambda: [
        deflated(dicom(syntax=DEFLATED), zeros=_mib(1500))
    ],
    "deflated: a private element of 1.5 GB": lambda: [
        deflated(
            dicom({PRIVATE: element(PRIVATE, "OB", b"", length=_mib(1500))}, syntax=DEFLATED)[
                :-100
            ],
            zeros=_mib(1500),
        )
    ],
    "deflated: pixels as large as they claim": lambda: [
        deflated(
            dicom(
                matrix(65535, 24000, bits=8)
                | {PIXELS: element(PIXELS, "OW", b"", length=65535 * 24000)},
                syntax=DEFLATED,
            ),
            zeros=65535 * 24000,
        )
    ],
    "deflated: ends too early": lambda: [deflated(dicom(syntax=DEFLATED))[:-20]],
    "codestream of 65535 x 65535, header 16 x 16": lambda: [
        dicom(matrix(16, 16) | {PIXELS: encapsulated(codestream(65535, 65535))}, syntax=J2K)
    ],
    "codestream of 16 x 16, header 65535 x 65535": lambda: [
        dicom(matrix(65535, 65535) | {PIXELS: encapsulated(codestream(16, 16))}, syntax=J2K)
    ],
    "codestream and header of 65535 x 65535": lambda: _volume(
        2,
        lambda _: matrix(65535, 65535) | {PIXELS: encapsulated(codestream(65535, 65535))},
        syntax=J2K,
    ),
    "codestream of 65535 tiles": lambda: _volume(
        2,
        lambda _: (
            matrix(4080, 4096) | {PIXELS: encapsulated(codestream(4080, 4096, tile=(16, 16)))}
        ),
        syntax=J2K,
    ),
    "codestream of 16384 components": lambda: _volume(
        2,
        lambda _: (
            matrix(2048, 2048) | {PIXELS: encapsulated(codestream(2048, 2048, components=16384))}
        ),
        syntax=J2K,
    ),
    "JPEG-LS of 30000 x 30000 zeros": lambda: _volume(
        2,
        lambda _: (
            matrix(30000, 30000, bits=8) | {PIXELS: encapsulated(_jpeg_ls_header(30000, 30000))}
        ),
        syntax=JPEG_LS,
    ),
    "JPEG of 65535 x 65535": lambda: _volume(
        2,
        lambda _: matrix(65535, 65535, bits=8) | {PIXELS: encapsulated(_jpeg(65535, 65535))},
        syntax=JPEG,
    ),
    "RLE of 20000 x 20000": lambda: _volume(
        2,
        lambda _: matrix(20000, 20000, bits=8) | {PIXELS: encapsulated(_rle(20000 * 20000))},
        syntax=RLE,
    ),
    "2,000 compressed frames of 2048 x 2048": lambda: [_compressed_frames(2000, 2048)],
    "10,000 frames of 65535 x 65535 in 2 kB": lambda: [dicom(matrix(65535, 65535) | frames(10000))],
    "a length of 2^32 - 2": lambda: [
        dicom({PRIVATE: element(PRIVATE, "OB", b"", length=0xFFFFFFFE)})
    ],
    "sequences 10,000 deep": lambda: [dicom({PRIVATE: nested(10_000)})],
    "sequences 100,000 deep, for pydicom": lambda: [dicom(_unsorted(nested(100_000)))],
    "a million empty items": lambda: [dicom({PRIVATE: _empty_items(1_200_000)})],
    "a million empty items, for pydicom": lambda: [dicom(_unsorted(_empty_items(1_200_000)))],
    "a million elements": lambda: [_elements(1_200_000)],
    "a spacing of 10 MB": lambda: [
        dicom(_unsorted(b"") | {0x00189089: element(0x00189089, "UN", b"\\1" * 4_900_000)})
    ],
    "20,000 frames": lambda: [multi_frame(20_000)],
    "100,000 frames": lambda: [multi_frame(100_000)],
    "100,000 frames, of defined length": lambda: [multi_frame(100_000, defined=True)],
    "a frame of a million empty items": lambda: [
        multi_frame(2, extra=element(0x00189117, "SQ", b"\xfe\xff\x00\xe0\0\0\0\0" * 600_000))
    ],
    "4 x 4 pixels of 700 mm": lambda: _wide(4, 4, "700"),
    "65535 rows of 45 um": lambda: _wide(65535, 20, "0.045"),
}


def _elements(count: int) -> bytes:
    body = b"".join(
        struct.pack("<HHL", 0x0009 + 2 * (number >> 15), number & 0x7FFF, 0)
        for number in range(count)
    )
    plain = dicom(_unsorted(b""), implicit=True)
    begin = _HEAD + int.from_bytes(plain[140:144], "little")
    return plain[:begin] + body + plain[begin:]


def _jpeg_ls_header(rows: int, columns: int) -> bytes:
    start = b"\xff\xd8\xff\xf7" + struct.pack(">HBHHBBBB", 11, 8, rows, columns, 1, 1, 0x11, 0)
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 0)
    return start + scan + b"\xff\x7f" * 30000 + b"\xff\xd9"


def _jpeg(rows: int, columns: int) -> bytes:
    start = b"\xff\xd8\xff\xc3" + struct.pack(">HBHHBBBB", 11, 8, rows, columns, 1, 1, 0x11, 0)
    table = b"\xff\xc4" + struct.pack(">HB", 20, 0) + b"\1" + bytes(15) + b"\0"
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 0, 0)
    return start + table + scan + bytes(1000) + b"\xff\xd9"


def _rle(pixels: int) -> bytes:
    runs = b"\x81\0" * (pixels // 128)
    return struct.pack("<16L", 1, 64, *[0] * 14) + runs


def _compressed_frames(count: int, side: int) -> bytes:
    stream = blank_codestream(side, side)
    groups = b"".join(frame_group(number) for number in range(count))
    return dicom(
        matrix(side, side, bits=8)
        | frames(count)
        | {
            PER_FRAME: element(PER_FRAME, "SQ", groups + SEQUENCE_END, length=UNDEFINED),
            PIXELS: encapsulated(*[stream + b"\0" * (len(stream) % 2)] * count),
        },
        syntax=J2K,
    )


def zip_of(path: Path, members: Iterable[tuple[str, int]], data: bytes = b"") -> None:
    """A zip archive of members that begin with `data` and go on with zeros."""
    block = bytes(1 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, zeros in members:
            with archive.open(name, "w", force_zip64=True) as stream:
                stream.write(data)
                for _ in range(zeros >> 20):
                    stream.write(block)


def gzip_of(path: Path, data: bytes, zeros: int) -> None:
    """A gzip file of some bytes and then zeros."""
    block = bytes(1 << 20)
    with gzip.open(path, "wb", compresslevel=9) as stream:
        stream.write(data)
        for _ in range(zeros >> 20):
            stream.write(block)


def zip_of_slices(path: Path, series: int, slices: int) -> None:
    """A sound zip archive: a series a patient, which rejects nothing.

    Args:
      path: of the archive.
      series: of patients.
      slices: of each.
    """
    pixels = matrix(4, 4) | {
        0x00280030: element(0x00280030, "DS", b"1\\1 "),
        PIXELS: element(PIXELS, "OW", bytes(range(32))),
    }
    volume = _volume(slices, lambda number: pixels)
    with zipfile.ZipFile(path, "w") as archive:
        for patient in range(series):
            for number, data in enumerate(volume):
                archive.writestr(f"9{patient:04}/FLAIR/{number}.dcm", data)


def tar_of_empty_members(count: int) -> bytes:
    """A gzipped tar of `count` members without content."""
    stream = io.BytesIO()
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = []
    for number in range(count):
        info = tarfile.TarInfo(f"{number}.dcm")
        parts.append(packer.compress(info.tobuf(tarfile.USTAR_FORMAT)))
    stream.write(b"".join(parts) + packer.compress(bytes(1024)) + packer.flush())
    return stream.getvalue()


def many_members(count: int, name: str = "") -> bytes:
    """A zip archive whose directory lists one stored member `count` times.

    Args:
      count: of members.
      name: of each, "" for other names.
    """
    local = struct.pack("<4sHHHHHLLLHH", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"x"
    parts = []
    for number in range(count):
        listed = (name or f"{number:x}.dcm").encode()
        head = struct.pack(
            "<4sHHHHHHLLLHHHHHLL",
            b"PK\1\2",
            20,
            20,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            len(listed),
            0,
            0,
            0,
            0,
            0,
            0,
        )
        parts.append(head + listed)
    table = b"".join(parts)
    zip64 = struct.pack(
        "<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(table), len(local)
    )
    where = struct.pack("<4sLQL", b"PK\6\7", 0, len(local) + len(table), 1)
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return local + table + zip64 + where + end
