"""JSON objects held to a contract: read, written canonically, refused by name of the member.

Anybody may have written what is read here. Whoever walks the result, loops over a number of it or
prints a text of it relies on what `json_value` refuses, and states the rest as `Kind`s.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import UnionType
from typing import Any

NESTED_MOST = 64  # objects and lists within each other; ours are at most 8 deep
_SHOWN = 80
LEAST_WHOLE, MOST_WHOLE = -(2**63), 2**64 - 1  # what 64 bits hold
# Half a character, as JSON's escapes can spell it; two of them may be a character.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class ContractError(ValueError):
    """Two sides of a contract do not fit; the message names each field and both values."""


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces: equal data, equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def fingerprint(data: Any) -> str:
    """sha256 (hex) of the canonical JSON of `data`."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def json_object(text: str | bytes) -> dict[str, Any]:
    """Reads a JSON object, as strictly as `json_value`.

    Raises:
      ContractError: as `json_value`, or not an object.
    """
    data = json_value(text)
    if not isinstance(data, dict):
        raise ContractError("not a JSON object")
    return data


def json_value(text: str | bytes) -> Any:
    """Reads JSON strictly: what comes back can be walked, reckoned with and written.

    Args:
      text: as found in a file; bytes are taken for UTF-8.

    Raises:
      ContractError: not UTF-8; not JSON; nested deeper than `NESTED_MOST`; a member twice in one
        object; a number that is not finite or beyond 64 bits, or half a character, named by place.
    """
    strange: list[str] = []

    def refused(digits: str) -> float:
        strange.append(digits)
        return math.nan

    def whole(digits: str) -> float:
        # The length first: Python converts no more than some thousand digits.
        fits = len(digits) <= len(str(LEAST_WHOLE)) and LEAST_WHOLE <= int(digits) <= MOST_WHOLE
        return int(digits) if fits else refused(digits)

    def real(digits: str) -> float:
        return value if math.isfinite(value := float(digits)) else refused(digits)

    try:
        written = text.decode() if isinstance(text, bytes) else text
        data = json.loads(
            written,
            parse_int=whole,
            parse_float=real,
            parse_constant=refused,
            object_pairs_hook=_without_doubles,
        )
    except UnicodeDecodeError as error:
        raise ContractError(f"not UTF-8 text: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise ContractError(f"not JSON of ours: nested deeper than {NESTED_MOST}") from error
    except ValueError as error:
        raise ContractError(f"not JSON: {error}") from error
    _require_shallow(data)
    if strange or _HALF.search(written):
        for place, value in _leaves(data, ""):
            where = f"{place}: " if place else ""
            if isinstance(value, float) and math.isnan(value):
                required = "a finite number of at most 64 bits"
                raise ContractError(f"{where}{_cut(strange[0])} found, {required} required")
            if isinstance(value, str) and not is_unicode(value):
                raise ContractError(
                    f"{where}{shown(value)} found, text that can be written required"
                )
    return data


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which the last of several values for one key would win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        double, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{shown(double)} twice in one object")
    return found


def _require_shallow(data: Any) -> None:
    level = [data]
    for _ in range(NESTED_MOST + 1):
        level = [
            part
            for whole in level
            if isinstance(whole, dict | list)
            for part in (whole.values() if isinstance(whole, dict) else whole)
            if isinstance(part, dict | list)
        ]
        if not level:
            return
    raise ContractError(f"not JSON of ours: nested deeper than {NESTED_MOST}")


def _leaves(data: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every name and every value that is neither object nor list, with its place."""
    if isinstance(data, dict):
        for name, value in data.items():
            within = f"{place}.{_cut(ascii(name)[1:-1])}" if place else _cut(ascii(name)[1:-1])
            yield within, name
            yield from _leaves(value, within)
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _leaves(value, f"{place}[{number}]")
    else:
        yield place, data


def is_unicode(text: str) -> bool:
    """Whether text can be written; JSON's escapes can spell halves of a character."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


@dataclasses.dataclass(frozen=True)
class Within:
    """A kind of member: a number of that type from `least` to `most`, or null where `null`."""

    type: type[int] | type[float]
    least: float
    most: float = math.inf
    null: bool = False


@dataclasses.dataclass(frozen=True)
class ListOf:
    """A kind of member: a list of at least `least` values, each of one kind."""

    kind: Kind
    least: int = 0


@dataclasses.dataclass(frozen=True)
class OneOf:
    """A kind of member: one of these texts (or null, where it is among them)."""

    values: Collection[str | None]


Kind = type | UnionType | Within | ListOf | OneOf
_KINDS: dict[type | UnionType, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict | str: "an object or text",
    dict | None: "an object or null",
    list | None: "a list or null",
    int | None: "a whole number or null",
    str | None: "text or null",
}


def _fits(value: Any, kind: Kind) -> bool:
    match kind:
        case Within():
            if value is None:
                return kind.null
            return _fits(value, kind.type) and kind.least <= value <= kind.most
        case ListOf():
            return isinstance(value, list) and len(value) >= kind.least
        case OneOf():
            # `in` would ask a list for its hash.
            return (value is None or isinstance(value, str)) and value in kind.values
        case _ if kind is bool:
            return isinstance(value, bool)
        case _:
            # `true` is an int to Python; a float's member takes whole numbers too.
            wanted = int | float if kind is float else kind
            return isinstance(value, wanted) and not isinstance(value, bool)


def _required(kind: Kind) -> str:
    match kind:
        case Within():
            bounds = (
                f"from {kind.least} to {kind.most}"
                if kind.most < math.inf
                else f"of at least {kind.least}"
            )
            return f"{_KINDS[kind.type]} {bounds}{' or null' if kind.null else ''}"
        case ListOf():
            return f"a list of at least {kind.least}" if kind.least else "a list"
        case OneOf():
            return f"one of {', '.join('null' if one is None else one for one in kind.values)}"
        case _:
            return _KINDS[kind]


def require_kinds(data: Mapping[str, Any], kinds: Mapping[str, Kind], *, where: str = "") -> None:
    """Refuses a JSON object whose members are of other kinds.

    Args:
      data: the object.
      kinds: the kind of each member that it must have; float takes whole numbers too.
      where: the object's place, put before a member's name in messages.

    Raises:
      ContractError: names the member and what was found.
    """
    for name, kind in kinds.items():
        if name not in data:
            raise ContractError(f"{where}{name} is missing")
        require_that(_fits(data[name], kind), data, name, _required(kind), where=where)
        if isinstance(kind, ListOf):
            for place, value in enumerate(data[name]):
                if not _fits(value, kind.kind):
                    require_kinds(
                        {f"{name}[{place}]": value}, {f"{name}[{place}]": kind.kind}, where=where
                    )


def require_known(data: Mapping[str, Any], known: Iterable[str], *, where: str = "") -> None:
    """Refuses a JSON object with members that are none of its own.

    Raises:
      ContractError: names them.
    """
    if unknown := sorted(data.keys() - set(known)):
        raise ContractError(f"{where}unknown member {_cut(', '.join(map(ascii, unknown)))}")


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
    require_kinds(data, {name: ListOf(dict)}, where=where)
    return list(data[name])


def differing(
    there: Mapping[str, Any], here: Mapping[str, Any]
) -> list[tuple[str, object, object]]:
    """(dotted name, value there, value here) of each member that differs; None where it is absent.

    >>> differing({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}})
    [('a.b', 1, 3)]
    """
    old, new = _flat(there), _flat(here)
    return [
        (name, old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def shown(value: object) -> str:
    """A value for a message, not longer than a line takes."""
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
