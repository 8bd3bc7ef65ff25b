"""JSON objects in files: read with the file named in complaints, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

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


def write_json(file: files.StrPath, data: Mapping[str, Any]) -> None:
    """Writes a JSON object; readers see all of it or nothing."""
    files.write_text(file, json.dumps(data, indent=1, sort_keys=True) + "\n")
