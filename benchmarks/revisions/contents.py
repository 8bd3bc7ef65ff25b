"""What a file holds, as places and values: two files compare by what is in them and where.

Times are left out by the names below, wherever they stand; nothing else is.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, AnyStr

import numpy as np

# Fields that hold times, in JSON (a number, or a list of one an epoch), CSV columns and event tags.
TIMES = {
    "seconds": "of a fold or trial",
    "wall_seconds": "of a run or baseline",
    "step_seconds": "of an optimizer step",
    "epoch_seconds": "of an epoch",
    "input_wait": "share of a step's time spent waiting for records",
    "date_saved": "metadata.json in a .keras file",
}
# What else is left out, because it is drawn or counted anew in every process.
UNSTABLE = {
    "shared_object_id": "config.json in a .keras file: addresses of shared objects; numbered",
    "tried_so_far": "oracle.json: KerasTuner writes a set, in the order of its hashes; sorted",
    "start_time_secs": "HParams events: a session's start, and its end_time_secs",
    "Seconds": "this column of tables in .html",
    "durations": "in .txt, the logs of a search's trials: 4.5 s, 3 min",
    "events.out.tfevents.*": "each event's wall time; time, host and process in the file's name",
}
# Durations in the logs that trials keep: "4.5 s", "about 3 min".
_DURATION = re.compile(r"\b\d+(\.\d+)? (s|min|h)\b")
_NAMES = "|".join(TIMES)
_JSON_TIME = re.compile(rf'("(?:{_NAMES})":\s*)(\[[^\]]*\]|"[^"]*"|[-+.\w]+)')
_TRIED = re.compile(r'("tried_so_far":\s*)\[([^\]]*)\]')
_SHARED = re.compile(rb'("shared_object_id":\s*)(\d+)')
_CELL = re.compile(r"<t[hd]\b[^>]*>.*?</t[hd]>")
_SECONDS = '<th scope="col">Seconds</th>'
# Files of a SavedModel whose bytes may differ: what the model holds and answers is in models.npz.
THROUGH_MODEL = {
    "saved_model.pb": "models.npz: signatures, and what they answer for given volumes and records",
    "variables/variables.data-00000-of-00001": "models.npz: the variables, but Keras's seed states",
    "variables/variables.index": "models.npz: their names, types and shapes",
    "fingerprint.pb": "hashes of the files above and a random number",
}

Contents = dict[str, Any]


def masked(name: str, data: bytes, root: str) -> bytes:
    """A text file's bytes without times and without the directory it was written in.

    Args:
      name: the file's, whose suffix tells its format.
      data: its bytes.
      root: directory of the side that wrote it; where it stands in the text it becomes SIDE.

    Returns:
      what must be equal in both sides; of a binary format the bytes as they are.
    """
    suffix = PurePosixPath(name).suffix
    if suffix not in TEXT:
        return data
    text = data.decode().replace(root, "SIDE")
    if suffix in (".json", ".jsonl"):
        text = _JSON_TIME.sub(r'\1"TIME"', text)
        text = _TRIED.sub(lambda m: f"{m[1]}[{', '.join(sorted(m[2].split(', ')))}]", text)
    elif suffix == ".txt":
        text = _DURATION.sub("TIME", text)
    elif suffix == ".csv":
        text = _csv_without_times(text)
    elif suffix == ".html" and _SECONDS in text:
        text = "</table>".join(map(_table_without_times, text.split("</table>")))
    return text.encode()


def _table_without_times(html: str) -> str:
    """HTML up to a table's end, without what stands in the table's column of seconds."""
    start = html.rfind("<thead>")
    head, end, body = html[start:].partition("</thead>")
    if start < 0 or _SECONDS not in head:
        return html
    column = _CELL.findall(head).index(_SECONDS)
    rows = []
    for row in body.split("</tr>"):
        cells = list(_CELL.finditer(row))
        if len(cells) > column:
            row = f"{row[: cells[column].start()]}TIME{row[cells[column].end() :]}"
        rows.append(row)
    return html[:start] + head + end + "</tr>".join(rows)


def _csv_without_times(text: str) -> str:
    rows = list(csv.reader(io.StringIO(text, newline="")))
    columns = {number for number, name in enumerate(rows[0] if rows else ()) if name in TIMES}
    if not columns:
        return text
    masked_rows = [
        ["TIME" if number in columns and line else value for number, value in enumerate(row)]
        for line, row in enumerate(rows)
    ]
    # Of a table that holds times, quoting and line ends are not compared, every other cell is.
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(masked_rows)
    return stream.getvalue()


def contents(name: str, data: bytes) -> Contents:
    """Places and values of a file, times left out.

    Args:
      name: the file's; its suffix tells the format.
      data: its bytes.

    Returns:
      {place: value}; places are keys joined by points in JSON, row and column in tables, member and
      place in archives, step and tag in event files, lines in text.

    Raises:
      ValueError: the bytes are not of that format.
    """
    path = PurePosixPath(name)
    read = _EVENTS if path.name.startswith("events.out.tfevents") else _READERS.get(path.suffix)
    if read is None:
        return {"bytes": data}
    return {place: value for place, value in read(path, data) if not _is_time(place)}


def _is_time(place: str) -> bool:
    return not TIMES.keys().isdisjoint(re.split(r"[./]", place))


Pairs = Iterator[tuple[str, Any]]


def _json(_: PurePosixPath, data: bytes) -> Pairs:
    numbers: dict[bytes, int] = {}
    numbered = _SHARED.sub(lambda m: m[1] + b"%d" % numbers.setdefault(m[2], len(numbers)), data)
    return _flat("", json.loads(numbered))


def _flat(place: str, value: Any) -> Pairs:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if not items:  # a leaf, or nothing in it
        yield place, value
        return
    for key, inner in items:
        yield from _flat(f"{place}.{key}" if place else str(key), inner)


def _jsonl(_: PurePosixPath, data: bytes) -> Pairs:
    for number, line in enumerate(data.decode().splitlines(), 1):
        yield from _flat(str(number), json.loads(line))


def _csv(_: PurePosixPath, data: bytes) -> Pairs:
    rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
    head = rows[0] if rows else []
    yield "header", head
    for number, row in enumerate(rows[1:], 1):
        for column, value in enumerate(row):
            yield f"{number}.{head[column] if column < len(head) else column}", value


def _lines(_: PurePosixPath, data: bytes) -> Pairs:
    for number, line in enumerate(data.decode().splitlines(), 1):
        yield f"line {number}", line


def _archive(_: PurePosixPath, data: bytes) -> Pairs:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            for place, value in contents(name, archive.read(name)).items():
                yield f"{name}/{place}" if place else name, value


def _npy(_: PurePosixPath, data: bytes) -> Pairs:
    yield "", np.load(io.BytesIO(data), allow_pickle=False)


def _gzip(path: PurePosixPath, data: bytes) -> Pairs:
    yield from contents(path.stem, gzip.decompress(data)).items()


def _nifti(_: PurePosixPath, data: bytes) -> Pairs:
    """The header's bytes and the stored ones behind it (NIfTI-1: vox_offset stands at byte 108)."""
    (offset,) = struct.unpack_from("<f", data, 108)
    yield "header", np.frombuffer(data[: int(offset)], np.uint8)
    yield "voxels", np.frombuffer(data[int(offset) :], np.uint8)


