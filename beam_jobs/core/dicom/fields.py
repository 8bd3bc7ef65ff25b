"""What is read of a header: tags and their fields, from raw bytes and from pydicom's elements."""

from __future__ import annotations

import functools
import io
import math
import struct
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset


def _text(value: bytes) -> str:
    if b"\x1b" in value:  # an escape to another character set (PS3.5 6.1.2.5)
        raise UnicodeDecodeError("ascii", value, 0, len(value), "escape sequence")
    return value.decode("ascii").strip(" \0")


def _texts(value: bytes) -> tuple[str, ...]:
    text = _text(value)
    return tuple(part.strip(" ") for part in text.split("\\")) if text else ()


def _decimals(value: bytes) -> tuple[float, ...]:
    text = _text(value)
    return tuple(float(part) for part in text.split("\\")) if text else ()


def _decimal(value: bytes) -> float | None:
    numbers = _decimals(value)
    return numbers[0] if numbers else None


def _integer(value: bytes) -> int | None:
    number = _decimal(value)
    if number is None:
        return None
    if not number.is_integer():
        raise ValueError(f"{number} is not an integer")
    return int(number)


def _short(value: bytes) -> int | None:
    return int.from_bytes(value[:2], "little") if len(value) >= 2 else None


def _double(value: bytes) -> float | None:
    return float(struct.unpack("<d", value)[0]) if len(value) == 8 else None


def _numbers(value: bytes, vr: str) -> tuple[float, ...]:
    """Numbers of a value that a series can do without; none if malformed."""
    try:
        if vr in _BINARY:
            code, size = _BINARY[vr]
            numbers = struct.unpack(f"<{len(value) // size}{code}", value)
        else:
            numbers = _decimals(value)
    except (struct.error, ValueError):
        return ()
    return numbers if all(map(math.isfinite, numbers)) else ()


def _doubles(value: bytes) -> tuple[float, ...]:
    return _numbers(value, "FD")


def _loose_decimal(value: bytes) -> float | None:
    return next(iter(_numbers(value, "DS")), None)


def _loose_integer(value: bytes) -> int | None:
    number = _loose_decimal(value)
    return int(number) if number is not None and number.is_integer() else None


_BINARY = {"FL": ("f", 4), "FD": ("d", 8), "SS": ("h", 2)}

# Most values repeat from slice to slice, so parsing them is mostly a look-up. "doubles" and what is
# loose count as absent where they are malformed: a decimal comma in them spoils no volume. What
# places, scales or lays out pixels, or tells echoes apart, is not loose.
_PARSERS = {
    "text": functools.lru_cache(8192)(_text),
    "texts": functools.lru_cache(1024)(_texts),
    "decimal": functools.lru_cache(4096)(_decimal),
    "decimals": functools.lru_cache(4096)(_decimals),
    "integer": functools.lru_cache(4096)(_integer),
    "short": functools.lru_cache(1024)(_short),
    "double": functools.lru_cache(1024)(_double),
    "doubles": functools.lru_cache(1024)(_doubles),
    "loose decimal": functools.lru_cache(4096)(_loose_decimal),
    "loose integer": functools.lru_cache(4096)(_loose_integer),
}

FIELDS: dict[int, tuple[str, str]] = {
    0x00080008: ("image_type", "texts"),
    0x00080016: ("sop_class", "text"),
    0x00080018: ("sop_uid", "text"),
    0x00080032: ("acquisition_time", "text"),
    0x00080060: ("modality", "text"),
    0x00080070: ("manufacturer", "text"),
    0x0008103E: ("series_description", "text"),
    0x00089208: ("complex_component", "text"),
    0x00100020: ("patient_id", "text"),
    0x00180010: ("contrast_agent", "text"),
    0x00180020: ("scanning_sequence", "texts"),
    0x00180021: ("sequence_variant", "texts"),
    0x00180024: ("sequence_name", "text"),
    0x00180050: ("slice_thickness", "loose decimal"),
    0x00180080: ("repetition_time", "loose decimal"),
    0x00180081: ("echo_time", "decimal"),
    0x00180082: ("inversion_time", "loose decimal"),
    0x00180086: ("echo_number", "loose integer"),
    0x00180087: ("field_strength", "loose decimal"),
    0x00180088: ("spacing_between_slices", "loose decimal"),
    0x00181030: ("protocol_name", "text"),
    0x00181060: ("trigger_time", "loose decimal"),
    0x00181314: ("flip_angle", "loose decimal"),
    0x00189005: ("pulse_sequence_name", "text"),
    0x00189087: ("b_value", "double"),
    0x00189089: ("diffusion_direction", "doubles"),
    0x0020000D: ("study_uid", "text"),
    0x0020000E: ("series_uid", "text"),
    0x00200011: ("series_number", "loose integer"),
    0x00200012: ("acquisition_number", "loose integer"),
    0x00200013: ("instance_number", "loose integer"),
    0x00200032: ("position", "decimals"),
    0x00200037: ("orientation", "decimals"),
    0x00200052: ("frame_of_reference", "text"),
    0x00200100: ("temporal_position", "loose integer"),
    0x00280002: ("samples", "short"),
    0x00280004: ("photometric", "text"),
    0x00280008: ("frames", "integer"),
    0x00280010: ("rows", "short"),
    0x00280011: ("columns", "short"),
    0x00280030: ("pixel_spacing", "decimals"),
    0x00280100: ("bits_allocated", "short"),
    0x00280101: ("bits_stored", "short"),
    0x00280102: ("high_bit", "short"),
    0x00280103: ("pixel_representation", "short"),
    0x00280301: ("burned_in", "text"),
    0x00281052: ("intercept", "decimal"),
    0x00281053: ("slope", "decimal"),
}
PARSE = {tag: (name, _PARSERS[kind]) for tag, (name, kind) in FIELDS.items()}


