"""Images that hold a whole volume as tiles: Siemens mosaics and UIH grids."""

from __future__ import annotations

from beam_jobs.common.files.interface import ByteSource
from beam_jobs.core.dicom.slice_header import SliceHeader
from beam_jobs.core.reasons import Reason, RejectedError


def expand(header: SliceHeader, path: str, source: ByteSource) -> list[SliceHeader]:
    """One header a tile of a mosaic.

    Args:
      header: of the image, one of whose ImageType values is MOSAIC or VFRAME.
      path: of the file.
      source: the open file.

    Raises:
      RejectedError: what the file says of its tiles does not put them in space.
    """
    del source
    kind = next(kind for kind in ("MOSAIC", "VFRAME") if kind in header.image_type)
    raise RejectedError(Reason.MOSAIC, f"ImageType (0008,0008) says {kind}", path=path)
