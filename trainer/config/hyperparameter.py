"""What a search may choose: one of several values, or a number of a range, and where it counts.

Numbers have a place on a scale from 0 to 1: a ladder of rates is evenly spaced there, and so is a
range on its own scale. KerasTuner's hyperparameters can do no more and no less.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import shown

Value = str | float | int  # a bool is an int to Python, and not to `has`
Values = Mapping[str, Value]

LINEAR, LOG, REVERSE_LOG = "linear", "log", "reverse_log"
_POINTS = 10  # of a range without a step, in a grid; KerasTuner's number
# Digits of a number drawn from a range: messages in single precision carry six.
_DIGITS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """A hyperparameter means something only ...

    Attributes:
      parent: ... where an earlier one of this name ...
      when: ... has one of these values.
    """

    parent: str
    when: tuple[Value, ...]

    def holds(self, values: Values) -> bool:
        """Whether it does beside the choices made so far."""
        return self.parent in values and values[self.parent] in self.when


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hyperparameter(abc.ABC):
    """One of the choices of a search.

    Attributes:
      name: in the space's file, trials.csv and TensorBoard.
      place: of the value in `TrainConfig`'s JSON; empty where `Space.settings` puts it.
      conditions: all must hold, or nothing is chosen here.
    """

    name: str
    place: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def is_active(self, values: Values) -> bool:
        """Whether it means anything beside the choices made before it."""
        return all(condition.holds(values) for condition in self.conditions)

    @property
    def first(self) -> Value:
        """The value at the beginning of the scale; the only one where it is fixed."""
        return self.at(0.0)

    def has(self, value: object) -> bool:
        """Whether this is one of its values, to the digit and the type: true is not 1."""
        return type(value) is type(self.first) and self.exact(value) == value

    @property
    @abc.abstractmethod
    def size(self) -> float:
        """How many values there are; infinite for a range of fractions without a step."""

    @abc.abstractmethod
    def every(self) -> Iterator[Value]:
        """All values, where `size` is finite."""

    @abc.abstractmethod
    def grid(self) -> Iterator[Value]:
        """The values that a grid tries."""

    @property
    @abc.abstractmethod
    def ends(self) -> tuple[Value, ...]:
        """Values whose being allowed means that all are."""

    @abc.abstractmethod
    def at(self, share: float) -> Value:
        """The value at this share, 0 to 1, of the scale."""

    @abc.abstractmethod
    def share(self, value: Value) -> float:
        """Where a value lies on the scale, from 0 to 1."""

    @abc.abstractmethod
    def exact(self, value: Value) -> Value:
        """The value that is meant by one that lost digits on its way.

        Raises:
          UsageError: a name that is none of its values.
        """

    @abc.abstractmethod
    def text(self) -> str:
        """The values, for the terminal and the report."""

    @abc.abstractmethod
    def to_json(self) -> Any:
        """The values as the space's file has them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(Hyperparameter):
    """One of listed values.

    Attributes:
      values: those the search chooses from, all of one type; a single one is fixed.
      known: the only values there are; empty where any that trains will do.
    """

    values: tuple[Value, ...]
    known: tuple[str, ...] = ()

    @property
    def size(self) -> float:
        return len(self.values)

    def every(self) -> Iterator[Value]:
        return iter(self.values)

    def grid(self) -> Iterator[Value]:
        return iter(self.values)

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.values

    def at(self, share: float) -> Value:
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def share(self, value: Value) -> float:
        return self.values.index(value) / max(1, len(self.values) - 1)

    def has(self, value: object) -> bool:
        return any(type(one) is type(value) and one == value for one in self.values)

    def exact(self, value: Value) -> Value:
        if isinstance(value, str | bool):
            if not self.has(value):
                raise UsageError(f"{self.name}: {value!r} is not in the space")
            return value
        return min(self.values, key=lambda one: abs(float(one) - float(value)))

    def text(self) -> str:
        return ", ".join(text_of(value) for value in self.values)

    def to_json(self) -> Any:
        return list(self.values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range(Hyperparameter):
    """A number between two others, both included.

    Attributes:
      low: the least.
      high: the greatest; above `low`.
      step: of what is drawn from `low` on: added on a linear scale, else a factor above 1. None:
        any fraction; of whole numbers on a linear scale every one, which is a step of 1.
      scale: how draws are spread: "linear"; "log", as many between 1 and 10 as between 10 and 100;
        "reverse_log", which is dense at its upper end. KerasTuner's `sampling`.
      kind: int or float, of all its values.

    Raises:
      UsageError: there is no such range.
    """

    low: float
    high: float
    step: float | None = None
    scale: str = LINEAR
    kind: type[int] | type[float] = float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UsageError(f"{self.name}: min {self.low:g} must be less than max {self.high:g}")
        if self.scale != LINEAR and not self.low > 0:
            raise UsageError(f"{self.name}: min must be above 0 on a log scale: {self.low:g}")
        far = self.high - self.low if self.scale == LINEAR else self.high / self.low
        if not math.isfinite(far):
            raise UsageError(
                f"{self.name}: min {self.low:g} and max {self.high:g} are too far apart"
            )
        if self.step is None and self.kind is int and self.scale == LINEAR:
            object.__setattr__(self, "step", 1)
        if self.step is not None:
            least = 0 if self.scale == LINEAR else 1
            if not self.step > least:
                factor = "" if self.scale == LINEAR else ", it is a factor on a log scale"
                raise UsageError(f"{self.name}: step must be above {least}{factor}: {self.step:g}")
            if not math.isfinite(self._steps(self.high)):
                raise UsageError(f"{self.name}: step {self.step:g} is too small")
            if self._count() < 2:
                raise UsageError(
                    f"{self.name}: a step of {self.step:g} leaves {self.low:g} alone below "
                    f"{self.high:g}"
                )
        for name in ("low", "high", "step"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, self.kind(value))

    @property
    def size(self) -> float:
        if self.step is not None:
            return self._count()
        return math.inf if self.kind is float else self.high - self.low + 1

    def every(self) -> Iterator[Value]:
        if self.step is None:
            return iter(range(int(self.low), int(self.high) + 1))
        return map(self._stepped, range(self._count()))

    def grid(self) -> Iterator[Value]:
        if self.step is not None:
            return self.every()
        points = (self.at((place + 0.5) / _POINTS) for place in range(_POINTS))
        return iter(dict.fromkeys(points))

    @property
    def ends(self) -> tuple[Value, ...]:
        return (self.low, self.high)

    def at(self, share: float) -> Value:
        if self.step is not None:
            return self._stepped(min(int(share * self._count()), self._count() - 1))
        if self.kind is int:  # each whole number has a part of the scale, the last one too
            return min(int(self._scaled(share, self.high + 1)), int(self.high))
        return self.exact(self._scaled(share, self.high))

    def share(self, value: Value) -> float:
        number = min(max(float(value), self.low), self.high)
        if self.scale == LINEAR:
            return (number - self.low) / (self.high - self.low)
        whole = math.log(self.high / self.low)
        if self.scale == LOG:
            return math.log(number / self.low) / whole
        return min(1.0, 1 - math.log((self.high + self.low - number) / self.low) / whole)

    def exact(self, value: Value) -> Value:
        number = min(max(float(value), self.low), self.high)
        if self.step is not None:
            return self._stepped(min(round(self._steps(number)), self._count() - 1))
        if self.kind is int:
            return round(number)
        return min(max(float(f"{number:.{_DIGITS}g}"), self.low), self.high)

    def text(self) -> str:
        text = f"{text_of(self.low)} to {text_of(self.high)}"
        if self.scale != LINEAR:
            text += ", log" if self.scale == LOG else ", log from above"
        if self.step is not None and (self.kind is float or self.step != 1):
            text += (
                f", step {text_of(self.step)}"
                if self.scale == LINEAR
                else (f", factor {text_of(self.step)}")
            )
        return text

    def to_json(self) -> Any:
        told: dict[str, Any] = {"min": self.low, "max": self.high}
        if self.step is not None:
            told["step"] = self.step
        if self.scale != LINEAR:
            told[self.scale] = True
        return told

    def _scaled(self, share: float, high: float) -> float:
        """The number at a share of the scale that ends at `high`."""
        if self.scale == LINEAR:
            return self.low + share * (high - self.low)
        if self.scale == LOG:
            return self.low * math.pow(high / self.low, share)
        return high + self.low - self.low * math.pow(high / self.low, 1 - share)

    def _steps(self, number: float) -> float:
        """How many steps a number lies from `low`, for a reversed scale from `high`."""
        assert self.step is not None
        if self.scale == LINEAR:
            return (number - self.low) / self.step
        if self.scale == REVERSE_LOG:
            number = self.high + self.low - number
        return math.log(number / self.low) / math.log(self.step)

    def _count(self) -> int:
        """How many stepped values there are, the last too where it is `high` but for rounding."""
        far = self.low if self.scale == REVERSE_LOG else self.high
        return math.floor(self._steps(far) + 1e-9) + 1

    def _stepped(self, place: int) -> Value:
        assert self.step is not None
        if self.scale == LINEAR:
            number = self.low + place * self.step
        else:
            number = self.low * self.step**place
            if self.scale == REVERSE_LOG:
                number = self.high + self.low - number
        if self.kind is int:
            return round(number)
        return min(max(float(f"{number:.12g}"), self.low), self.high)


def narrowed_range(setting: Hyperparameter, requested: Mapping[str, Any], kind: type) -> Range:
    """The range that a JSON object of a space's file means.

    Args:
      setting: whose name, place and conditions it gets.
      requested: "min", "max", and where wanted "step" and "log".
      kind: of its numbers.

    Raises:
      UsageError: no such range.
    """
    name, known = setting.name, ("min", "max", "step", "log")
    if unknown := [key for key in requested if key not in known]:
        raise UsageError(f"{name}: a range has min, max, step and log, not {', '.join(unknown)}")
    if kind not in (int, float):
        raise UsageError(f"{name}: names have no range; list them")
    if missing := [key for key in ("min", "max") if key not in requested]:
        raise UsageError(f"{name}: a range needs {' and '.join(missing)}")
    log = requested.get("log", False)
    if not isinstance(log, bool):
        raise UsageError(f"{name}: log must be true or false: {shown(log)}")
    numbers = {key: requested[key] for key in known[:3] if requested.get(key) is not None}
    for key, number in numbers.items():
        fits = isinstance(number, int if kind is int else int | float)
        if isinstance(number, bool) or not fits:
            whole = " without a fraction" if kind is int else ""
            raise UsageError(f"{name}: {key} {shown(number)} is not a number{whole}")
    if missing := [key for key in ("min", "max") if key not in numbers]:
        raise UsageError(f"{name}: {missing[0]} must be a number: null")
    return Range(
        name=name,
        place=setting.place,
        conditions=setting.conditions,
        low=numbers["min"],
        high=numbers["max"],
        step=numbers.get("step"),
        scale=LOG if log else LINEAR,
        kind=kind,
    )


def combinations(
    choices: tuple[Hyperparameter, ...], *, grid: bool = False
) -> Iterator[dict[str, Value]]:
    """Every combination once, the last choices changing fastest; inactive ones are left out.

    Args:
      choices: parents before their children.
      grid: the values that a grid tries; else all that there are.
    """

    def extend(values: dict[str, Value], place: int) -> Iterator[dict[str, Value]]:
        if place == len(choices):
            yield values
            return
        first = choices[place]
        if not first.is_active(values):
            yield from extend(values, place + 1)
            return
        yield from itertools.chain.from_iterable(
            extend({**values, first.name: value}, place + 1)
            for value in (first.grid() if grid else first.every())
        )

    return extend({}, 0)


def text_of(value: Value) -> str:
    """A value for people."""
    return f"{value:g}" if isinstance(value, float) else str(value)
