"""A DICOMweb service as one more place of files: what the file layer calls.

    dicomweb+https://host/path?ModalitiesInStudy=MR        a root: the series that a search finds
    dicomweb+https://host/path/studies/…/instances/…       a file: one instance

Listing asks the service; opening an instance fetches its whole series into the spool of this
machine, once, and opens the file there.
"""

from __future__ import annotations

from beam_jobs.common.files.names import Listing, Status
from beam_jobs.common.files.sources import ByteSource


def listing(root: str) -> Listing:
    """The instances that a root's search finds, in the order of their paths."""
    raise NotImplementedError


def holds_files(root: str) -> bool:
    """Whether the search finds any series: one request, which also tries the credentials."""
    raise NotImplementedError


def open_source(path: str) -> ByteSource:
    """An instance, open for reading at any place."""
    raise NotImplementedError


def stat(path: str) -> Status | None:
    """Size and stamp of an instance that is in the spool or can be fetched; None of a root."""
    raise NotImplementedError
