"""What else is known of a patient: numbers (age) and categories (site), stored beside the volume.

A record holds one float32 a covariate: the number, or the index of the category; NaN where it is
not known. What is made of them (standardised numbers, a column a category, a mark where one is not
known) is a layer of the network, whose statistics are of the training folds alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import (
    ContractError,
    Kind,
    ListOf,
    OneOf,
    is_unicode,
    require_kinds,
    require_known,
    shown,
)
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.cohort.patient_column import (
    PatientColumn,
    PatientTable,
    is_number,
    is_unknown,
    name_of,
    names_among,
    read_columns,
    require_names,
    value_of,
)
from beam_jobs.core.cohort.target import as_value, rounded

KINDS = ("number", "category")
CATEGORIES_MOST = 50
COVARIATES_MOST = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Covariate:
    """One column of what is known of patients.

    Attributes:
      name: of the column.
      categories: what stands there, in the order of their indices; () of a number.

    Raises:
      ContractError: values that none can have.
    """

    name: str
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", tuple(self.categories))
        texts = (self.name, *self.categories)
        fits = all(isinstance(text, str) and text and is_unicode(text) for text in texts)
        if not fits or len(set(self.categories)) != len(self.categories):
            raise ContractError(f"covariate {shown(self.name)}: different texts required")
        if len(self.categories) > CATEGORIES_MOST:
            raise ContractError(
                f"covariate {shown(self.name)}: {len(self.categories)} categories, at most "
                f"{CATEGORIES_MOST} can be learnt from"
            )

    @property
    def is_number(self) -> bool:
        """Whether it is a number, and no category."""
        return not self.categories

    def text(self, value: float) -> str:
        """A record's number as text: a category by its name, "" where it is not known."""
        if math.isnan(value):
            return ""
        return str(as_value(value)) if self.is_number else self.categories[int(value)]

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        kind = "number" if self.is_number else "category"
        return {"name": self.name, "kind": kind, "categories": list(self.categories)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, where: str = "covariates.") -> Covariate:
        """Reads `to_json`'s object.

        Raises:
          ContractError: a field is missing, unknown or no value that it can have.
        """
        require_kinds(data, _KINDS, where=where)
        require_known(data, _KINDS, where=where)
        if (data["kind"] == "number") == bool(data["categories"]):
            raise ContractError(f"{where}categories: some of a category, none of a number required")
        try:
            return cls(name=data["name"], categories=tuple(data["categories"]))
        except ContractError as error:
            raise ContractError(f"{where}{error}") from error


