"""Enhanced multi-frame objects (PS3.3 C.7.6.16): what each frame says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from beam_jobs.core.dicom.fields import FIELDS, pydicom_value
from beam_jobs.core.reasons import Reason, RejectedError


def frame_fields(dataset: Dataset, count: int, path: str) -> list[dict[str, Any]]:
    """The fields of a `SliceHeader` that each frame has of its own, `frame` among them.

    Args:
      dataset: with PerFrameFunctionalGroupsSequence.
      count: NumberOfFrames.
      path: of the file, for the error.

    Raises:
      RejectedError: another number of groups than frames, or a frame without a position.
    """
    shared_items = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    shared = shared_items[0]
    groups = dataset.PerFrameFunctionalGroupsSequence
    if len(groups) != count:
        raise RejectedError(
            Reason.CORRUPT_HEADER,
            f"{len(groups)} per-frame functional groups for {count} frames",
            path=path,
        )
    repeating = _dimensions_but_position(dataset)
    common = _sequence_fields(dataset)
    frames: list[dict[str, Any]] = []
    for index, group in enumerate(groups):

        def macro(name: str, group: Dataset = group) -> Dataset:
            items = group.get(name) or shared.get(name) or [Dataset()]
            item: Dataset = items[0]
            return item

        # Only its own macro places a frame: one position for all of them would be none.
        changes: dict[str, Any] = {**common, "frame": index, "position": ()}
        for sequence, keyword, field, tag in _FRAME_FIELDS:
            item = macro(sequence)
            if keyword in item:
                changes[field] = pydicom_value(item, tag, _FRAME_KINDS[field])
        if not changes["position"]:
            raise RejectedError(
                Reason.NOT_AN_IMAGE_PLANE,
                f"frame {index} has no ImagePositionPatient (0020,0032) of its own",
                path=path,
            )
        directions = macro("MRDiffusionSequence").get("DiffusionGradientDirectionSequence")
        if directions and _DIRECTION in directions[0]:
            name, kind = FIELDS[_DIRECTION]
            changes[name] = pydicom_value(directions[0], _DIRECTION, kind)
        values = macro("FrameContentSequence").get("DimensionIndexValues")
        if values is not None and repeating:
            many = list(values) if isinstance(values, Sequence) else [values]
            changes["volume_index"] = tuple(int(many[d]) for d in repeating if d < len(many))
        frames.append(changes)
    return frames


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
    agents = dataset.get("ContrastBolusAgentSequence")
    if agents and not dataset.get("ContrastBolusAgent"):
        fields["contrast_agent"] = str(agents[0].get("CodeMeaning", "")) or "unnamed agent"
    return fields


def _dimensions_but_position(dataset: Dataset) -> list[int]:
    """Which DimensionIndexValues do not count positions (PS3.3 C.7.6.17)."""
    places = {0x00200032, 0x00209057, 0x00209113}  # position, InStackPositionNumber, its sequence
    return [
        index
        for index, item in enumerate(dataset.get("DimensionIndexSequence") or [])
        if item.get("DimensionIndexPointer") not in places
    ]


_DIRECTION = 0x00189089  # DiffusionGradientOrientation

# (functional group, keyword, field, tag): PS3.3 C.7.6.16.2 and the MR macros of C.8.13.5.
_FRAME_FIELDS = tuple(
    (sequence, keyword, field, int(pydicom.datadict.tag_for_keyword(keyword) or 0))
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
_FRAME_KINDS = {name: kind for name, kind in FIELDS.values()} | {"stack_id": "text"}
