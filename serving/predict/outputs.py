"""The prediction table in its formats: CSV, JSON lines in any number of files, Parquet.

Same rows, same bytes: no time, no host, no order of workers goes in. Every file is written under
another name and renamed, so that what has the name is whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files_before import filesystems
from serving.model.loaded_model import Prediction
from serving.predict.submission import Submission, csv_text

COLUMNS = ("probability", "logit", "spread", "flags")
FORMATS = (".csv", ".jsonl", ".parquet")

Rows = list[dict[str, Any]]


def files_of(output: str, shards: int | None) -> list[str]:
    """The names that the table will have.

    Args:
      output: as requested; its extension says the format.
      shards: files to deal the rows of a `.jsonl` to; None is one, with the very name.

    Raises:
      UsageError: a format that is not known, or shards of one that has none.
    """
    stem, extension = os.path.splitext(output)
    if extension not in FORMATS:
        raise UsageError(f"--output: {output} must end in {', '.join(FORMATS)}")
    if shards is None:
        return [output]
    if extension != ".jsonl":
        raise UsageError(f"--output_shards is for .jsonl, not for {output}")
    if not 1 <= shards <= 99_999:
        raise UsageError(f"--output_shards must lie in 1 .. 99999: {shards}")
    return [f"{stem}-{number:05d}-of-{shards:05d}.jsonl" for number in range(shards)]


def require_no_strays(output: str, files: Sequence[str]) -> None:
    """Refuses to write shards beside those of another number: a pattern would read both.

    Raises:
      UsageError: names one of them.
    """
    directory, name = os.path.split(output)
    stem = re.escape(os.path.splitext(name)[0])
    shard = re.compile(rf"{stem}-\d{{5}}-of-\d{{5}}\.jsonl")
    ours = {os.path.basename(file) for file in files}
    for found in filesystems.list_names(directory or "."):
        if output.endswith(".jsonl") and shard.fullmatch(found) and found not in ours:
            raise UsageError(
                f"--output: {found} lies there, of an output in other parts; delete it first"
            )


def table(
    submission: Submission,
    predictions: Mapping[str, Prediction],
    *,
    id_column: str,
    value_column: str,
    columns: Sequence[str],
) -> Rows:
    """The rows as they will be written, by column.

    Args:
      submission: who gets a row, and which value.
      predictions: patient -> answer.
      id_column, value_column: names of the ids' and the probabilities' columns.
      columns: some of `COLUMNS`, in order. `logit` and `spread` are None where the row holds the
        prevalence; `flags` are codes with ";" between: why there is no prediction, what of the
        patient was refused, which modality is missing.
    """
    rows: Rows = []
    for (shown, value), patient, flags in zip(
        submission.rows, submission.patients, submission.flags, strict=True
    ):
        answer = predictions.get(patient)
        missing = () if answer is None else answer.missing
        cells: dict[str, Any] = {
            "probability": value,
            "logit": None if answer is None else answer.logit,
            "spread": None if answer is None else answer.spread,
            "flags": ";".join((*flags, *(f"missing_{name}" for name in missing))),
        }
        names = {name: value_column if name == "probability" else name for name in columns}
        rows.append({id_column: shown, **{names[name]: cells[name] for name in columns}})
    return rows


def write(rows: Rows, header: Sequence[str], files: Sequence[str]) -> list[str]:
    """Writes the rows to the files, each whole or not at all.

    Args:
      rows: of `table`.
      header: the columns' names, in order.
      files: of `files_of`; rows go to them in even stretches.

    Returns:
      sha256 (hex) of each file.
    """
    sums = []
    for number, file in enumerate(files):
        start, stop = (len(rows) * end // len(files) for end in (number, number + 1))
        data = _encode(rows[start:stop], header, os.path.splitext(file)[1])
        temporary = f"{file}.part"
        with filesystems.open_write(temporary) as stream:
            stream.write(data)
        filesystems.replace(temporary, file)
        sums.append(hashlib.sha256(data).hexdigest())
    return sums


def _encode(rows: Rows, header: Sequence[str], extension: str) -> bytes:
    if extension == ".csv":
        return csv_text(header, ([_shown(row[name]) for name in header] for row in rows)).encode()
    if extension == ".jsonl":
        return "".join(f"{line}\n" for line in _json_lines(rows)).encode()
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {}
    for name in header:
        values = [row[name] for row in rows]
        text = all(isinstance(value, str) for value in values)
        columns[name] = pa.array(values, pa.string() if text else pa.float32())
    stream = io.BytesIO()
    parquet.write_table(pa.table(columns), stream)
    return stream.getvalue()


def _json_lines(rows: Rows) -> Iterator[str]:
    for row in rows:
        # The shortest number that is this float32, not the float64 that it is held in.
        yield json.dumps(
            {
                name: float(_shown(value)) if isinstance(value, float) else value
                for name, value in row.items()
            },
            ensure_ascii=False,
        )


def _shown(value: Any) -> str:
    """Nine significant digits bring every float32 back exactly."""
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float | np.floating) else str(value)
