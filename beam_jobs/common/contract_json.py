"""JSON objects held to a contract: read, written canonically, refused by name of the member."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import UnionType
from typing import Any


class ContractError(ValueError):
    """Two sides of a contract do not fit; the message names each field and both values."""


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces: equal data, equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def fingerprint(data: Any) -> str:
    """sha256 (hex) of the canonical JSON of `data`."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def json_object(text: str | bytes) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      text: as found in a file; bytes are taken for UTF-8.

    Raises:
      ContractError: not UTF-8, not JSON, or not an object.
    """
    try:
        data = json.loads(text.decode() if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise ContractError(f"not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise ContractError(f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ContractError("not a JSON object")
    return data


Kind = type | UnionType
_KINDS: dict[Kind, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    int | None: "a whole number or null",
}


def require_kinds(data: Mapping[str, Any], kinds: Mapping[str, Kind], *, where: str = "") -> None:
    """Refuses a JSON object whose members are of other types.

    Args:
      data: the object.
      kinds: the Python type of each member that it must have; float takes whole numbers too.
      where: the object's place, put before a member's name in messages.

    Raises:
      ContractError: names the member and what was found.
    """
    for name, kind in kinds.items():
        if name not in data:
            raise ContractError(f"{where}{name} is missing")
        fits = isinstance(data[name], int | float if kind is float else kind)
        # `true` is an int to Python.
        fits = fits and not isinstance(data[name], bool)
        require_that(fits, data, name, _KINDS[kind], where=where)


def require_that(
    fits: bool, data: Mapping[str, Any], name: str, required: str, *, where: str = ""
) -> None:
    """Refuses a member of a JSON object that is there and does not fit.

    Args:
      fits: whether it does.
      data: the object.
      name: the member's.
      required: what would fit, for the message.
      where: the object's place, put before the member's name in the message.

    Raises:
      ContractError: it does not fit; the message has what was found.
    """
    if not fits:
        raise ContractError(f"{where}{name}: {shown(data[name])} found, {required} required")


def objects_of(data: Mapping[str, Any], name: str, *, where: str = "") -> list[dict[str, Any]]:
    """The member `name` of a JSON object, a list of objects.

    Raises:
      ContractError: it is missing, no list, or holds something else; the message names the place.
    """
    require_kinds(data, {name: list}, where=where)
    for place, value in enumerate(data[name]):
        require_kinds({f"{name}[{place}]": value}, {f"{name}[{place}]": dict}, where=where)
    return list(data[name])


def shown(value: object) -> str:
    """A value for a message, not longer than a line takes."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
