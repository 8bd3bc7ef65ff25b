"""Values by a Modality LUT, which stands in the place of rescaling (PS3.3 C.11.1.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from beam_jobs.core.dicom.reading import items_of

_MODALITY_LUT = 0x00283000


def through_modality_lut(
    dataset: Dataset, samples: npt.NDArray[Any], order: str
) -> tuple[npt.NDArray[np.uint16], int]:
    """Samples as the data set's Modality LUT maps them, and the bits of its entries.

    Args:
      dataset: of the image.
      samples: (row, column), as stored.
      order: "<" or ">", of the file's bytes.

    Raises:
      AttributeError, IndexError, TypeError, ValueError: there is none, or it is malformed.
    """
    item: Any = items_of(dataset, _MODALITY_LUT)[0]
    count, first, depth = (int(number) for number in item.LUTDescriptor)
    count = count or 1 << 16
    table = np.atleast_1d(_lut_entries(item.LUTData, count, order))
    if len(table) != count or not 8 <= depth <= 16:
        raise ValueError(f"{count} entries required, {len(table)} found")
    # Samples before the first mapped value take the first entry, those past the last the last.
    return table[np.clip(samples.astype(np.int64) - first, 0, count - 1)], depth


def _lut_entries(data: Any, count: int, order: str) -> npt.NDArray[np.uint16]:
    """LUTData, which is words (US or OW) or, for 8-bit entries, bytes packed in words."""
    if not isinstance(data, bytes):
        return np.asarray(data, dtype=np.uint16)
    wide = len(data) >= 2 * count
    return np.frombuffer(data, dtype=order + "u2" if wide else np.uint8)[:count].astype(np.uint16)
