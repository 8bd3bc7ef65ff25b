"""What an answer says of the images it was made of: patient, study, series, instances."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom import Dataset

from beam_jobs.core.dicom.headers import SliceHeader


def read_origin(path: str) -> Dataset:
    """The header of one image, without pixels, with the empty type-2 attributes that an answer's
    evidence needs.

    Raises:
      RejectedError: the file cannot be read.
    """
    raise NotImplementedError


def referenced(origin: Dataset, headers: Sequence[SliceHeader]) -> list[Dataset]:
    """A data set for each image of a series, with the identity that a reference needs.

    Args:
      origin: of `read_origin`, of one of them.
      headers: of all of them.
    """
    raise NotImplementedError
