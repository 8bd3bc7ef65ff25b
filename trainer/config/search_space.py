"""The choices of one study: how many there are, which are made, and the settings they stand for."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.config.augment import AugmentConfig
from trainer.config.hyperparameter import (
    Condition,
    Hyperparameter,
    Range,
    Value,
    Values,
    combinations,
)

_NEAR = 0.1  # chance that a name, or a listed value, is drawn anew for a neighbour


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """The choices of one study, on one dataset.

    Attributes:
      choices: parents before their children; those that can never be active are gone. A name may
        stand there twice, under conditions that exclude each other.
      modalities: the dataset's.
    """

    choices: tuple[Hyperparameter, ...]
    modalities: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all choices, each once."""
        return tuple(dict.fromkeys(choice.name for choice in self.choices))

    @property
    def searched(self) -> tuple[Hyperparameter, ...]:
        """The choices that are left to make."""
        return tuple(choice for choice in self.choices if choice.size > 1)

    @property
    def has_ranges(self) -> bool:
        """Whether any choice is a number of a range."""
        return any(isinstance(choice, Range) for choice in self.choices)

    def count(self, *, grid: bool = False) -> float:
        """How many combinations there are, choices that mean nothing counted out.

        Args:
          grid: of the values that a grid tries; else of all: infinite with a range of fractions.
        """
        return _count(self.choices, {}, grid=grid)

    def size_text(self, *, grid: bool) -> str:
        """`count` for people."""
        count = self.count(grid=grid)
        return "unlimited combinations" if math.isinf(count) else f"{count:,} combinations"

    def combinations(self, *, grid: bool = False) -> Iterator[dict[str, Value]]:
        """Every combination once, the last choices changing fastest; inactive ones are left out."""
        return combinations(self.choices, grid=grid)

    def chosen(self, values: Values) -> dict[str, Value]:
        """Of complete values those that were left to choose."""
        return {c.name: values[c.name] for c in self.searched if c.is_active(values)}

    def drawn(self, rng: random.Random) -> dict[str, Value]:
        """A combination, each choice evenly from its scale."""
        full: dict[str, Value] = {}
        for choice in self.choices:
            if choice.is_active(full):
                full[choice.name] = choice.at(rng.random() if choice.size > 1 else 0.0)
        return full

    def near(self, values: Values, rng: random.Random, width: float) -> dict[str, Value]:
        """A neighbour of a combination.

        Args:
          values: the combination, complete.
          rng: draws.
          width: deviation of a number of a range from its old place, as a share of its scale.
        """
        full: dict[str, Value] = {}
        for choice in self.choices:
            if not choice.is_active(full):
                continue
            if choice.name not in values or not choice.has(values[choice.name]):
                share = rng.random()
            elif isinstance(choice, Range):
                share = choice.share(values[choice.name]) + rng.gauss(0, width)
            elif choice.size > 1 and rng.random() < _NEAR:
                share = rng.random()
            else:
                full[choice.name] = values[choice.name]
                continue
            full[choice.name] = choice.at(min(max(share, 0.0), 1.0))
        return full

    def complete(self, values: Values) -> dict[str, Value]:
        """Values with the fixed ones among them, in the space's order, each to the digit.

        KerasTuner's messages carry numbers in single precision; the nearest one there is is meant.

        Raises:
          KeyError: a choice that is left to make is not among them.
        """
        full: dict[str, Value] = {}
        for choice in self.choices:
            if choice.is_active(full):
                fixed = choice.size == 1
                full[choice.name] = choice.first if fixed else choice.exact(values[choice.name])
        return full

    def has(self, name: str, value: object) -> bool:
        """Whether a choice that is left to make has this value, to the digit and the type."""
        return any(choice.name == name and choice.has(value) for choice in self.searched)

    def settings(self, values: Values) -> dict[str, Any]:
        """Complete values as settings of a run, in parts, as `TrainConfig.from_json` reads them."""
        settings: dict[str, Any] = {}
        for choice in self.choices:
            if choice.place and choice.is_active(values):
                below = settings
                for part in choice.place[:-1]:
                    found = below.get(part, {})
                    # The name of a preset, of which an amount is another one here.
                    named = (
                        AugmentConfig.named(found).to_json() if isinstance(found, str) else found
                    )
                    below[part] = named
                    below = named
                below[choice.place[-1]] = values[choice.name]
        fusion = values.get("fusion", "early")
        settings.setdefault("network", {})["fusion"] = "late" if fusion == "late" else "early"
        chosen = [values["modality"]] if fusion == "single" else self.modalities
        settings["modalities"] = [str(name) for name in chosen]
        return settings

    def where(self, choice: Hyperparameter) -> str:
        """Beside what a choice means anything, in words; empty where beside everything."""
        told = []
        for condition in choice.conditions:
            parents = [one for one in self.choices if one.name == condition.parent]
            own = [v for v in condition.when if any(one.has(v) for one in parents)]
            if len(own) < sum(one.size for one in parents):
                told.append(f"{condition.parent} is {_listed(own)}")
        return " and ".join(told)

    def rows(self) -> list[tuple[str, str]]:
        """What is searched: each hyperparameter's name, and its values for the terminal."""
        described = []
        for choice in self.choices:
            fixed = "  (fixed)" if choice.size == 1 else ""
            where = self.where(choice)
            described.append(
                (choice.name, f"{choice.text()}{fixed}{f'  (where {where})' if where else ''}")
            )
        return described

    def to_json(self) -> dict[str, Any]:
        """A JSON object that identifies this space among others."""
        told: dict[str, Any] = {}
        for choice in self.choices:
            name = choice.name
            if name in told:
                name = f"{name} where {self.where(choice)}"
            told[name] = choice.to_json()
        return told


