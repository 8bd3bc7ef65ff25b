"""JSON objects in files: read with the file named in complaints, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beam_jobs.common.contract_json import ContractError, json_object


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      ContractError: not JSON, or not an object; the message names the file.
    """
    try:
        return json_object(file.read_bytes())
    except ContractError as error:
        raise ContractError(f"{file}: {error}") from error


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON object under a temporary name, then renames it: readers see all or nothing."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(file)