_KINDS: dict[str, Kind] = {"name": str, "kind": OneOf(KINDS), "categories": ListOf(str)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenCovariates(PatientColumn[tuple[float, ...]]):
    """What a CSV says of each patient, as numbers of a record.

    Attributes:
      covariates: what the numbers are of, in their order.
      strange: covariate to cells of no known category, and in how many rows each stands.
      rounded: covariate to what becomes of its numbers, where they have more digits than are kept.
    """

    covariates: tuple[Covariate, ...] = ()
    strange: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    rounded: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the covariates."""
        return tuple(one.name for one in self.covariates)

    @property
    def unknown(self) -> tuple[float, ...]:
        """Of a patient whom the CSV does not list."""
        return (math.nan,) * len(self.covariates)


def read_covariates(
    text: str,
    *,
    name: str,
    id_columns: Sequence[str],
    columns: Sequence[str] = (),
    covariates: Sequence[Covariate] | None = None,
    learnt: bool = True,
) -> GivenCovariates:
    """Reads a CSV of covariates; an empty cell means unknown.

    Messages name lines, not patients: they are shown in `hmac` runs too.

    Args:
      text: the CSV, with a header row.
      name: what to call it in messages.
      id_columns: columns of patient ids; the first that is there is read.
      columns: those wanted, `age,sex,site:category`: of numbers or of categories, where nothing
        is said as what stands in them. Of no use where `covariates` are given.
      covariates: known ones, in whose order the numbers come; a category that is none of theirs
        is unknown, and told.
      learnt: refuse columns that are the same for all patients, or known of none: they may stand in
        a dataset that is predicted, and nothing can be learnt from them.

    Raises:
      UsageError: not a CSV, a column is not there, an id is empty or stands twice, or a column
        holds what nothing can be learnt from; the message says what to do.
    """
    source = f"covariates {name}"
    kinds: dict[str, str] = {}
    if covariates is None:
        header = read_columns(text, source, id_columns, ()).header
        wanted = [_kind_of(column, header) for column in names_among(columns, header)]
        kinds = dict(wanted)
        names = tuple(column for column, _ in wanted)
        try:
            require_names(names, "covariates")
        except ValueError as error:
            raise UsageError(f"{source}: {error}") from error
        if not 0 < len(names) <= COVARIATES_MOST:
            raise UsageError(
                f"{source}: 1 to {COVARIATES_MOST} columns required, {len(names)} named"
            )
        for column in names:
            if column not in header and ":" in column:
                raise UsageError(f"{source}: column {column}: a kind is {' or '.join(KINDS)}")
    else:
        names = tuple(one.name for one in covariates)
    table = read_columns(text, source, id_columns, names, normalised_id)
    table.require_apart()
    if not table.rows:
        raise UsageError(f"{source} hold no patient")
    try:
        known = covariates or _detected(table, kinds, learnt=learnt)
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from error
    strange = {one.name: Counter[str]() for one in known}
    found = table.values(
        lambda cells: tuple(
            _number_of(cell, one, strange[one.name]) for cell, one in zip(cells, known, strict=True)
        )
    )
    try:
        said = _rounded(table, known) if covariates is None and learnt else {}
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from error
    return GivenCovariates(
        by_spelling=found,
        source=source,
        covariates=tuple(known),
        strange={column: cells for column, cells in strange.items() if cells},
        rounded=said,
    )


def _kind_of(column: str, header: Sequence[str]) -> tuple[str, str]:
    """`site:category` as ("site", "category"), `age` as ("age", "")."""
    name, _, kind = column.rpartition(":")
    return (name, kind) if column not in header and kind in KINDS else (column, "")


def _detected(
    table: PatientTable, kinds: Mapping[str, str], *, learnt: bool
) -> tuple[Covariate, ...]:
    """What stands in the columns.

    Raises:
      ValueError: it cannot be learnt from; the message names the column.
    """
    found = []
    for place, name in enumerate(table.columns):
        lines: dict[str, int] = {}  # each cell once, with its first line
        for line, _, row in table.rows:
            lines.setdefault(row[place], line)
        cells = [(line, cell) for cell, line in lines.items() if not is_unknown(cell)]
        try:
            if learnt:
                _require_different(cells)
            found.append(_covariate_of(name, cells, kinds.get(name, "")))
        except ValueError as error:
            raise ValueError(f"column {name}: {error}") from error
    return tuple(found)


def _rounded(table: PatientTable, covariates: Sequence[Covariate]) -> dict[str, str]:
    """Of each number what becomes of it, where a float32 does not keep all of its digits.

    Raises:
      ValueError: what tells patients apart would be lost; the message names the column.
    """
    said = {}
    for place, one in enumerate(covariates):
        cells = {row[place] for _, _, row in table.rows if one.is_number}
        try:
            values = {value_of(cell, one.name) for cell in cells if not is_unknown(cell)}
            said[one.name] = rounded(values)
        except ValueError as error:
            raise ValueError(f"column {one.name}: {error}") from error
    return {name: text for name, text in said.items() if text}


def _require_different(cells: Sequence[tuple[int, str]]) -> None:
    if not cells:
        raise ValueError("known of no patient: leave it out")
    if len({name_of(cell) for _, cell in cells}) == 1:
        raise ValueError(f"{shown(cells[0][1])} of all patients: leave it out")


def _covariate_of(name: str, cells: Sequence[tuple[int, str]], kind: str) -> Covariate:
    numbers = [(line, cell) for line, cell in cells if is_number(cell)]
    names = sorted({name_of(cell) for _, cell in cells})
    if not kind and numbers and len(numbers) < len(cells):
        line, text = next((line, cell) for line, cell in cells if not is_number(cell))
        raise ValueError(
            f"numbers ({shown(numbers[0][1])}) and texts ({shown(text)} in line {line}) are "
            f"mixed: correct them, or {name}:category takes all as names"
        )
    if kind == "number" or not cells or (not kind and numbers):
        return Covariate(name=name)
    require_names(names, "categories")
    if len(names) > CATEGORIES_MOST:
        raise ValueError(
            f"{len(names)} categories, of at most {CATEGORIES_MOST} can be learnt: leave it out, "
            "or bring some together"
        )
    return Covariate(name=name, categories=tuple(names))


def _number_of(cell: str, covariate: Covariate, strange: Counter[str]) -> float:
    if is_unknown(cell):
        return math.nan
    if covariate.is_number:
        return as_value(value_of(cell, covariate.name))
    if (name := name_of(cell)) in covariate.categories:
        return float(covariate.categories.index(name))
    strange[name] += 1
    return math.nan
