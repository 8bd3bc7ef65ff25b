"""CSV as people write it, read without guessing: text fields, a header, rows as long as it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from beam_jobs.common.files import interface as files


def read_table(
    text: str, columns: Sequence[str]
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Header and rows of CSV text; a byte order mark and blank lines are passed over.

    Args:
      text: the CSV.
      columns: those it must have.

    Returns:
      The header, and each row with its line number.

    Raises:
      ValueError: not CSV, one of `columns` is missing, or a row is shorter or longer than the
        header; the message names lines, not what stands in them.
    """
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    try:
        lines = [(reader.line_num, line) for line in reader if any(field.strip() for field in line)]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error
    header = [name.strip() for name in lines[0][1]] if lines else []
    missing = [name for name in columns if name not in header]
    if missing:
        found = ", ".join(header) or "empty"
        raise ValueError(f"no column {', '.join(missing)}; its header is {found}")
    for number, line in lines[1:]:
        if len(line) != len(header):
            raise ValueError(f"line {number}: {len(line)} fields, the header has {len(header)}")
    return header, [
        (number, dict(zip(header, (field.strip() for field in line), strict=True)))
        for number, line in lines[1:]
    ]


def write_table(file: files.StrPath, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV whole or not at all; floats in full, so that they read back bit for bit."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    files.write_text(file, stream.getvalue())
