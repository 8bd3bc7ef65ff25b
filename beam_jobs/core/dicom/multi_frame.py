"""Enhanced multi-frame objects (PS3.3 C.7.6.16): what each frame says of itself."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_sequence_item

from beam_jobs.core.dicom.fields import FIELDS, pydicom_value
from beam_jobs.core.dicom.reading import DEFERRED, PieceLimit, items_of
from beam_jobs.core.reasons import Reason, RejectedError

PER_FRAME_GROUPS = 0x52009230


def read_frames(stream: PieceLimit, dataset: Dataset, path: str) -> list[_Fields] | None:
    """The fields of a `SliceHeader` that each frame has of its own; None of no enhanced object.

    Groups are read one by one and given up: as objects, those of 20,000 frames take gigabytes.

    Args:
      stream: where `dataset` ended: at the end of the file or at the groups.
      dataset: all before; what follows the groups is added to it.
      path: of the file, for the error.

    Raises:
      RejectedError: another number of groups than frames, or a frame without a position.
    """
    found = _groups_in(stream, dataset)
    if found is None:
        return None
    number = pydicom_value(dataset, _FRAMES, "integer") if _FRAMES in dataset else None
    count = number or 1
    items = items_of(dataset, _tag("SharedFunctionalGroupsSequence")) or [Dataset()]
    shared = {
        sequence: _macro(items[0], sequence, members) or {} for sequence, members in _MACROS.items()
    }
    common = _sequence_fields(dataset)
    repeating = _dimensions_but_position(dataset)
    frames: list[_Fields] = []
    groups = 0
    for groups, group in enumerate(found, 1):
        if groups > count:
            continue
        # Only its own macro places a frame: one position for all of them would be none.
        fields = {**common, "frame": groups - 1, "position": (), **_fields_of(group, shared)}
        if not fields["position"]:
            raise RejectedError(
                Reason.NOT_AN_IMAGE_PLANE,
                f"frame {groups - 1} has no ImagePositionPatient (0020,0032) of its own",
                path=path,
            )
        many = fields.pop("volume_index", None)
        if many is not None and repeating:
            fields["volume_index"] = tuple(many[d] for d in repeating if d < len(many))
        frames.append(fields)
    if groups != count:
        raise RejectedError(
            Reason.CORRUPT_HEADER,
            f"{groups} per-frame functional groups for {count} frames",
            path=path,
        )
    return frames


def _groups_in(stream: PieceLimit, dataset: Dataset) -> Iterator[Dataset] | None:
    """The items of the groups' sequence that begins here; None where there is none."""
    little = dataset.original_encoding[1] is not False
    order = "<" if little else ">"
    start = stream.tell()
    head = stream.read(12)
    if len(head) < 8 or struct.unpack(order + "HH", head[:4]) != (0x5200, 0x9230):
        stream.seek(start)
        return None
    vr = head[4:6]
    explicit = vr in (b"SQ", b"UN", b"OB")
    if explicit and len(head) < 12:
        raise EOFError("the groups' length")
    at = 8 if explicit else 4
    (length,) = struct.unpack(order + "L", head[at : at + 4])
    implicit = not explicit or (vr == b"UN" and length == _UNDEFINED)
    begin = start + at + 4
    encoding = dataset.original_character_set
    stream.seek(begin)

    def items() -> Iterator[Dataset]:
        while length == _UNDEFINED or stream.tell() - begin < length:
            stream.begin_anew()
            group = read_sequence_item(stream, implicit, little, encoding)  # type: ignore[arg-type]
            if group is None:
                break
            yield group
        stream.begin_anew()
        rest = read_dataset(
            stream,  # type: ignore[arg-type]
            implicit if vr != b"UN" else False,
            little,
            defer_size=DEFERRED,
            parent_encoding=encoding,
        )
        dataset.update(dict(rest.items()))

    return items()


# Fields by their names.
_Fields = dict[str, Any]


def _fields_of(group: Dataset, shared: Mapping[int, _Fields]) -> _Fields:
    """The fields of one frame, those of `shared` where it has no such macro of its own."""
    fields: _Fields = {}
    for sequence, members in _MACROS.items():
        own = _macro(group, sequence, members)
        fields |= shared[sequence] if own is None else own
    return fields


def _macro(group: Dataset, sequence: int, members: Sequence[_Member]) -> _Fields | None:
    """What one macro of a frame's functional groups says; None where it is not there."""
    items = items_of(group, sequence, most=_MOST_MACRO)
    if not items:
        return None
    fields = {
        name: pydicom_value(items[0], tag, _FRAME_KINDS[name])
        for name, tag in members
        if tag in items[0]
    }
    if sequence == _MR_DIFFUSION:
        directions = items[0].get("DiffusionGradientDirectionSequence")
        if directions and _DIRECTION in directions[0]:
            name, kind = FIELDS[_DIRECTION]
            fields[name] = pydicom_value(directions[0], _DIRECTION, kind)
    if sequence == _FRAME_CONTENT:
        values = items[0].get("DimensionIndexValues")
        if values is not None:
            many = list(values) if isinstance(values, Sequence) else [values]
            fields["volume_index"] = tuple(int(each) for each in many)
    return fields


