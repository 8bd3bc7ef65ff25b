"""CSV files with a row a patient: what each says of them, found under any spelling of their ids."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import shown
from beam_jobs.common.csv_table import number, read_table, require_columns
from beam_jobs.core.cohort.ids import normalised_id

Value = TypeVar("Value")
# What programs write where nothing is known, in any case; not "none", which is what some classes
# are called (a stenosis, a grade of necrosis).
_UNKNOWN = frozenset(("", "nan", "na", "n/a", "<na>", "null", "#n/a"))
_DECIMAL_COMMA = re.compile(r"[+-]?\d+(?:[.,]\d+)*,\d+", re.ASCII)
# What is meant as a number, and is none that can be stored.
_NO_NUMBER = re.compile(r"[+-]?(?:inf|infinity|∞|#div/0!|[\d.]+e\+?\d+)", re.IGNORECASE | re.ASCII)
_FLOAT32_MOST = 3.4e38
_LONGEST_NAME = 100
_BIDS = "sub-"
_SEPARATORS = ";\t|"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatientColumn(Generic[Value]):
    """What a file says of each patient, found under any spelling of the id.

    Attributes:
      by_spelling: id as the file spells it to its value.
      source: what messages call the file.
    """

    by_spelling: Mapping[str, Value]
    source: str = "the labels"
    _spellings: Mapping[str, list[str]] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        spellings: dict[str, list[str]] = {}
        for spelling in self.by_spelling:
            spellings.setdefault(normalised_id(spelling), []).append(spelling)
        object.__setattr__(self, "_spellings", spellings)

    def __len__(self) -> int:
        return len(self.by_spelling)

    def spelling_of(self, patient_id: str) -> str | None:
        """The file's spelling of a patient, None when it does not list it.

        A BIDS subject's is also its label alone: `01`, or `1`, for `sub-01`.

        Raises:
          UsageError: several of its ids could be meant (`5` and `005` for `00005`).
        """
        if patient_id in self.by_spelling:
            return patient_id
        found = self._spellings.get(normalised_id(patient_id), [])
        if not found and patient_id.startswith(_BIDS):
            found = self._spellings.get(normalised_id(patient_id.removeprefix(_BIDS)), [])
        if len(found) > 1:
            listed = ", ".join(found)
            raise UsageError(f"patient {patient_id} is ambiguous: {self.source} list {listed}")
        return found[0] if found else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatientTable:
    """Some columns of a CSV.

    Attributes:
      header: names of all columns.
      id_column: the name of the ids'.
      columns: the others' names.
      rows: (line number, patient id as the file spells it, a cell a column).
      source: what messages call the file.
    """

    header: Sequence[str]
    id_column: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[int, str, tuple[str, ...]]]
    source: str

    def require_apart(self) -> None:
        """Refuses columns of ids, or the same one twice.

        Raises:
          UsageError: names the column.
        """
        for name in self.columns:
            if name == self.id_column or self.columns.count(name) > 1:
                what = "the one of ids" if name == self.id_column else "named twice"
                raise UsageError(f"{self.source}: column {name} is {what}")

    def values(self, parse: Callable[[tuple[str, ...]], Value]) -> dict[str, Value]:
        """Patient id to what `parse` makes of its cells.

        Raises:
          UsageError: `parse` raises ValueError; the message names the line.
        """
        found: dict[str, Value] = {}
        for line, patient_id, cells in self.rows:
            try:
                found[patient_id] = parse(cells)
            except ValueError as error:
                raise UsageError(f"{self.source} line {line}: {error}") from error
        return found


def read_columns(
    text: str,
    source: str,
    id_columns: Sequence[str],
    columns: Sequence[str],
    patient_of: Callable[[str], str] = str,
) -> PatientTable:
    """Reads columns of a CSV with a row a patient.

    Args:
      text: the CSV, with a header row; tabs separate fields where `source` ends in .tsv.
      source: what to call it in messages.
      id_columns: columns of patient ids; the first that is there is read.
      columns: those wanted: names, also several in one text with commas between.
      patient_of: id to what no two lines may share.

    Raises:
      UsageError: not a CSV, a column is not there, or an id is empty or stands twice; the message
        names the line.
    """
    if source.lower().endswith(".tsv"):  # BIDS
        text = _with_commas(text)
    try:
        _require_commas(text)
        header, found = read_table(text, ())
        id_column = next((name for name in id_columns if name in header), id_columns[0])
        wanted = names_among(columns, header)
        require_columns(header, (id_column, *wanted))
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from error
    rows: list[tuple[int, str, tuple[str, ...]]] = []
    lines: dict[str, int] = {}
    for line, row in found:
        patient_id = row[id_column]
        if not patient_id:
            raise UsageError(f"{source} line {line}: the patient id is empty")
        if (known := lines.setdefault(patient_of(patient_id), line)) != line:
            raise UsageError(f"{source} line {line}: the patient of line {known} stands twice")
        rows.append((line, patient_id, tuple(row[name] for name in wanted)))
    return PatientTable(
        header=header, id_column=id_column, columns=wanted, rows=rows, source=source
    )


def _with_commas(text: str) -> str:
    """A table of tabs as a CSV; lines keep their numbers."""
    lines = io.StringIO()
    rows = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue()


def _require_commas(text: str) -> None:
    """Refuses the CSV of a spreadsheet that separates fields by another sign.

    Raises:
      ValueError: names the sign.
    """
    header = next(iter(text.removeprefix("\ufeff").split("\n", 1)), "").strip()
    signs = [sign for sign in _SEPARATORS if sign in header]
    if signs and "," not in header:
        raise ValueError(
            f"its header is {shown(header)[1:-1]}: fields must be separated by commas, not "
            f"{shown(signs[0])}"
        )


def names_among(given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """A flag's names: each argument that is a known one as it stands, others split at commas.

    >>> names_among(["a,b", "vol, ml"], ["a", "b", "vol, ml"])
    ('a', 'b', 'vol, ml')
    """
    names: list[str] = []
    for one in given:
        parts = [one] if one in known else [part.strip() for part in one.split(",")]
        names += [part for part in parts if part]
    return tuple(names)


def is_unknown(cell: str) -> bool:
    """Whether a cell says that nothing is known: empty, NaN, NA, null."""
    return cell.lower() in _UNKNOWN


@functools.lru_cache(maxsize=1 << 16)  # cells of classes are many and alike
def name_of(cell: str) -> str:
    """A cell as the name of a class: a number by its value, else its text.

    >>> [name_of(cell) for cell in ("2.0", "+02", "2.50", "II", "a  b", "1e400")]
    ['2', '2', '2.5', 'II', 'a b', '1e400']
    """
    try:
        value = number(cell)
    except ValueError:
        return unicodedata.normalize("NFC", " ".join(cell.split()))
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def is_number(cell: str) -> bool:
    """Whether a cell is meant as a number, also one that none can be made of (infinite, 1,5)."""
    try:
        number(cell)
    except ValueError:
        return bool(_NO_NUMBER.fullmatch(cell) or _DECIMAL_COMMA.fullmatch(cell))
    return True


def value_of(cell: str, what: str) -> float:
    """A cell's number, within what a float32 can be.

    Args:
      cell: as it stands.
      what: what it is, for the message: "the label".

    Raises:
      ValueError: it holds none; the message says how it should be written.
    """
    if _DECIMAL_COMMA.fullmatch(cell):
        raise ValueError(f"{what} is {shown(cell)}: decimals need a point, and thousands no sign")
    try:
        value = number(cell)
    except ValueError as error:
        raise ValueError(f"{what} is {shown(cell)}, no finite number; empty is unknown") from error
    if abs(value) > _FLOAT32_MOST:
        raise ValueError(f"{what} is {shown(cell)}, more than the {_FLOAT32_MOST:g} of a float32")
    return value


def require_names(names: Sequence[str], what: str) -> None:
    """Refuses texts that are no names, and those that differ in case or spaces alone.

    Args:
      names: different texts.
      what: what they are, for the message: "classes".

    Raises:
      ValueError: names one, or both.
    """
    for name in names:
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise ValueError(
                f"{what} are named by up to {_LONGEST_NAME} characters that can be printed, "
                f"{shown(name)} is no name"
            )
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault("".join(name.casefold().split()), name)
        if other != name:
            raise ValueError(
                f"{what} {shown(other)} and {shown(name)} differ in case or spaces alone: "
                "spell them alike"
            )
