"""Which task labels are of: what a user says, else what stands in their columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from beam_jobs.common.contract_json import ContractError, shown
from beam_jobs.core.cohort.patient_column import (
    is_number,
    is_unknown,
    name_of,
    names_among,
    require_names,
    value_of,
)
from beam_jobs.core.cohort.target import (
    OUTPUTS_MOST,
    PLAIN,
    TASKS,
    Label,
    Target,
    as_value,
    rounded,
)

AUTO = "auto"
TASK_CHOICES = (AUTO, *TASKS)
CLASSES_BY_NUMBER = 10  # whole numbers of more different values are taken for values
_LISTED = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a user says of labels.

    Attributes:
      task: one of `TASK_CHOICES`.
      classes: names in the order of their indices; () sorts them.
      unit: of values; "" where it is not said.
    """

    task: str = AUTO
    classes: tuple[str, ...] = ()
    unit: str = ""


def target_of(
    columns: Sequence[str], cells: Sequence[tuple[int, tuple[str, ...]]], wanted: Wanted
) -> Target:
    """What the labels in these columns say.

    Args:
      columns: their names.
      cells: (line number, a cell a column) of each patient.
      wanted: what the user says.

    Raises:
      ValueError: they cannot be what the user says, or it is not clear what they are; the message
        says what to do.
    """
    first: list[dict[str, int]] = [{} for _ in columns]
    for line, row in cells:
        for lines, cell in zip(first, row, strict=True):
            lines.setdefault(cell, line)
    # Each cell once, with its first line.
    known = [
        [(line, cell) for cell, line in lines.items() if not is_unknown(cell)] for lines in first
    ]
    if not any(known):
        raise ValueError("no labelled patient")
    if len(columns) > 1 or wanted.task == "multilabel":
        return _multilabel(columns, known, wanted)
    (column,), (found,) = columns, known
    task = wanted.task
    if wanted.classes and task == "regression":
        raise ValueError("--classes names classes, --task regression has none")
    if task == "regression" or (task == AUTO and not wanted.classes and _are_values(found)):
        return _regression(column, found, wanted)
    if wanted.unit:
        raise ValueError(
            f"--label_unit is of values, and these are classes{_listed(found)}; --task regression "
            "takes them as values"
        )
    return _classes(column, found, wanted)


def _listed(found: Sequence[tuple[int, str]]) -> str:
    names = _sorted({name_of(cell) for _, cell in found})
    more = ", ..." if len(names) > _LISTED else ""
    return f" ({shown(', '.join(names[:_LISTED]))[1:-1]}{more})"


def _sorted(names: set[str]) -> list[str]:
    """Numbers by value, else as texts."""
    numbers = all(map(is_number, names))
    return sorted(names, key=(lambda name: (float(name), name)) if numbers else None)


def _are_values(found: Sequence[tuple[int, str]]) -> bool:
    """Whether numbers are values and no classes.

    Raises:
      ValueError: there are texts too, or a number cannot be one.
    """
    texts = [(line, cell) for line, cell in found if not is_number(cell)]
    if len(texts) == len(found):
        return False
    if texts:
        line, cell = texts[0]
        amid = next(cell for _, cell in found if is_number(cell))
        raise ValueError(
            f"numbers ({shown(amid)}) and texts ({shown(cell)} in line {line}) are mixed: correct "
            "them, or --task multiclass takes all as names of classes"
        )
    for line, cell in found:
        try:
            value_of(cell, "the label")
        except ValueError as error:
            raise ValueError(f"line {line}: {error}") from error
    names = {name_of(cell) for _, cell in found}
    whole = all(float(name).is_integer() for name in names)
    return len(names) > 2 and (not whole or len(names) > CLASSES_BY_NUMBER)


def _regression(column: str, found: Sequence[tuple[int, str]], wanted: Wanted) -> Target:
    values: set[float] = set()
    for line, cell in found:
        try:
            values.add(value_of(cell, "the label"))
        except ValueError as error:
            raise ValueError(f"line {line}: {error}") from error
    if len(values) == 1:
        raise ValueError(f"all labels are {found[0][1]}: nothing can be learnt of one value")
    rounded(values)
    require_names([column, wanted.unit or column], "columns and units")
    return Target(task="regression", labels=(column,), unit=wanted.unit)


def _multilabel(
    columns: Sequence[str], known: Sequence[Sequence[tuple[int, str]]], wanted: Wanted
) -> Target:
    if wanted.task not in (AUTO, "multilabel"):
        raise ValueError(
            f"{len(columns)} columns of labels are a multilabel, and --task says {wanted.task}: "
            "name one column, or --task multilabel"
        )
    if len(columns) < 2:
        raise ValueError("--task multilabel needs several --label_column; one is a binary")
    if wanted.classes or wanted.unit:
        flag = "--classes" if wanted.classes else "--label_unit"
        raise ValueError(f"{flag} is not of a multilabel, whose labels are 0, 1 or empty")
    if len(columns) > OUTPUTS_MOST:
        raise ValueError(f"{len(columns)} labels, at most {OUTPUTS_MOST} can be learnt")
    require_names(columns, "labels")
    for column, found in zip(columns, known, strict=True):
        kinds = set()
        for line, cell in found:
            try:
                kinds.add(_finding(column, cell))
            except ValueError as error:
                raise ValueError(f"line {line}: {error}") from error
        if len(kinds) < 2:
            why = f"{kinds.pop()} in all patients" if kinds else "known of no patient"
            raise ValueError(f"label {column} is {why}: leave its column out")
    return Target(task="multilabel", labels=tuple(columns))


