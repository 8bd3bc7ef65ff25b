"""What all answers in DICOM share: where they may go, who made them, and how they become bytes."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterator

import pydicom
from pydicom.dataset import Dataset

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.dicomweb import service

NAME = "Voxelbeam"  # manufacturer and model
WARNING = "not for clinical use"
# Of content whose study has no date: no clock goes into an answer, so that its bytes are the same
# whenever it is made.
NO_DATE, MIDNIGHT = "19000101", "000000"


def require_highdicom(flag: str) -> None:
    """Imports highdicom, so that no work begins whose answers could not be written.

    Args:
      flag: what asks for it.

    Raises:
      UsageError: it is not installed.
    """
    try:
        importlib.import_module("highdicom")
    except ModuleNotFoundError as error:
        if error.name != "highdicom":
            raise
        raise UsageError(f"{flag} needs highdicom: pip install 'voxelbeam[dicom_out]'") from error


def require_place(place: str, *, flag: str, source: str, source_flag: str) -> None:
    """Refuses what answers cannot be written to, before any work.

    Args:
      place: a directory, or the root of a DICOMweb service.
      flag: that names it.
      source: where the images lie.
      source_flag: that names them.

    Raises:
      UsageError: a place that cannot be written, or lies among the images.
      StoreError: a DICOMweb service that does not answer, or refuses.
    """
    if not place:
        raise UsageError(f"{flag} is empty")
    if place.startswith(("http://", "https://")):
        # An address that nobody has looked at may have a password in it.
        raise UsageError(f"{flag}: a DICOMweb service is dicomweb+https://HOST/PATH")
    place = files.trimmed(place)
    if files.is_dicomweb(place):
        try:
            service.require_service(place)
        except UsageError as error:
            raise UsageError(f"{flag}: {error}") from error
        files.holds_files(place)  # tries the credentials
        return
    files.require_writable(place)
    if not files.is_remote(place):
        _require_directory(place, flag)
    elif files.stat(place) is not None and not files.is_dir(place):
        raise UsageError(f"{flag} {place}: a file, a directory is needed")
    there, here = files.trimmed(source), place
    if not files.is_remote(there) and not files.is_remote(here):
        there, here = map(os.path.realpath, (there, here))
    if files.join(here, "").startswith(files.join(there, "")):
        raise UsageError(f"{flag} {place} lies inside {source_flag} {source}")


def _require_directory(place: str, flag: str) -> None:
    """Refuses a local directory that cannot be written or made: answers may take hours."""
    above = os.path.abspath(place)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise UsageError(f"{flag} {place}: {above} is a file, a directory is needed")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{flag} {place}: {above} cannot be written")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence of highdicom and pydicom while the block runs: they tell names of patients."""
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def without_clock(made: Dataset) -> None:
    """Takes the moment that it was made at out of an object of highdicom's."""
    del made.InstanceCreationDate, made.InstanceCreationTime
    for equipment in made.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in equipment:
            del equipment.ContributionDateTime


def encoded(made: Dataset) -> bytes:
    """An object as the bytes of its file (PS3.10)."""
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, made, enforce_file_format=True)
    return stream.getvalue()
