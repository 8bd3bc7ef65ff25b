"""`--spool` and `--refetch`: one definition for every command that reads DICOM."""

from __future__ import annotations

import argparse
import os

from beam_jobs.common import terminal
from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.dicomweb import service
from beam_jobs.common.printable import counted


def add_spool_flags(parser: argparse.ArgumentParser) -> None:
    """The two flags."""
    parser.add_argument(
        "--spool",
        metavar="DIR",
        help="where the series of a DICOMweb input are kept on this machine, so that they are "
        f"fetched once (default: ${service.SPOOL_VARIABLE}, else ~/.cache/voxelbeam/dicomweb)",
    )
    parser.add_argument(
        "--refetch",
        action="store_true",
        help="fetch every series of a DICOMweb input again, not only those that changed",
    )


class Spool:
    """The spool of one command: made of its flags before the service is asked anything.

    Attributes:
      flags: those of the two that were given; they reach workers on this machine alone.

    Args:
      root: the command's input.
      directory: of `--spool`, for this process and those that it starts.
      refetch: of `--refetch`.

    Raises:
      UsageError: one of the flags is of no use to such an input, or no local directory is named.
    """

    def __init__(self, root: str, *, directory: str | None = None, refetch: bool = False) -> None:
        self._root = root if files.is_dicomweb(root) else ""
        given = {"spool": directory is not None, "refetch": refetch}
        for name in (name for name, said in given.items() if said and not self._root):
            raise UsageError(f"--{name} is for a DICOMweb input (dicomweb+https://)")
        if directory is not None:
            if not directory or files.is_remote(directory):
                named = directory or "an empty name"
                raise UsageError(f"--spool: {named} is no directory of this machine")
            os.environ[service.SPOOL_VARIABLE] = os.path.abspath(directory)
        self._refetch = refetch
        self._before: dict[str, tuple[int, int]] = {}
        self.flags = tuple(f"--{name}" for name, said in given.items() if said)

    def begin(self) -> None:
        """Forgets, where `--refetch` says so, what is kept of the series that the input has now.

        Raises:
          StoreError: the service does not answer, or refuses.
        """
        if self._refetch:
            service.forget(self._root)
        if self._root:
            self._before = service.spooled(self._root)

    def tell(self) -> None:
        """A line that says where the spool is, and what came into it since."""
        if not self._root:
            return
        series, instances, size = service.fetched_since(self._root, self._before)
        fetched = "nothing fetched, all was there"
        if instances:
            fetched = (
                f"{counted(instances, 'instance')} of {series} series fetched ({size / 1e6:.1f} MB)"
            )
        terminal.row("spool", f"{service.spool_directory()}: {fetched}")