def _hdf5(_: PurePosixPath, data: bytes) -> Pairs:
    import h5py

    found: list[tuple[str, Any]] = []

    def visit(name: str, item: Any) -> None:
        found.extend((f"{name}@{key}", str(value)) for key, value in sorted(item.attrs.items()))
        if isinstance(item, h5py.Dataset):
            found.append((name, item[()]))

    with h5py.File(io.BytesIO(data)) as file:
        visit("", file)
        file.visititems(visit)
    yield from found


def _parquet(_: PurePosixPath, data: bytes) -> Pairs:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(data))
    yield "schema", str(table.schema)
    for number, row in enumerate(table.to_pylist(), 1):
        yield from _flat(str(number), row)


def _events(_: PurePosixPath, data: bytes) -> Pairs:
    """Step and tag of every summary; the wall-clock time of each event is left out."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.plugins.hparams import plugin_data_pb2

    start = 0
    while start < len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        event = event_pb2.Event.FromString(data[start + 12 : start + 12 + length])
        start += length + 16  # length, its checksum, the event, its checksum
        for value in event.summary.value:
            tag = value.tag
            value.ClearField("tag")
            plugin = value.metadata.plugin_data
            if plugin.plugin_name == "hparams":
                session = plugin_data_pb2.HParamsPluginData.FromString(plugin.content)
                if session.HasField(
                    "session_start_info"
                ):  # to touch one of the two unsets the other
                    session.session_start_info.ClearField("start_time_secs")
                elif session.HasField("session_end_info"):
                    session.session_end_info.ClearField("end_time_secs")
                plugin.content = session.SerializeToString(deterministic=True)
            yield f"step {event.step}/{tag}", value.SerializeToString(deterministic=True)


_Reader = Callable[[PurePosixPath, bytes], Pairs]
_EVENTS: _Reader = _events
TEXT = (".json", ".jsonl", ".csv", ".txt", ".html", ".md")
_READERS: dict[str, _Reader] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".txt": _lines,
    ".html": _lines,
    ".md": _lines,
    ".npz": _archive,
    ".keras": _archive,
    ".zip": _archive,
    ".npy": _npy,
    ".gz": _gzip,
    ".nii": _nifti,
    ".h5": _hdf5,
    ".parquet": _parquet,
}


def differing(before: Contents, after: Contents) -> dict[str, str]:
    """Places whose values differ, each with how, in the first one's order."""
    places = {}
    for place in [*before, *(place for place in after if place not in before)]:
        if place not in before:
            places[place] = f"only after: {_short(after[place])}"
        elif place not in after:
            places[place] = f"only before: {_short(before[place])}"
        elif not _same(before[place], after[place]):
            places[place] = _between(before[place], after[place])
    return places


