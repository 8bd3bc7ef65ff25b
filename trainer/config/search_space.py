"""What a search may choose: one table, narrowed by a file, and from choices to a run's settings.

Every hyperparameter has finitely many values, so that a space has a size and a grid an end. Numbers
stand in order: the Bayesian search sees a ladder of rates as evenly spaced.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import json_object, shown
from trainer.config.augment import PRESETS
from trainer.config.network import HEADS, MODELS, POOLINGS, SLICE_MODELS
from trainer.config.run import PRECISIONS, SCHEDULES, TrainConfig

Value = str | float | int
Values = Mapping[str, Value]

VOLUME_MODELS = tuple(name for name in MODELS if name not in SLICE_MODELS)
SEARCHED_FUSIONS = ("early", "late", "single")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A hyperparameter: a name, its values, and when it means anything at all.

    Attributes:
      name: in the space's file, trials.csv and TensorBoard.
      values: those the search chooses from, all of one type; a single one is fixed.
      known: the only values there are; empty where any number that trains will do.
      parent: name of an earlier choice; this one is chosen only ...
      when: ... where the parent has one of these values.
      place: of the value in `TrainConfig`'s JSON; empty where `Space.settings` puts it.
    """

    name: str
    values: tuple[Value, ...]
    known: tuple[str, ...] = ()
    parent: str = ""
    when: tuple[str, ...] = ()
    place: tuple[str, ...] = ()

    def is_active(self, values: Values) -> bool:
        """Whether it means anything beside the choices made before it."""
        return not self.parent or values.get(self.parent) in self.when