def _classes(column: str, found: Sequence[tuple[int, str]], wanted: Wanted) -> Target:
    names = {name_of(cell) for _, cell in found}
    order = tuple(map(name_of, names_among(wanted.classes, list(names))))
    if order:
        _require_order(order, names, found)
    task = wanted.task
    if names <= {"0", "1"} and task in (AUTO, "binary") and order in ((), ("0", "1")):
        return PLAIN
    if len(names) == 1:
        raise ValueError(f"all labels are {shown(found[0][1])}: nothing can be learnt of one class")
    if task == "binary" and len(names) > 2:
        raise ValueError(
            f"{len(names)} classes{_listed(found)}, a binary has two: --task multiclass"
        )
    if task == "multiclass" and len(names) == 2:
        raise ValueError(
            f"two classes{_listed(found)}: --task binary, of which a multiclass is one"
        )
    if len(names) > OUTPUTS_MOST:
        raise ValueError(
            f"{len(names)} classes{_listed(found)}, at most {OUTPUTS_MOST} can be learnt: is "
            f"{column} the column of labels?"
        )
    require_names([column], "columns")
    require_names(sorted(names), "classes")
    try:
        return Target(
            task="binary" if len(names) == 2 else "multiclass",
            labels=(column,),
            classes=order or tuple(_sorted(names)),
        )
    except ContractError as error:
        raise ValueError(str(error)) from error


def _require_order(
    order: tuple[str, ...], names: set[str], found: Sequence[tuple[int, str]]
) -> None:
    if len(set(order)) < len(order):
        raise ValueError("--classes names a class twice")
    if order == ("1", "0"):  # a submission's column and labels elsewhere do not say so
        raise ValueError(
            "--classes 1 0: of labels 0 and 1 the positive class is 1; write words in their place "
            "to have the other one positive"
        )
    for line, cell in found:
        if name_of(cell) not in order:
            raise ValueError(
                f"line {line}: the label is {shown(cell)}, which --classes {' '.join(order)} does "
                "not name"
            )
    # A binary of labels 0 and 1 may have one of them, as it may without --classes.
    missing = [name for name in order if name not in names and order != ("0", "1")]
    if missing:
        raise ValueError(f"--classes names {shown(missing[0])}, which no patient is of")


def reader_of(target: Target) -> Callable[[Sequence[str]], Label | None]:
    """What reads a patient's label from its cells, one a column of the target.

    Args:
      target: what labels say.

    Returns:
      Cells to label, None where nothing is known; it raises ValueError where the cells are no label
      of this target, and says what was found.
    """
    places = {name: place for place, name in enumerate(target.names)}

    def label_of(cells: Sequence[str]) -> Label | None:
        if target.task == "multilabel":
            found = tuple(map(_finding, target.labels, cells))
            return None if set(found) == {None} else found
        (cell,) = cells
        if is_unknown(cell):
            return None
        if target.task == "regression":
            return as_value(value_of(cell, "the label"))
        if (place := places.get(name_of(cell))) is None:
            raise ValueError(f"the label is {shown(cell)}, not {' or '.join(places)}")
        return place

    return label_of


def _finding(name: str, cell: str) -> int | None:
    if is_unknown(cell):
        return None
    if (value := name_of(cell)) not in ("0", "1"):
        raise ValueError(f"label {name} is {shown(cell)}, not 0, 1 or empty (unknown)")
    return int(value)


def said_of(
    target: Target, wanted: Wanted, cells: Sequence[tuple[int, tuple[str, ...]]] = ()
) -> str:
    """The choice in words, and how to choose otherwise; "" of labels 0 and 1.

    Args:
      target: what was chosen.
      wanted: what the user says.
      cells: those that it was chosen by; of values it is told where they are rounded.
    """
    if target.is_plain:
        return ""
    if target.task == "multilabel":
        return f"task: multilabel of {len(target.labels)} labels {', '.join(target.labels)}"
    if target.task == "regression":
        unit = f" in {target.unit}" if target.unit else ""
        other = "" if wanted.task != AUTO else "; --task multiclass takes them as classes"
        known = {value_of(cell, "") for _, (cell,) in cells if not is_unknown(cell)}
        stored = f"; {said}" if (said := rounded(known)) else ""
        return f"task: regression of {target.labels[0]}{unit}{other}{stored}"
    names = ", ".join(target.classes[:_LISTED])
    more = ", ..." if len(target.classes) > _LISTED else ""
    if target.task == "binary":
        said = f"task: binary, {target.classes[1]} (positive) against {target.classes[0]}"
        return said if wanted.classes else f"{said}; --classes orders them"
    chosen = wanted.task == AUTO and not wanted.classes and all(map(is_number, target.classes))
    other = "; --task regression takes them as values" if chosen else ""
    return f"task: multiclass of {len(target.classes)} classes {names}{more}{other}"
