"""JSON objects in files: read with the file named in complaints, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, json_object
from beam_jobs.common.files import interface as files


def read_json(file: files.StrPath) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      ContractError: not JSON, or not an object; the message names the file.
    """
    try:
        return json_object(files.read(file))
    except ContractError as error:
        raise ContractError(f"{files.text(file)}: {error}") from error


def own_json(file: files.StrPath, form: str) -> dict[str, Any] | None:
    """A JSON object whose `format` is `form`; None where there is no such file, or another's."""
    try:
        data = read_json(file)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ContractError):
        return None
    return data if data.get("format") == form else None


def require_own(
    directory: files.StrPath, names: Iterable[str], own: Container[str], *, flag: str
) -> None:
    """Refuses a directory where a file lies that would be replaced and is not this command's.

    Args:
      directory: to write to.
      names: of the files that will be written.
      own: those of them that an earlier run of the same command wrote.
      flag: that names the directory.

    Raises:
      UsageError: there is one; the message names it.
    """
    there = set(files.names(directory))
    foreign = sorted(name for name in names if name in there and name not in own)
    if foreign:
        raise UsageError(
            f"{flag} {files.text(directory)}: {foreign[0]} lies there, and this command did not "
            "write it; move it elsewhere, or choose another directory"
        )


def write_json(file: files.StrPath, data: Mapping[str, Any]) -> None:
    """Writes a JSON object; readers see all of it or nothing."""
    files.write_text(file, json.dumps(data, indent=1, sort_keys=True) + "\n")