# Parents come before their children.
SPACE: tuple[Choice, ...] = (
    Choice(
        name="network",
        values=("seed_cnn", "resnet10", "densenet121", "efficientnet_b0", "slice_cnn"),
        known=MODELS,
        place=("network", "name"),
    ),
    Choice(name="width", values=(0.25, 0.5, 1.0), place=("network", "width")),
    Choice(
        name="depth",
        values=(1.0, 2.0),
        parent="network",
        when=tuple(name for name in MODELS if name != "seed_cnn"),
        place=("network", "depth"),
    ),
    Choice(
        name="pooling",
        values=POOLINGS,
        known=POOLINGS,
        parent="network",
        when=VOLUME_MODELS,
        place=("network", "pooling"),
    ),
    Choice(
        name="head",
        values=HEADS,
        known=HEADS,
        parent="network",
        when=SLICE_MODELS,
        place=("network", "head"),
    ),
    Choice(name="dropout", values=(0.0, 0.2, 0.4, 0.6), place=("network", "dropout")),
    Choice(name="fusion", values=SEARCHED_FUSIONS, known=SEARCHED_FUSIONS),
    Choice(name="modality", values=(), parent="fusion", when=("single",)),  # the dataset's
    Choice(
        name="learning_rate",
        values=(3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        place=("optimizer", "learning_rate"),
    ),
    Choice(
        name="schedule",
        values=("exponential", "cosine"),
        known=SCHEDULES,
        place=("optimizer", "schedule"),
    ),
    Choice(name="batch_size", values=(4, 8, 16), place=("batch_size",)),
    Choice(
        name="augment",
        values=("none", "flip", "light", "medium"),
        known=tuple(PRESETS),
        place=("augment",),
    ),
    Choice(name="precision", values=("auto",), known=PRECISIONS, place=("precision",)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """The choices of one study, on one dataset.

    Attributes:
      choices: in the table's order; those that can never be active are gone.
      modalities: the dataset's.
    """

    choices: tuple[Choice, ...]
    modalities: tuple[str, ...]

    @property
    def searched(self) -> tuple[Choice, ...]:
        """The choices that are left to make."""
        return tuple(choice for choice in self.choices if len(choice.values) > 1)

    def count(self) -> int:
        """How many combinations there are, choices that mean nothing counted out."""
        parents = [choice for choice in self.choices if self._children(choice)]
        total = 0
        for values in _combinations(parents):
            active = [c for c in self.choices if c not in parents and c.is_active(values)]
            total += math.prod(len(choice.values) for choice in active)
        return total

    def combinations(self) -> Iterator[dict[str, Value]]:
        """Every combination once, the last choices changing fastest; inactive ones are left out."""
        return _combinations(self.choices)

    def complete(self, values: Values) -> dict[str, Value]:
        """Values with the fixed ones among them, in the table's order, each exactly as listed.

        KerasTuner's messages carry numbers in single precision; the nearest listed one is meant.
        """
        full: dict[str, Value] = {}
        for choice in self.choices:
            if not choice.is_active(full):
                continue
            if len(choice.values) == 1:
                full[choice.name] = choice.values[0]
            else:
                full[choice.name] = _nearest(choice, values[choice.name])
        return full

    def settings(self, values: Values) -> dict[str, Any]:
        """Complete values as settings of a run, in parts, as `TrainConfig.from_json` reads them."""
        settings: dict[str, Any] = {}
        for choice in self.choices:
            if choice.place and choice.name in values:
                below = settings
                for part in choice.place[:-1]:
                    below = below.setdefault(part, {})
                below[choice.place[-1]] = values[choice.name]
        fusion = values.get("fusion", "early")
        settings.setdefault("network", {})["fusion"] = "late" if fusion == "late" else "early"
        chosen = [values["modality"]] if fusion == "single" else self.modalities
        settings["modalities"] = [str(name) for name in chosen]
        return settings

    def rows(self) -> list[tuple[str, str]]:
        """What is searched: each hyperparameter's name, and its values for the terminal."""
        described = []
        for choice in self.choices:
            values = ", ".join(_text(value) for value in choice.values)
            fixed = "  (fixed)" if len(choice.values) == 1 else ""
            when = ""
            if choice.parent and not self._always(choice):
                own = next(c for c in self.choices if c.name == choice.parent).values
                when = f"  (where {choice.parent} is {' or '.join(_among(own, choice.when))})"
            described.append((choice.name, f"{values}{fixed}{when}"))
        return described

    def to_json(self) -> dict[str, Any]:
        """A JSON object that identifies this space among others."""
        return {choice.name: list(choice.values) for choice in self.choices}

    def _children(self, choice: Choice) -> bool:
        return any(other.parent == choice.name for other in self.choices)

    def _always(self, choice: Choice) -> bool:
        own = next(c for c in self.choices if c.name == choice.parent).values
        return set(map(str, own)) <= set(choice.when)


def space_of(modalities: Sequence[str], narrowed: Mapping[str, Any] | None = None) -> Space:
    """The table for a dataset, narrowed.

    Args:
      modalities: the dataset's.
      narrowed: name → one value (fixed), a list of values (restricted), or None (dropped: the
        trainer's default holds).

    Raises:
      UsageError: an unknown name or value, or one that nothing in the space can use.
    """
    narrowed = dict(narrowed or {})
    names = [choice.name for choice in SPACE]
    if unknown := [name for name in narrowed if name not in names]:
        raise UsageError(
            f"unknown hyperparameter {', '.join(unknown)}: known are {', '.join(names)}"
        )
    kept: dict[str, Choice] = {}
    for choice in SPACE:
        choice = _of_dataset(choice, tuple(modalities))
        given = choice.name in narrowed
        if given:
            requested = narrowed[choice.name]
            if requested is None:
                if any(other.parent == choice.name for other in SPACE):
                    raise UsageError(
                        f"{choice.name} cannot be dropped, others depend on it: fix it to one value"
                    )
                continue
            choice = _narrow(choice, requested)
        if not choice.values:
            continue
        if choice.parent:
            parent = kept.get(choice.parent)
            if parent is None or not set(parent.values) & set(choice.when):
                if given:
                    raise UsageError(
                        f"{choice.name} is of no use: no {choice.parent} of the space takes it"
                    )
                continue
        kept[choice.name] = choice
    if "modality" not in kept and "single" in kept["fusion"].values:
        raise UsageError("modality cannot be dropped while fusion may be single: fix it instead")
    space = Space(choices=tuple(kept.values()), modalities=tuple(modalities))
    _check(space)
    return space


def read_space(text: str, modalities: Sequence[str], *, source: str) -> Space:
    """`space_of` a file's JSON object.

    Raises:
      UsageError: as `space_of`, or no such object; the message names the file.
    """
    try:
        return space_of(modalities, json_object(text))
    except ValueError as error:  # a UsageError is one
        raise UsageError(f"--space {source}: {error}") from error


def _of_dataset(choice: Choice, modalities: tuple[str, ...]) -> Choice:
    """The choice as this dataset allows it: one modality alone leaves nothing to fuse."""
    if choice.name == "modality":
        return dataclasses.replace(choice, values=modalities, known=modalities)
    if choice.name == "fusion" and len(modalities) == 1:
        return dataclasses.replace(choice, values=("early",), known=("early",))
    return choice


def _narrow(choice: Choice, requested: Any) -> Choice:
    """The choice with the requested values."""
    listed = requested if isinstance(requested, list) else [requested]
    if not listed:
        raise UsageError(f"{choice.name}: an empty list; null drops it")
    kind = type(choice.values[0]) if choice.values else str
    values: list[Value] = []
    for one in listed:
        wrong = isinstance(one, bool) or not isinstance(
            one, str if kind is str else (int, float) if kind is float else int
        )
        if wrong:
            raise UsageError(
                f"{choice.name}: {shown(one)} is not a {'name' if kind is str else 'number'}"
                f"{' without a fraction' if kind is int else ''}"
            )
        if choice.known and one not in choice.known:
            raise UsageError(
                f"{choice.name}: unknown {shown(one)}; known: {', '.join(choice.known)}"
            )
        values.append(float(one) if kind is float else one)
    if len(set(values)) != len(values):
        raise UsageError(f"{choice.name}: a value stands twice in {listed}")
    if kind is not str:
        values.sort(key=float)
    return dataclasses.replace(choice, values=tuple(values))


def _check(space: Space) -> None:
    """Refuses a number that no run can have: each value is once put into a whole config."""
    for choice in space.choices:
        for value in choice.values:
            beside = {
                other.name: next(
                    (v for v in other.values if choice.parent == other.name and v in choice.when),
                    other.values[0],
                )
                for other in space.choices
            }
            beside[choice.name] = value
            active: dict[str, Value] = {}
            for other in space.choices:
                if other.is_active(active):
                    active[other.name] = beside[other.name]
            TrainConfig.from_json(space.settings(active))


def _combinations(choices: Sequence[Choice]) -> Iterator[dict[str, Value]]:
    def extend(values: dict[str, Value], rest: Sequence[Choice]) -> Iterator[dict[str, Value]]:
        if not rest:
            yield values
            return
        first, rest = rest[0], rest[1:]
        if not first.is_active(values):
            yield from extend(values, rest)
            return
        yield from itertools.chain.from_iterable(
            extend({**values, first.name: value}, rest) for value in first.values
        )

    return extend({}, choices)


def _nearest(choice: Choice, value: Value) -> Value:
    if isinstance(value, str):
        if value not in choice.values:
            raise UsageError(f"{choice.name}: {value!r} is not in the space")
        return value
    return min(choice.values, key=lambda one: abs(float(one) - float(value)))


def _among(values: Sequence[Value], when: Sequence[str]) -> list[str]:
    return [str(value) for value in values if value in when]


def _text(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
