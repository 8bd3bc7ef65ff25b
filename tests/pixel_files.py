"""What tests of stored samples share: frames to be encoded, and why a volume was refused."""

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.reasons import RejectedError
from beam_jobs.core.series import assemble
from beam_jobs.core.volume import load_volume
from tests.dicom_files import (
    CODESTREAM_SHAPE,
    HTJ2K_SYNTAXES,
    LOSSLESS_SYNTAXES,
    recipe_image,
)

SMALL: dict[str, Any] = {"rows": CODESTREAM_SHAPE[0], "columns": CODESTREAM_SHAPE[1]}
ENCODABLE = [syntax for syntax in LOSSLESS_SYNTAXES if syntax not in HTJ2K_SYNTAXES]


def short(syntax):
    return ".".join(syntax.split(".")[-2:])


def frames_of(bits_allocated, bits_stored, *, signed=False, count=3):
    kind = f"{'i' if signed else 'u'}{bits_allocated // 8}"
    return [recipe_image(bits_stored, signed=signed, turn=t).astype(kind) for t in range(count)]


def modality_lut(first, entries, depth, vr="US"):
    item = Dataset()
    first_vr = "SS" if first < 0 else "US"
    item.add_new("LUTDescriptor", first_vr, [len(entries), first, depth])
    item.ModalityLUTType = "US"
    data = np.asarray(entries, "<u2")
    item.add_new("LUTData", vr, data.tobytes() if vr == "OW" else data.tolist())
    return [item]


def refusal(paths):
    """The reason for which the images in `paths` give no volume."""
    headers, unread = index_files(map(str, paths))
    if unread:
        return unread[0].reason
    stacks, rejected = assemble(headers)
    if rejected:
        return rejected[0].reason
    with pytest.raises(RejectedError) as caught:
        load_volume(stacks[0])
    assert caught.value.path in map(str, paths)
    return caught.value.reason
