"""One pass over each file's header: identity, geometry, and where the pixels lie. Reads no pixels.

A classic object gives one `SliceHeader`, a multi-frame object one a frame. Plain files go through
`header_walk`; anything unusual goes to pydicom, and the two agree on every field (tested). A NIfTI
file, told by its name, gives one a slice (`core.nifti`).
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import pydicom

from beam_jobs.common.files import interface as files
from beam_jobs.core.dicom import header_walk, mosaics
from beam_jobs.core.dicom.alike import Recent
from beam_jobs.core.dicom.fields import (
    CHARACTER_SET,
    CREATORS,
    FIELDS,
    PARSE,
    fill,
    local_text,
    private_values,
    pydicom_private,
    pydicom_value,
)
from beam_jobs.core.dicom.multi_frame import PER_FRAME_GROUPS, read_frames
from beam_jobs.core.dicom.reading import (
    Inflated,
    PieceLimit,
    deflated_from,
    items_of,
    limited,
    parse,
    unreadable,
)
from beam_jobs.core.dicom.slice_header import SliceHeader
from beam_jobs.core.nifti.header import begins_as_nifti
from beam_jobs.core.nifti.names import is_nifti
from beam_jobs.core.nifti.slices import read_slices
from beam_jobs.core.reasons import Reason, RejectedError, Rejection

__all__ = [
    "ENCAPSULATED",
    "SliceHeader",
    "group_paths",
    "index_files",
    "read_headers",
    "require_pixel_bytes",
]

# Syntaxes whose data set is plain Explicit VR Little Endian around encapsulated pixels (PS3.5 A.4).
ENCAPSULATED = frozenset(
    {
        "1.2.840.10008.1.2.4.50",  # JPEG Baseline
        "1.2.840.10008.1.2.4.51",  # JPEG Extended
        "1.2.840.10008.1.2.4.57",  # JPEG Lossless
        "1.2.840.10008.1.2.4.70",  # JPEG Lossless, first-order prediction
        "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
        "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-lossless
        "1.2.840.10008.1.2.4.90",  # JPEG 2000 Lossless
        "1.2.840.10008.1.2.4.91",  # JPEG 2000
        "1.2.840.10008.1.2.4.201",  # HTJ2K Lossless
        "1.2.840.10008.1.2.4.202",  # HTJ2K Lossless, RPCL
        "1.2.840.10008.1.2.4.203",  # HTJ2K
        "1.2.840.10008.1.2.5",  # RLE Lossless
    }
)


_MODALITY_LUT = 0x00283000
# Seeing one of these, the walk hands over: their meaning needs more than this table.
_UNUSUAL = frozenset({_MODALITY_LUT, PER_FRAME_GROUPS, 0x52009229})
_recent = Recent()
_WANTED = dict.fromkeys(CREATORS, b"LO") | {
    tag: pydicom.datadict.dictionary_VR(tag).encode() for tag in (*FIELDS, CHARACTER_SET)
}
# Values of ImageType that say: a whole volume in one image (Siemens, UIH).
_TILED = frozenset({"MOSAIC", "VFRAME"})


def index_files(paths: Iterable[files.StrPath]) -> tuple[list[SliceHeader], list[Rejection]]:
    """Reads the headers of `paths`, each file once.

    Args:
      paths: files, in any place that the file layer reads.

    Returns:
      The images that could be volumes' slices, in input order, and a rejection for every file
      that could not. Every path is in exactly one of the two.

    Raises:
      TypeError: one path, whose letters would be taken for files.
    """
    if isinstance(paths, str | os.PathLike):
        name = files.text(paths)
        raise TypeError(f"{name}: one path where several are required; find_files lists them")
    headers: list[SliceHeader] = []
    rejections: list[Rejection] = []
    for path in map(files.text, paths):
        try:
            found = read_headers(path)
        except RejectedError as error:
            rejections.append(Rejection(paths=(path,), reason=error.reason, detail=str(error)))
            continue
        headers.extend(found)
    return headers, rejections


def read_headers(path: files.StrPath) -> list[SliceHeader]:
    """The images of one file.

    Raises:
      RejectedError: the file holds no greyscale image plane; its reason says why.
    """
    path = files.text(path)
    if not path.isprintable() and not _is_utf8(path):
        raise RejectedError(Reason.UNUSABLE_NAME, "the name is not valid UTF-8", path=path)
    try:
        with files.open_bytes(path) as source:
            if is_nifti(path) and not _is_dicom(source):
                return read_slices(path, source)
            headers = _read_plain(path, source)
            if headers:
                return _images_of(headers, path, source)
            start = deflated_from(source, source.read_at(0, files.HEAD_BYTES))
            if start is None:
                return _images_of(_read_with_pydicom(path, source), path, source)
            return _inflated_headers(path, source, start)
    except OSError as error:
        raise unreadable(error, path) from error


def _is_dicom(source: files.ByteSource) -> bool:
    """Whether a file is DICOM although it is named like NIfTI."""
    begin = source.read_at(0, 132)
    return begin[128:] == b"DICM" and not begins_as_nifti(begin)


def _inflated_headers(path: str, source: files.ByteSource, start: int) -> list[SliceHeader]:
    """The headers of a file whose data set is deflated from `start` on."""
    inflated = Inflated(source, path, start)
    try:
        headers = _read_plain(path, inflated) or _read_with_pydicom(path, inflated)
    except OSError as error:
        if error.errno != errno.EBADMSG:
            raise
        raise RejectedError(Reason.CORRUPT_HEADER, str(error.strerror), path=path) from error
    return [
        header._replace(transfer_syntax=header_walk.DEFLATED, file_size=source.size)
        for header in _images_of(headers, path, inflated)
    ]


def _images_of(
    headers: list[SliceHeader], path: str, source: files.ByteSource
) -> list[SliceHeader]:
    """Those of one file, refused where they cannot be slices, and cut into tiles."""
    if headers and not headers[0].modified and source.modified:
        headers = [header._replace(modified=source.modified) for header in headers]
    for header in headers[:1]:
        _require_image_plane(header)
    if len(headers) == 1 and not _TILED.isdisjoint(headers[0].image_type):
        return mosaics.expand(headers[0], path, source)
    return headers


def _is_utf8(path: str) -> bool:
    """Whether a name came out of the file system whole (bytes that do not decode are escaped)."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_plain(path: str, source: files.ByteSource) -> list[SliceHeader]:
    """The header by the fast walk, or nothing when pydicom has to read the file."""
    begin = source.read_at(0, _recent.reach)
    alike = _recent.read(path, source, begin)
    if alike:
        return [alike] if alike.frames in (None, 1) else []
    try:
        walked = header_walk.walk(source, _WANTED, _UNUSUAL, ENCAPSULATED, begin)
        values: dict[str, Any] = {}
        private = []
        for tag, value in walked.values.items():
            if tag in PARSE:
                name, parse = PARSE[tag]
                try:
                    values[name] = parse(value)
                except UnicodeDecodeError:
                    values[name] = local_text(tag, walked.values)
            elif tag in walked.private:
                private.append((walked.private[tag], value))
        fill(values, private_values(private))
    except (header_walk.HandOver, ValueError):  # ValueError: a malformed number
        return []
    if values.get("frames", 1) not in (None, 1):
        return []
    header = SliceHeader(
        path,
        source.size,
        walked.transfer_syntax,
        walked.pixel_offset,
        walked.pixel_length,
        **values,
        modified=source.modified,
    )
    _recent.learn(header, walked)
    return [header]


