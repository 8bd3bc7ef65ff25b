"""What is predicted of a patient: a class, several findings, or a value; and how a label says it.

task         labels (columns)   label of a patient          a network's outputs
-----------  -----------------  --------------------------  -------------------------------
binary       one                0 or 1                      1 logit, of class 1
multiclass   one                index of a class            a logit a class
multilabel   several            0, 1 or unknown, of each    a logit a label
regression   one                a finite float32            1 value, in the label's unit
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from beam_jobs.common.contract_json import (
    ContractError,
    Kind,
    OneOf,
    is_unicode,
    require_kinds,
    require_known,
    require_that,
    shown,
)

TASKS = ("binary", "multiclass", "multilabel", "regression")
# Of a patient: a class's index, a value, or of several labels 0, 1 or None (unknown) each.
Label = int | float | tuple[int | None, ...]
UNKNOWN = -1  # in a record: of several labels one that is not known
OUTPUTS_MOST = 1000
# The most that a number may move where it is stored, as a share of the range of all.
_ROUNDING_MOST = 1e-3
# A whole or decimal number as a class is named.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)", re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What the labels of a dataset say.

    Attributes:
      task: one of `TASKS`.
      labels: names of the labels' columns, several of a multilabel, one of others; () where
        nothing is said: labels are 0 and 1, as in all datasets of record version 1.
      classes: names in the order of their indices, of a binary (two) or a multiclass; () of a
        binary whose classes are 0 and 1, and of the other tasks.
      unit: of values; "" where it is not said, and of the other tasks.

    Raises:
      ContractError: values that no target can have.
    """

    task: str = "binary"
    labels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        for name in ("labels", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        counts = {
            "binary": (range(2), (0, 2)),
            "multiclass": (range(1, 2), range(3, OUTPUTS_MOST + 1)),
            "multilabel": (range(2, OUTPUTS_MOST + 1), (0,)),
            "regression": (range(1, 2), (0,)),
        }
        if self.task not in counts:
            raise ContractError(f"task {shown(self.task)}: one of {', '.join(TASKS)} required")
        for name, allowed in zip(("labels", "classes"), counts[self.task], strict=True):
            texts = getattr(self, name)
            if len(texts) not in allowed:
                raise ContractError(f"{len(texts)} {name} of a {self.task} target")
            fits = all(isinstance(text, str) and text and is_unicode(text) for text in texts)
            if not fits or len(set(texts)) != len(texts):
                raise ContractError(f"{name} must be different texts: {shown(texts)}")
        if self.unit and (self.task != "regression" or not is_unicode(self.unit)):
            raise ContractError(f"unit {shown(self.unit)} of a {self.task} target")

    @property
    def is_plain(self) -> bool:
        """Whether labels are 0 and 1, and nothing more is said of them."""
        return self == PLAIN

    @property
    def outputs(self) -> int:
        """How many numbers a network answers."""
        counts = {"multiclass": len(self.classes), "multilabel": len(self.labels)}
        return counts.get(self.task, 1)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes, or of the labels of a multilabel; () of a regression."""
        if self.task == "regression":
            return ()
        return self.labels if self.task == "multilabel" else self.classes or ("0", "1")

    def columns(self, kind: str) -> tuple[str, ...]:
        """What tables call a number of each output: `logit` of one, else `logit_<name>` each."""
        return (kind,) if self.outputs == 1 else tuple(f"{kind}_{name}" for name in self.names)

    @property
    def label_columns(self) -> tuple[str, ...]:
        """What tables call a patient's label: `label`, or `label_<name>` of each finding."""
        return self.columns("label") if self.task == "multilabel" else ("label",)

    @property
    def is_ordered(self) -> bool:
        """Whether the classes are numbers in rising order, such as grades."""
        if not self.classes or not all(_NUMBER.fullmatch(name) for name in self.classes):
            return False
        return bool((np.diff([float(name) for name in self.classes]) > 0).all())

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        data = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in data.items()}  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, where: str = "target.") -> Target:
        """Reads `to_json`'s object.

        Raises:
          ContractError: a field is missing, unknown or no value that it can have.
        """
        require_kinds(data, _KINDS, where=where)
        require_known(data, _KINDS, where=where)
        try:
            return cls(**data)
        except ContractError as error:
            raise ContractError(f"{where}{error}") from error

    def label_to_json(self, label: Label | None) -> Any:
        """A label as it stands in a manifest: a number, a list of 0, 1 and null, or null."""
        return list(label) if isinstance(label, tuple) else label

    def label_of_json(self, value: Any, *, where: str = "") -> Label | None:
        """Reads `label_to_json`'s value.

        Raises:
          ContractError: no label of this target; the message says what is required.
        """
        data = {"label": value}
        if value is None:
            return None
        whole = isinstance(value, int) and not isinstance(value, bool)
        if self.task == "regression":
            fits = (whole or isinstance(value, float)) and math.isfinite(value)
            require_that(fits, data, "label", "a finite number or null", where=where)
            return as_value(value)
        if self.task == "multilabel":
            fits = isinstance(value, list) and len(value) == len(self.labels)
            fits = fits and all(one is None or (type(one) is int and one in (0, 1))
                                for one in value)  # fmt: skip
            required = f"a list of {len(self.labels)} of 0, 1 and null, or null"
            require_that(fits, data, "label", required, where=where)
            return tuple(value)
        classes = max(2, len(self.classes))
        required = "0, 1 or null" if classes == 2 else f"0 to {classes - 1} or null"
        require_that(whole and 0 <= value < classes, data, "label", required, where=where)
        return int(value)

    def stored(self, label: Label) -> list[int] | list[float]:
        """A label as the numbers of a record's feature: floats of a regression, else integers."""
        if isinstance(label, tuple):
            return [UNKNOWN if one is None else one for one in label]
        return [float(label)] if self.task == "regression" else [int(label)]

    def label_of_stored(self, numbers: list[int] | list[float]) -> Label:
        """Reads `stored`'s numbers.

        Raises:
          ContractError: no label of this target.
        """
        values: list[Any] = [None if one == UNKNOWN else one for one in numbers]
        value: Any = values if self.task == "multilabel" else None
        if self.task != "multilabel":
            if len(numbers) != 1:
                raise ContractError(f"label: {len(numbers)} values found, one required")
            value = as_value(numbers[0]) if self.task == "regression" else numbers[0]
        label = self.label_of_json(value)
        assert label is not None
        return label

    def text(self, label: Label | None) -> str:
        """A label in words: a class's name, "edema, haemorrhage", "12.5 mm", or "none"."""
        if label is None:
            return "none" if "none" not in self.names else "not known"  # some classes are called so
        if isinstance(label, tuple):
            found = [name for name, one in zip(self.labels, label, strict=True) if one]
            return ", ".join(found) or ("none known" if None in label else "none of them")
        if self.task == "regression":
            return f"{_digits(float(label))} {self.unit}".rstrip()
        return self.names[int(label)]


