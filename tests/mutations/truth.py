"""What pydicom reads from a file, to hold the reader to."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.uid import RLELossless

from beam_jobs.core.dicom.headers import SliceHeader
from beam_jobs.core.dicom.pixels import stored_slices
from beam_jobs.core.series import Series

Images = dict[tuple[str, int], npt.NDArray[Any]]


def image_values(series: Series) -> Images:
    """Values of each image of a series in order, by path and frame."""
    return {
        (header.path, header.frame): stored.samples * np.float64(stored.slope) + stored.intercept
        for header, stored in zip(series.headers, stored_slices(series.headers), strict=True)
    }


def same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Equal but for rounding to float32."""
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-6, atol=1e-3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
    """What pydicom reads from a file: its samples, and the attributes that turn them to values."""

    dataset: pydicom.Dataset
    frames: npt.NDArray[Any]

    @classmethod
    def of(cls, path: str) -> Truth | None:
        """Reads `path`; None when pydicom does not, or finds the pixel description at odds."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset = pydicom.dcmread(path, force=True)
                shape = (-1, dataset.Rows, dataset.Columns)
                syntax = dataset.file_meta.TransferSyntaxUID
                stored, allocated = int(dataset.BitsStored), int(dataset.BitsAllocated)
                if syntax.is_encapsulated and syntax != RLELossless:
                    return cls(dataset=dataset, frames=dataset.pixel_array.reshape(shape))
                if allocated not in (8, 16, 32):
                    return None
                kind = "i" if dataset.get("PixelRepresentation") else "u"
                order = "<" if dataset.original_encoding[1] else ">"
                count = dataset.Rows * dataset.Columns * int(dataset.get("NumberOfFrames") or 1)
                if syntax == RLELossless:
                    raw: dict[str, Any] = {"correct_unused_bits": False}
                    samples = pixel_array(dataset, **raw)
                else:
                    dtype = f"{order}{kind}{allocated // 8}"
                    samples = np.frombuffer(dataset.PixelData, dtype, count)
                # A sample is its stored bits, up to the high bit: PS3.5 8.1.1.
                high_bit = dataset.get("HighBit", stored - 1)
                samples = samples << (allocated - 1 - high_bit) >> (allocated - stored)
                return cls(dataset=dataset, frames=samples.reshape(shape))
        except Exception:
            return None

    def differences(self, header: SliceHeader, values: npt.NDArray[Any]) -> Iterator[str]:
        """Where a used image differs."""
        if header.frame >= len(self.frames):
            yield "a frame that pydicom does not find"
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                wanted = self._values(header.frame)
                place = self._place(header.frame)
            except Exception:  # pydicom finds a value malformed that the reader does not need
                return
        if not same(values, wanted):
            yield f"wrong values: {values.shape} {values.flat[:3]}, pydicom {wanted.flat[:3]}"
        for name, (found, expected) in place(header).items():
            if len(found) != len(expected) or not np.allclose(found, expected, rtol=1e-12, atol=0):
                yield f"{name} {found}, pydicom {expected}"

    def _item(self, frame: int, keyword: str, macro: str) -> pydicom.Dataset:
        """The data set that holds `keyword` for a frame: PS3.3 C.7.6.16."""
        if "PerFrameFunctionalGroupsSequence" not in self.dataset:
            return self.dataset
        group = self.dataset.PerFrameFunctionalGroupsSequence[frame]
        shared = self.dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
        for holder in (group, shared[0]):
            if holder.get(macro) and keyword in holder[macro].value[0]:
                found: pydicom.Dataset = holder[macro].value[0]
                return found
        return self.dataset

    def _values(self, frame: int) -> npt.NDArray[Any]:
        samples: npt.NDArray[Any] = self.frames[frame]
        if self.dataset.PhotometricInterpretation.strip() == "MONOCHROME1":
            bits, signed = int(self.dataset.BitsStored), int(self.dataset.PixelRepresentation)
            samples = (-1 if signed else (1 << bits) - 1) - samples.astype(np.float64)
        elif self.dataset.get("ModalityLUTSequence"):
            return np.asarray(apply_modality_lut(samples, self.dataset), dtype=np.float64)
        macro = "PixelValueTransformationSequence"
        slope = self._item(frame, "RescaleSlope", macro).get("RescaleSlope")
        intercept = self._item(frame, "RescaleIntercept", macro).get("RescaleIntercept")
        return samples * float(1 if slope in (None, "") else slope) + float(intercept or 0)

    def _place(self, frame: int) -> Callable[[SliceHeader], dict[str, tuple[Any, Any]]]:
        def numbers(keyword: str, macro: str) -> list[float]:
            holder = self._item(frame, keyword, macro)
            if keyword in holder and holder[keyword].VR != "DS":
                raise ValueError("the reader goes by the tag, pydicom by the representation")
            value = holder.get(keyword)
            if value is None or value == "":
                return []
            return [float(v) for v in (value if isinstance(value, Sequence) else [value])]

        position = numbers("ImagePositionPatient", "PlanePositionSequence")
        orientation = numbers("ImageOrientationPatient", "PlaneOrientationSequence")
        spacing = numbers("PixelSpacing", "PixelMeasuresSequence")
        return lambda header: {
            "position": (header.position, position),
            "orientation": (header.orientation, orientation),
            "pixel spacing": (header.pixel_spacing, spacing),
        }