def _sequence_fields(dataset: Dataset) -> dict[str, Any]:
    """What classic objects say in ScanningSequence and ContrastBolusAgent, for all frames.

    From the MR Pulse Sequence and the Enhanced Contrast/Bolus module (PS3.3 C.8.13.4, C.7.6.4b),
    where the classic attribute itself is absent.
    """
    fields: dict[str, Any] = {}
    if not dataset.get("ScanningSequence"):
        echo = {"SPIN": ("SE",), "GRADIENT": ("GR",), "BOTH": ("SE", "GR")}
        prepared = (("InversionRecovery", "IR"), ("EchoPlanarPulseSequence", "EP"))
        fields["scanning_sequence"] = (
            *echo.get(str(dataset.get("EchoPulseSequence", "")), ()),
            *(code for keyword, code in prepared if dataset.get(keyword) == "YES"),
        )
    agents = items_of(dataset, _tag("ContrastBolusAgentSequence"))
    if agents and not dataset.get("ContrastBolusAgent"):
        fields["contrast_agent"] = str(agents[0].get("CodeMeaning", "")) or "unnamed agent"
    return fields


def _dimensions_but_position(dataset: Dataset) -> list[int]:
    """Which DimensionIndexValues do not count positions (PS3.3 C.7.6.17)."""
    places = {0x00200032, 0x00209057, 0x00209113}  # position, InStackPositionNumber, its sequence
    return [
        index
        for index, item in enumerate(items_of(dataset, _tag("DimensionIndexSequence")))
        if item.get("DimensionIndexPointer") not in places
    ]


_UNDEFINED = 0xFFFFFFFF
_MOST_MACRO = 1 << 16  # bytes
_FRAMES = 0x00280008  # NumberOfFrames
_DIRECTION = 0x00189089  # DiffusionGradientOrientation


def _tag(keyword: str) -> int:
    return int(tag_for_keyword(keyword) or 0)


# (functional group, field, tag): PS3.3 C.7.6.16.2 and the MR macros of C.8.13.5.
_FRAME_FIELDS = tuple(
    (_tag(sequence), field, _tag(keyword))
    for sequence, keyword, field in (
        ("PlanePositionSequence", "ImagePositionPatient", "position"),
        ("PlaneOrientationSequence", "ImageOrientationPatient", "orientation"),
        ("PixelMeasuresSequence", "PixelSpacing", "pixel_spacing"),
        ("PixelMeasuresSequence", "SliceThickness", "slice_thickness"),
        ("PixelMeasuresSequence", "SpacingBetweenSlices", "spacing_between_slices"),
        ("PixelValueTransformationSequence", "RescaleSlope", "slope"),
        ("PixelValueTransformationSequence", "RescaleIntercept", "intercept"),
        ("FrameContentSequence", "TemporalPositionIndex", "temporal_position"),
        ("FrameContentSequence", "FrameAcquisitionNumber", "acquisition_number"),
        ("FrameContentSequence", "InStackPositionNumber", "instance_number"),
        ("FrameContentSequence", "StackID", "stack_id"),
        ("MREchoSequence", "EffectiveEchoTime", "echo_time"),
        ("MRTimingAndRelatedParametersSequence", "RepetitionTime", "repetition_time"),
        ("MRTimingAndRelatedParametersSequence", "FlipAngle", "flip_angle"),
        ("MRModifierSequence", "InversionTimes", "inversion_time"),
        ("MRImageFrameTypeSequence", "FrameType", "image_type"),
        ("CTImageFrameTypeSequence", "FrameType", "image_type"),
        ("MRImageFrameTypeSequence", "ComplexImageComponent", "complex_component"),
        ("MRDiffusionSequence", "DiffusionBValue", "b_value"),
    )
)
_Member = tuple[str, int]
# Functional group → (field, tag) of what it may hold.
_MACROS: dict[int, list[_Member]] = {}
for _sequence, _field, _number in _FRAME_FIELDS:
    _MACROS.setdefault(_sequence, []).append((_field, _number))
_FRAME_KINDS = {name: kind for name, kind in FIELDS.values()} | {"stack_id": "text"}
_MR_DIFFUSION, _FRAME_CONTENT = _tag("MRDiffusionSequence"), _tag("FrameContentSequence")
