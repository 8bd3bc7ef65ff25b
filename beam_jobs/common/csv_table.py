"""CSV as people write it, read without guessing: text fields, a header, rows as long as it.

A spreadsheet runs a cell that begins with =, +, - or @, and cells hold what strangers named: ids,
files, series. In tables that are ours such a text stands behind an apostrophe, which spreadsheets
take for "this is text" (OWASP, CSV Injection), and is read without it. Where other programs want a
file's bytes as they are, a command says how many cells of it would run.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from beam_jobs.common.contract_json import shown
from beam_jobs.common.files import interface as files

# A row takes a hundred times its bytes where these are few: of lists of patients, and of a
# dataset's own tables, which have a line a series or file.
MOST_ROWS, _MOST_OWN_ROWS, MOST_COLUMNS = 1_000_000, 10_000_000, 10_000
# Also behind quotes and blanks, which some readers take off first.
_FORMULA = re.compile(r"""['"\s]*[=+\-@＝＋－＠]|['"]*[\t\r\n]""")
_WHOLE = re.compile(r"\d{1,15}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def is_formula(text: str) -> bool:
    """Whether a spreadsheet could run a cell of this text; a number is none.

    >>> [is_formula(text) for text in ("=1+1", "-1.5e3", "-1+1", "T1w", '"=1')]
    [True, False, True, False, True]
    """
    return bool(_FORMULA.match(text)) and not _NUMBER.fullmatch(text)


def inert(value: Any) -> Any:
    """A cell's value for a table of ours; `text_of` gives the text back.

    >>> inert("=1+1"), inert("'=1+1"), inert(-1.5), inert("-1.5")
    ("'=1+1", "''=1+1", -1.5, '-1.5')
    """
    return f"'{value}" if isinstance(value, str) and is_formula(value) else value


def text_of(cell: str) -> str:
    """The text that `inert` made a cell of.

    >>> text_of("'=1+1"), text_of("''=1+1"), text_of("-1.5"), text_of("'T1w'")
    ('=1+1', "'=1+1", '-1.5', "'T1w'")
    """
    return cell[1:] if cell.startswith("'") and is_formula(cell[1:]) else cell


def number(cell: str, *, least: float = -math.inf) -> float:
    """A cell's finite number.

    Raises:
      ValueError: it holds none, or one below `least`; the message has what was found.
    """
    value = float(cell) if _NUMBER.fullmatch(cell) else math.nan
    if not (math.isfinite(value) and value >= least):
        bound = f" of at least {least:g}" if least > -math.inf else ""
        raise ValueError(f"{shown(cell)} found, a finite number{bound} required")
    return value


def whole_number(cell: str) -> int:
    """A cell's whole number, from 0 on and of 15 digits at most.

    Raises:
      ValueError: it holds none; the message has what was found.
    """
    if not _WHOLE.fullmatch(cell):
        raise ValueError(f"{shown(cell)} found, a whole number required")
    return int(cell)


def read_table(
    text: str | bytes,
    columns: Sequence[str],
    *,
    ours: bool = False,
    most: int = MOST_ROWS,
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Header and rows of CSV text; a byte order mark and blank lines are passed over.

    Args:
      text: the CSV; bytes are taken for UTF-8.
      columns: those it must have.
      ours: the table is one of ours: its cells are what `text_of` makes of them.
      most: rows that it may have.

    Returns:
      The header, and each row with its line number.

    Raises:
      ValueError: not UTF-8, not CSV, one of `columns` is missing, a column's name stands twice, a
        row is shorter or longer than the header, or there are more than `most` or `MOST_COLUMNS`;
        the message names lines, not what stands in them.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 text: {error.reason} at byte {error.start}") from error
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    header: list[str] = []
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        for line in reader:
            at = reader.line_num
            if len(line) > MOST_COLUMNS or len(rows) >= most:
                what = f"{most} rows" if len(line) <= MOST_COLUMNS else f"{MOST_COLUMNS} fields"
                raise ValueError(f"line {at}: more than {what}")
            cells = [field.strip() for field in line]
            if not any(cells):
                continue
            if not header:
                header = cells
                require_columns(header, columns)
            elif len(cells) != len(header):
                raise ValueError(f"line {at}: {len(cells)} fields, the header has {len(header)}")
            else:
                values = map(text_of, cells) if ours else cells
                rows.append((at, dict(zip(header, values, strict=True))))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error
    require_columns(header, columns)
    return header, rows


def read_own_table(file: files.StrPath, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of one of a dataset's own tables, each with its line number.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: as `read_table`.
    """
    data = files.read(file, limit=files.TABLE_BYTES)
    return read_table(data, columns, ours=True, most=_MOST_OWN_ROWS)[1]


def require_columns(header: Sequence[str], columns: Sequence[str]) -> None:
    """Refuses a header that lacks one of `columns`, or has a name twice.

    Raises:
      ValueError: names the column.
    """
    missing = [name for name in columns if name not in header]
    if missing:
        found = shown(", ".join(header))[1:-1] if any(header) else "empty"
        raise ValueError(f"no column {', '.join(missing)}; its header is {found}")
    # Of two columns of one name the last would be taken.
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
        raise ValueError(f"column {shown(twice[0])[1:-1]} stands twice in its header")


class Lines(io.StringIO):
    r"""Takes the rows of a csv.writer of `TERMINATOR` and ends them with a line feed.

    The terminator decides what is quoted: with a line feed alone a carriage return in a cell would
    stand bare, and end the row for whoever reads it.
    """

    TERMINATOR = "\r\n"

    def write(self, row: str, /) -> int:
        return super().write(f"{row.removesuffix(self.TERMINATOR)}\n")


def write_table(file: files.StrPath, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV whole or not at all; floats in full, so that they read back bit for bit.

    No spreadsheet runs its cells: `read_table` reads them as `ours`.
    """
    stream = Lines(newline="")
    writer = csv.writer(stream, lineterminator=stream.TERMINATOR)
    writer.writerow(columns)
    writer.writerows([inert(value) for value in row] for row in rows)
    files.write_text(file, stream.getvalue())
