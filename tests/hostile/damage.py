"""Every way in which a text file that a command reads back may be wrong, one after the other.

`damaged` is for any file, `damaged_json` for a JSON object: each of its members in turn becomes
each of `VALUES`, is missing, or has a neighbour that nobody knows. Nothing is drawn by chance: the
same file gives the same list.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

# JSON as text, for much of it is none that Python would write.
VALUES: dict[str, str] = {
    "null": "null",
    "true": "true",
    "text": '"x"',
    "empty text": '""',
    "list": "[]",
    "object": "{}",
    "list of a list": "[[[]]]",
    "list of an object": '[{"x": {}}]',
    "-1": "-1",
    "0": "0",
    "-0.0": "-0.0",
    "10**9": "1000000000",
    "10**18": "1000000000000000000",
    "2**63": "9223372036854775808",
    "1e308": "1e308",
    "1e-320": "1e-320",
    "half": "0.5",
    "NaN": "NaN",
    "-Infinity": "-Infinity",
    "1e400": "1e400",
    "5,000 digits": "9" * 5000,
    "long text": f'"{"x" * 100_000}"',
    "NUL": '"a\\u0000b"',
    "escapes": '"\\u001b[31m\\u202e\\n\\r"',
    "half a character": '"\\ud800"',
    "a way out": '"../../x"',
    "deep": "[" * 100_000 + "]" * 100_000,
    "500 deep": '{"a":' * 500 + "0" + "}" * 500,
}
_MARK = "\x00here\x00"


class Damaged(NamedTuple):
    """A file's new content, and what was done to it."""

    what: str
    content: bytes


def damaged(content: bytes, every: int = 1) -> Iterator[Damaged]:
    """A file as it should not be: of other bytes, cut, or of another kind.

    Args:
      content: of the sound file.
      every: only one in so many of these.
    """
    yield from itertools.islice(_damaged(content), 0, None, every)


def _damaged(content: bytes) -> Iterator[Damaged]:
    yield Damaged("empty", b"")
    for part in range(1, 10):
        yield Damaged(f"cut at {part}/10", content[: len(content) * part // 10])
    middle = len(content) // 2
    for what, put in (("NUL", b"\0"), ("not UTF-8", b"\xff"), ("a quote", b'"'), ("a CR", b"\r")):
        yield Damaged(f"{what} in the middle", content[:middle] + put + content[middle:])
        yield Damaged(f"{what} first", put + content)
    yield Damaged("4 KB of NUL", bytes(4096))
    yield Damaged("UTF-16", content.decode(errors="replace").encode("utf-16"))
    yield Damaged("twice", content + content)
    yield Damaged("a picture", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4)


def damaged_json(content: bytes, every: int = 1) -> Iterator[Damaged]:
    """A JSON file: as `damaged`, of another kind, and each member in turn as it should not be."""
    for make in itertools.islice(_damaged_json(content), 0, None, every):
        yield make()


def _damaged_json(content: bytes) -> Iterator[Callable[[], Damaged]]:
    """A function for each: most of the time goes into making them."""
    yield from (partial(lambda one: one, one) for one in _damaged(content))
    for what, text in VALUES.items():
        yield partial(Damaged, f"the whole: {what}", text.encode())
    data = json.loads(content)
    for way in _ways(data):
        name = ".".join(map(str, way))
        for what, text in VALUES.items():
            yield partial(_put, data, way, f"{name}: {what}", text)
        yield partial(_put, data, way, f"{name}: missing", None)
        if isinstance(way[-1], str):
            for what, twin in (("twice", json.dumps(way[-1])), ("unknown beside", '"unheard of"')):
                yield partial(_beside, data, way, f"{name}: {what}", twin)


def _put(data: Any, way: tuple[str | int, ...], what: str, text: str | None) -> Damaged:
    if text is None:
        return Damaged(what, json.dumps(_changed(data, way, None)).encode())
    changed = json.dumps(_changed(data, way, _MARK))
    return Damaged(what, changed.replace(json.dumps(_MARK), text).encode())


def _beside(data: Any, way: tuple[str | int, ...], what: str, twin: str) -> Damaged:
    changed = json.dumps(_changed(data, (*way[:-1], _MARK), 0))
    return Damaged(what, changed.replace(json.dumps(_MARK), twin).encode())


# fmt: off
CELLS = (
    "", " ", "x", "-1", "1e400", "nan", "inf", "-0", "0.5", "1_0", "\u0663", "9" * 5000, "10" * 9,
    str(2**63), "true", "x" * 100_000, "a\0b", "\x1b[31m", "=1+1", '"', "'", "a,b", "../../x",
)
# fmt: on


def damaged_csv(content: bytes, every: int = 1) -> Iterator[Damaged]:
    """A CSV file: as `damaged`, and each column in turn gone, twice, or with cells of `CELLS`."""
    yield from itertools.islice(_damaged_csv(content), 0, None, every)


def _damaged_csv(content: bytes) -> Iterator[Damaged]:
    yield from _damaged(content)
    header, *rows = content.decode().splitlines()
    names = header.split(",")
    yield Damaged("the header alone", f"{header}\n".encode())
    yield Damaged("no header", "\n".join(rows).encode())
    yield Damaged("a row twice", "\n".join([header, *rows, rows[-1]]).encode())
    yield Damaged("a short row", f"{content.decode()}x\n".encode())
    yield Damaged("a row of commas", f"{content.decode()}{',' * 100_000}\n".encode())
    yield Damaged("lone CR", content.replace(b"\n", b"\r"))
    yield Damaged("semicolons", content.replace(b",", b";"))
    wide = [",".join([line, *("x" * (number == 0) for _ in range(200_000))])
            for number, line in enumerate([header, *rows[:1]])]  # fmt: skip
    yield Damaged("200,000 columns", "\n".join(wide).encode())
    for place, name in enumerate(names):
        for what, put in (("gone", []), ("twice", [name, name]), ("of another name", ["?"])):
            cells = [names[:place] + put + names[place + 1 :]]
            for row in rows:
                of_row = row.split(",")
                cells.append(of_row[:place] + [of_row[place]] * len(put) + of_row[place + 1 :])
            yield Damaged(f"{name}: {what}", "\n".join(map(",".join, cells)).encode())
        for cell in CELLS:
            first = rows[0].split(",")
            first[place] = cell
            text = "\n".join([header, ",".join(first), *rows[1:]])
            yield Damaged(f"{name}: {cell[:20]!r}", text.encode())


def _ways(data: Any, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to each member; of a list only to its first and last."""
    inner: list[tuple[str | int, Any]] = []
    if isinstance(data, dict):
        inner = list(data.items())
    elif isinstance(data, list):
        inner = [
            (place, data[place]) for place in sorted({0, len(data) - 1}) if place >= 0 and data
        ]
    for key, value in inner:
        yield (*way, key)
        yield from _ways(value, (*way, key))


def _changed(data: Any, way: tuple[str | int, ...], value: Any) -> Any:
    """A copy with another value at a place; None deletes."""
    copy = json.loads(json.dumps(data))
    inner = copy
    for key in way[:-1]:
        inner = inner[key]
    if value is None:
        del inner[way[-1]]
    else:
        inner[way[-1]] = value
    return copy