# Labels of 0 and 1 of which nothing more is said: all of record version 1.
PLAIN = Target()


def rounded(values: Collection[float]) -> str:
    """What becomes of numbers that have more digits than a float32 keeps (dates: 20231123).

    Args:
      values: numbers, as a CSV has them.

    Returns:
      In words, for one of them; "" where whole numbers stay what they are.

    Raises:
      ValueError: what tells them apart would be lost; the message says what to do.
    """
    off = {value: abs(as_value(value) - value) for value in sorted(values)}
    worst = max(off, key=off.__getitem__, default=0.0)
    if off and off[worst] > _ROUNDING_MOST * (max(values) - min(values)):
        raise ValueError(
            f"a float32 keeps seven digits, {_digits(worst)} as {_digits(as_value(worst))}: "
            "subtract what all have in common (of dates, count the days since one), or scale them"
        )
    if not off or off[worst] < 1 or abs(worst) >= 1e15:  # no count or date is as great
        return ""
    return f"{_digits(worst)} is stored as {_digits(as_value(worst))}, a float32"


def _digits(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def as_value(number: float) -> float:
    """The shortest decimal of a float32: what a record holds, as the text of a manifest has it."""
    return float(str(np.float32(number)))


_KINDS: dict[str, Kind] = {"task": OneOf(TASKS), "labels": list, "classes": list, "unit": str}