def _same(a: Any, b: Any) -> bool:
    """Equal to the bit: NaN equals NaN, 0 is not -0, 1 is not 1.0."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    return type(a) is type(b) and repr(a) == repr(b)


def _between(a: Any, b: Any) -> str:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"{_short(a)} → {_short(b)}"
        bits = [np.frombuffer(x.tobytes(), f"V{x.itemsize}") for x in (a, b)]
        changed = f"{(bits[0] != bits[1]).sum()} of {a.size} values"
        if not np.issubdtype(a.dtype, np.number):
            return changed
        most = np.abs(np.subtract(a, b, dtype=np.float64)).max(initial=0)
        return f"{changed}, by {most:.3g} at most"
    if isinstance(a, bytes) and isinstance(b, bytes):
        return _at(a, b)
    if isinstance(a, str) and isinstance(b, str) and len(a + b) > 80:
        return _at(a, b)
    return f"{_short(a)} → {_short(b)}"


def _at(a: AnyStr, b: AnyStr) -> str:
    """Where two long values differ first, with what stands there."""
    common = min(len(a), len(b))
    at = next((i for i in range(common) if a[i] != b[i]), common)
    start = max(at - 12, 0)
    length = "" if len(a) == len(b) else f"{len(a)} → {len(b)} long, "
    return f"{length}at {at}: {_short(a[start:])} → {_short(b[start:])}"


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}"
    text = repr(value[:40] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= 48 else f"{text[:45]}…"
