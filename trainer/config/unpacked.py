"""What weights would take once they are read, from what their file's own directory says."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import IO, Any

from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files

# Numbers that a network has learnt hardly compress; new ones are zeros and may.
_MOST_MEMBERS = 100_000
_ELSEWHERE = "its arrays lie in other files"


def require_unpackable(file: Path) -> None:
    """Refuses a zip archive (`.npz`, `.keras`) or an HDF5 file that would take too much memory.

    Neither is unpacked. A file of another kind passes: whoever reads it says what it is not.

    Args:
      file: on a disk.

    Raises:
      ContractError: it would unpack to far more than it holds, or is put together of other files.
      OSError: it cannot be read.
    """
    with files.open_read(file) as stream:
        most = files.most_inflated(file.stat().st_size)
        # A file may be both, and is read as what its name says.
        if zipfile.is_zipfile(stream):
            _require_archive(stream, most)
        _require_arrays(stream, most)


def _require_archive(stream: IO[bytes], most: int) -> None:
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > most or len(members) > _MOST_MEMBERS:
                raise ContractError(_refusal(size, most))
            for member in members:
                if member.filename.endswith(".h5"):
                    _require_arrays(io.BytesIO(archive.read(member)), most)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        if isinstance(error, ContractError):
            raise
        raise ContractError(f"not a readable archive: {error}") from error


def _require_arrays(stream: IO[bytes], most: int) -> None:
    import h5py

    size = 0

    def add(_: str, found: Any) -> None:
        nonlocal size
        if isinstance(found, h5py.Dataset):
            if found.is_virtual or found.external:
                raise ContractError(_ELSEWHERE)
            size += found.nbytes
            if size > most:
                raise ContractError(_refusal(size, most))

    def elsewhere(_: str, link: Any) -> bool | None:
        return isinstance(link, h5py.ExternalLink) or None

    stream.seek(0)
    try:
        with h5py.File(stream, "r") as opened:
            opened.visititems(add)
            if opened.visititems_links(elsewhere):
                raise ContractError(_ELSEWHERE)
    except ContractError:
        raise
    except Exception:
        pass


def _refusal(size: int, most: int) -> str:
    return f"would unpack to {size} bytes, {most} are allowed for a file of its size"