def _listed(values: Sequence[Value]) -> str:
    """ "a or b"; whole numbers without a gap, of which a loop asks for many, are "2 to 9"."""
    whole = [value for value in values if type(value) is int]
    if len(whole) == len(values) > 3 and whole == list(range(whole[0], whole[0] + len(whole))):
        return f"{whole[0]} to {whole[-1]}"
    return " or ".join(map(str, values))


def usable(choices: Sequence[Hyperparameter]) -> tuple[Hyperparameter, ...]:
    """Choices without those of whose conditions one can never hold."""
    kept: list[Hyperparameter] = []
    for choice in choices:
        if all(_may_hold(condition, kept) for condition in choice.conditions):
            kept.append(choice)
    return tuple(kept)


def _may_hold(condition: Condition, before: Sequence[Hyperparameter]) -> bool:
    parents = [one for one in before if one.name == condition.parent]
    return any(one.has(value) for one in parents for value in condition.when)


def _count(choices: Sequence[Hyperparameter], values: Mapping[str, Any], *, grid: bool) -> float:
    """Combinations of choices beside those made; independent ones are multiplied, not walked.

    A chosen value that no condition asks for is None: it stands for all such.
    """
    open_: list[Hyperparameter] = []
    for choice in choices:
        names = {one.name for one in open_}
        if all(
            condition.holds(values) if condition.parent in values else condition.parent in names
            for condition in choice.conditions
        ):
            open_.append(choice)
    total: float = 1
    for first, *rest in _independent(open_):
        # A grid of steps is all there is, however many they are; of the others it has ten points.
        few = grid and isinstance(first, Range) and first.step is None
        own = list(first.grid()) if few else None
        size = first.size if own is None else len(own)
        asked = {
            value
            for choice in rest
            for condition in choice.conditions
            if condition.parent == first.name
            for value in condition.when
            if (first.has(value) if own is None else value in own)
        }
        found = sum(_count(rest, {**values, first.name: value}, grid=grid) for value in asked)
        if size > len(asked):
            found += (size - len(asked)) * _count(rest, {**values, first.name: None}, grid=grid)
        total *= found
    return total


def _independent(choices: Sequence[Hyperparameter]) -> list[list[Hyperparameter]]:
    """Choices in groups between which there is no condition, each in its order."""
    groups: list[list[Hyperparameter]] = []
    for choice in choices:
        parents = {condition.parent for condition in choice.conditions}
        joined = [
            group
            for group in groups
            if any(one.name in parents or one.name == choice.name for one in group)
        ]
        groups = [group for group in groups if group not in joined]
        groups.append([*(one for group in joined for one in group), choice])
    return groups