CHARACTER_SET = 0x00080005
# Text that may be of another character set than ASCII (LO and SH, PS3.5 6.1.2.3).
_LOCAL_TEXT = frozenset((0x00080070, 0x0008103E, 0x00100020, 0x00180010, 0x00180024, 0x00181030))


def local_text(tag: int, values: dict[int, bytes]) -> str:
    """Text that is not ASCII, as pydicom decodes it.

    Args:
      tag: of the text.
      values: the text and, where there is one, the Specific Character Set, by tag.

    Raises:
      ValueError: what is no text of its character set, or must be ASCII.
    """
    if tag not in _LOCAL_TEXT:
        raise ValueError("not ASCII")
    stored = b"".join(
        struct.pack("<HHL", each >> 16, each & 0xFFFF, len(values[each])) + values[each]
        for each in (CHARACTER_SET, tag)
        if each in values
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = read_dataset(io.BytesIO(stored), is_implicit_VR=True, is_little_endian=True)
        text: str = pydicom_value(dataset, tag, "text")
    return text


class PrivateField(NamedTuple):
    """A private element that holds what a standard one may not.

    Attributes:
      name: the field.
      vr: its value representation, where the file has none (implicit VR) or UN.
      source: its group and creator.
    """

    name: str
    vr: str
    source: tuple[int, bytes]


# (group, creator) to the elements of its block, whichever block that is (PS3.5 7.8.1). The meanings
# are those that dcm2niix, gdcm and pydicom's private dictionary have found.
PRIVATE: dict[tuple[int, bytes], dict[int, PrivateField]] = {
    source: {number: PrivateField(name, vr, source) for number, (name, vr) in block.items()}
    for source, block in {
        (0x0019, b"SIEMENS MR HEADER"): {
            0x0C: ("b_value", "IS"),
            0x0E: ("diffusion_direction", "FD"),
        },
        (0x0019, b"GEMS_ACQU_01"): {
            0xBB: ("diffusion_direction", "DS"),
            0xBC: ("diffusion_direction", "DS"),
            0xBD: ("diffusion_direction", "DS"),
        },
        # 0x30 says of GE's clinical diffusion which of its directions, or their mean, an image is.
        (0x0043, b"GEMS_PARM_01"): {0x30: ("gradient_number", "SS"), 0x39: ("b_value", "IS")},
        (0x0065, b"Image Private Header"): {
            0x09: ("b_value", "FD"),
            0x37: ("diffusion_direction", "FD"),
        },
        (0x2001, b"Philips Imaging DD 001"): {0x03: ("b_value", "FL")},
        (0x2005, b"Philips MR Imaging DD 001"): {
            0xB0: ("diffusion_direction", "FL"),
            0xB1: ("diffusion_direction", "FL"),
            0xB2: ("diffusion_direction", "FL"),
        },
        (0x2005, b"Philips MR Imaging DD 005"): {0x13: ("gradient_number", "IS")},
    }.items()
}
_GE_B_VALUE = PRIVATE[0x0043, b"GEMS_PARM_01"][0x39]
PRIVATE_NAMES = tuple({field.name: 0 for block in PRIVATE.values() for field in block.values()})
CREATORS = frozenset(group << 16 | block for group, _ in PRIVATE for block in range(0x10, 0x100))


def private_block(tag: int, creator: bytes) -> dict[int, PrivateField]:
    """The wanted tags of the block that a creator element reserves.

    Args:
      tag: of the creator element.
      creator: its value.
    """
    group, block = tag >> 16, tag & 0xFF
    wanted = PRIVATE.get((group, creator.strip(b" \0")), {})
    return {group << 16 | block << 8 | number: field for number, field in wanted.items()}


def private_is_readable(field: PrivateField, vr: str | None) -> bool:
    """Whether the file's value representation lets the value be what the field says."""
    return vr in (None, field.vr, "UN", "OB")


def private_values(found: Iterable[tuple[PrivateField, bytes]]) -> dict[str, Any]:
    """Fields from private elements in the order of their tags; of several sources the first counts.

    Malformed values count as absent: nothing but the order of a series depends on these.
    """
    numbers: dict[str, dict[tuple[int, bytes], tuple[float, ...]]] = {}
    for field, value in found:
        of_source = numbers.setdefault(field.name, {})
        parts = _numbers(value, field.vr)
        if field is _GE_B_VALUE:  # a multiple of 1e9 is added to it
            parts = tuple(part % 1e9 for part in parts)
        of_source[field.source] = of_source.get(field.source, ()) + parts
    values: dict[str, Any] = {}
    for name, of_source in numbers.items():
        first = next((each for each in of_source.values() if each), ())
        if name == "diffusion_direction":
            values[name] = first
        elif first:
            values[name] = first[0] if name == "b_value" else int(first[0])
    return values


def fill(values: dict[str, Any], private: dict[str, Any]) -> None:
    """Puts private values where the standard ones are absent."""
    for name, value in private.items():
        if values.get(name) in (None, ()):
            values[name] = value


def pydicom_private(dataset: Dataset) -> dict[str, Any]:
    """`private_values` of a pydicom data set."""

    def stored(tag: int, field: PrivateField | None = None) -> bytes | None:
        raw: Any = dataset.get_item(tag, keep_deferred=True) if tag in dataset else None
        if field and raw and not private_is_readable(field, raw.VR):
            return None
        return raw.value if raw and isinstance(raw.value, bytes) else None

    blocks: dict[int, PrivateField] = {}
    for tag in sorted(CREATORS.intersection(dataset.keys())):
        blocks |= private_block(tag, stored(tag) or b"")
    little = dataset.original_encoding[1]
    found = [
        (blocks[tag], value)
        for tag in sorted(blocks)
        if (value := stored(tag, blocks[tag])) and (little or blocks[tag].vr not in _BINARY)
    ]
    return private_values(found)


_LONGEST = 1 << 16  # bytes of a value that is looked at


def pydicom_value(dataset: Dataset, tag: int, kind: str) -> Any:
    """One field from a pydicom data set, in the same type as the walk gives it."""
    raw: Any = dataset.get_item(tag, keep_deferred=True)
    if raw.is_raw and raw.length > _LONGEST:
        raise ValueError(f"{raw.length} bytes")  # as objects they take a hundred times as many
    if kind == "doubles" or kind.startswith("loose"):
        return _loose_value(dataset, tag, kind)
    element = dataset[tag]
    value = element.value
    if value is None or value == "":
        return {"text": "", "texts": (), "decimals": ()}.get(kind)
    many = list(value) if element.VM != 1 and not isinstance(value, (str, bytes)) else [value]
    if kind == "text":
        return "\\".join(str(part) for part in many).strip(" \0")
    if kind == "texts":
        return tuple(str(part).strip(" \0") for part in many)
    if kind == "decimals":
        return tuple(float(part) for part in many)
    if not many:
        return None
    number = float(many[0])
    if kind in ("decimal", "double"):
        return number
    if not number.is_integer():
        raise ValueError(f"{number} is not an integer")
    return int(number)


def _loose_value(dataset: Dataset, tag: int, kind: str) -> Any:
    raw: Any = dataset.get_item(tag, keep_deferred=True)
    vr = dictionary_VR(tag) if raw.VR in ("UN", None) else raw.VR
    if vr in ("DS", "IS") and isinstance(raw.value, bytes):
        return _PARSERS[kind](raw.value)  # as the walk does: pydicom's IS takes no "1e1"
    try:
        element = dataset[tag]
        many = list(element.value) if element.VM > 1 else [element.value] * element.VM
        numbers = tuple(float(part) for part in many)
    except (TypeError, ValueError, NotImplementedError, OverflowError, struct.error):
        numbers = ()
    numbers = numbers if all(map(math.isfinite, numbers)) else ()
    if kind == "doubles":
        return numbers
    number = next(iter(numbers), None)
    if kind == "loose integer" and number is not None:
        return int(number) if number.is_integer() else None
    return number
