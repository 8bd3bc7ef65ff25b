"""What is read of a header: tags and their fields, from raw bytes and from pydicom's elements."""

from __future__ import annotations

import functools
import struct
from typing import Any

from pydicom.dataset import Dataset


def _text(value: bytes) -> str:
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


# Most values repeat from slice to slice, so parsing them is mostly a look-up.
_PARSERS = {
    "text": functools.lru_cache(8192)(_text),
    "texts": functools.lru_cache(1024)(_texts),
    "decimal": functools.lru_cache(4096)(_decimal),
    "decimals": functools.lru_cache(4096)(_decimals),
    "integer": functools.lru_cache(4096)(_integer),
    "short": functools.lru_cache(1024)(_short),
    "double": functools.lru_cache(1024)(_double),
}

FIELDS: dict[int, tuple[str, str]] = {
    0x00080008: ("image_type", "texts"),
    0x00080016: ("sop_class", "text"),
    0x00080018: ("sop_uid", "text"),
    0x00080060: ("modality", "text"),
    0x00080070: ("manufacturer", "text"),
    0x0008103E: ("series_description", "text"),
    0x00089208: ("complex_component", "text"),
    0x00100020: ("patient_id", "text"),
    0x00180010: ("contrast_agent", "text"),
    0x00180020: ("scanning_sequence", "texts"),
    0x00180021: ("sequence_variant", "texts"),
    0x00180024: ("sequence_name", "text"),
    0x00180050: ("slice_thickness", "decimal"),
    0x00180080: ("repetition_time", "decimal"),
    0x00180081: ("echo_time", "decimal"),
    0x00180082: ("inversion_time", "decimal"),
    0x00180086: ("echo_number", "integer"),
    0x00180087: ("field_strength", "decimal"),
    0x00180088: ("spacing_between_slices", "decimal"),
    0x00181030: ("protocol_name", "text"),
    0x00181314: ("flip_angle", "decimal"),
    0x00189087: ("b_value", "double"),
    0x0020000D: ("study_uid", "text"),
    0x0020000E: ("series_uid", "text"),
    0x00200011: ("series_number", "integer"),
    0x00200012: ("acquisition_number", "integer"),
    0x00200013: ("instance_number", "integer"),
    0x00200032: ("position", "decimals"),
    0x00200037: ("orientation", "decimals"),
    0x00200052: ("frame_of_reference", "text"),
    0x00200100: ("temporal_position", "integer"),
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


def pydicom_value(dataset: Dataset, tag: int, kind: str) -> Any:
    """One field from a pydicom data set, in the same type as the walk gives it."""
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