def _read_with_pydicom(path: str, source: files.ByteSource) -> list[SliceHeader]:
    """The headers by pydicom, for whatever is not plain."""
    if source.size == 0:
        raise RejectedError(Reason.NOT_DICOM, "the file is empty", path=path)
    start = source.read_at(0, 132)
    part10 = start[128:] == b"DICM"
    # Files older than Part 10 begin with group 0008 (or 0002) at once.
    if not part10 and start[:2] not in (b"\x08\0", b"\x02\0"):
        raise RejectedError(Reason.NOT_DICOM, "no DICM prefix at byte 128", path=path)
    stream = limited(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _headers_of(path, source.size, stream, part10=part10)
    except RejectedError:
        raise
    except Exception as error:
        if stream.left < 0:
            raise RejectedError(Reason.TOO_LARGE, stream.refusal, path=path) from error
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            raise
        detail = f"pydicom cannot parse the header ({type(error).__name__})"
        raise RejectedError(Reason.CORRUPT_HEADER, detail, path=path) from error


def _headers_of(path: str, size: int, stream: PieceLimit, *, part10: bool) -> list[SliceHeader]:
    dataset = parse(stream, force=not part10, stop=lambda tag: tag == PER_FRAME_GROUPS)
    frames = read_frames(stream, dataset, path)
    meta = getattr(dataset, "file_meta", None)
    syntax = str(meta.get("TransferSyntaxUID", "")) if meta is not None else ""
    implicit, little = dataset.original_encoding
    if not syntax:
        syntax = header_walk.IMPLICIT_LITTLE if implicit else header_walk.EXPLICIT_LITTLE
        if not little:
            syntax = header_walk.EXPLICIT_BIG
    if header_walk.PIXEL_DATA not in dataset:
        kind = "float pixel data" if "FloatPixelData" in dataset else "no pixel data element"
        raise RejectedError(Reason.NO_PIXELS, kind, path=path)
    pixels: Any = dataset.get_item(header_walk.PIXEL_DATA, keep_deferred=True)
    offset = int(pixels.value_tell)
    undefined = pixels.length == 0xFFFFFFFF or syntax in ENCAPSULATED
    values = {
        name: pydicom_value(dataset, tag, kind)
        for tag, (name, kind) in FIELDS.items()
        if tag in dataset
    }
    fill(values, pydicom_private(dataset))
    header = SliceHeader(
        path,
        size,
        syntax,
        offset,
        None if undefined else int(pixels.length),
        **values,
        has_modality_lut=bool(items_of(dataset, _MODALITY_LUT)),
    )
    if frames is not None:
        return [header._replace(**fields) for fields in frames]
    if (header.frames or 1) > 1:
        raise RejectedError(
            Reason.NOT_AN_IMAGE_PLANE,
            f"{header.frames} frames without per-frame functional groups",
            path=path,
        )
    return [header]


def _require_image_plane(header: SliceHeader) -> None:
    """Refuses by rule what cannot be a slice of a volume."""

    def reject(reason: Reason, detail: str) -> None:
        raise RejectedError(reason, detail, path=header.path)

    if (header.samples or 1) != 1 or header.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        reject(
            Reason.NOT_GREYSCALE,
            f"{header.samples} samples a pixel, not one of MONOCHROME1 or MONOCHROME2",
        )
    if not (0 < (header.rows or 0) < 1 << 16 and 0 < (header.columns or 0) < 1 << 16):
        reject(Reason.CORRUPT_HEADER, f"matrix is {header.rows} x {header.columns}")
    if (header.frames or 0) < 0:
        reject(Reason.CORRUPT_HEADER, f"{header.frames} frames")
    allocated, stored = header.bits_allocated or 0, header.bits_stored or 0
    if allocated not in (8, 12, 16, 32) or not stored:
        reject(Reason.UNSUPPORTED_PIXELS, f"{allocated} bits allocated, {stored} stored")
    if allocated == 12 and (header.rows or 0) * (header.columns or 0) % 2:
        reject(Reason.UNSUPPORTED_PIXELS, "an odd number of samples packed in 12 bits each")
    if not 0 < stored <= allocated:
        reject(Reason.CORRUPT_HEADER, f"{stored} bits stored in {allocated} allocated")
    if header.burned_in.upper() == "YES":
        reject(Reason.BURNED_IN_ANNOTATION, "BurnedInAnnotation (0028,0301) is YES")
    if header.pixel_length is not None and header.is_native:
        require_pixel_bytes(
            header, min(header.pixel_length, header.file_size - header.pixel_offset)
        )


def require_pixel_bytes(header: SliceHeader, found: int) -> None:
    """Checks the length of native pixel data against what the header says of them.

    Raises:
      RejectedError: fewer bytes than rows, columns, frames and bits require, or so many more
        that it is not padding: one of them is wrong.
    """
    needed = header.frame_bytes * (header.frames or 1)
    if not needed <= found <= needed + needed // 4 + 1:
        raise RejectedError(
            Reason.TRUNCATED_PIXELS if found < needed else Reason.CORRUPT_HEADER,
            f"{needed} pixel bytes required, {found} found",
            path=header.path,
        )


def group_paths(headers: Sequence[SliceHeader]) -> tuple[str, ...]:
    """The files of `headers`, each once, in order."""
    return tuple(dict.fromkeys(header.path for header in headers))
