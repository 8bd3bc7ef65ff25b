"""CSV as people write it, read without guessing: text fields, a header, rows as long as it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from beam_jobs.core.cli import UsageError


def read_table(
    text: str, *, source: str, columns: Sequence[str]
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Header and rows of CSV text; a byte order mark and blank lines are passed over.

    Args:
      text: the CSV.
      source: what to call it in messages.
      columns: those it must have.

    Returns:
      The header, and each row with its line number.

    Raises:
      UsageError: one of `columns` is missing, or a row is shorter or longer than the header.
    """
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    try:
        lines = [(reader.line_num, line) for line in reader if any(field.strip() for field in line)]
    except csv.Error as error:
        raise UsageError(f"{source} line {reader.line_num}: {error}") from error
    header = [name.strip() for name in lines[0][1]] if lines else []
    missing = [name for name in columns if name not in header]
    if missing:
        found = f"its columns are {', '.join(header)}" if header else "it is empty"
        raise UsageError(f"{source} has no column {missing[0]!r}; {found}")
    for number, line in lines[1:]:
        if len(line) != len(header):
            raise UsageError(
                f"{source} line {number}: {len(line)} fields, the header has {len(header)}"
            )
    return header, [
        (number, dict(zip(header, (field.strip() for field in line), strict=True)))
        for number, line in lines[1:]
    ]
