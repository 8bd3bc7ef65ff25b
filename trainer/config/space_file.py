"""A search's space: the table of settings, narrowed by a file that may add to it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import json_object, shown
from trainer.config.hyperparameter import (
    Choice,
    Condition,
    Hyperparameter,
    Range,
    Value,
    narrowed_range,
)
from trainer.config.network import MODELS
from trainer.config.run import (
    TrainConfig,
)
from trainer.config.search_space import Space, usable
from trainer.config.space_table import ELSEWHERE, SETTINGS, Setting
from trainer.config.user_code import is_reference

OPTION = "options."  # before the name of a user's own network's option
_KINDS = {str: "name", bool: "true or false"}
Takes = Callable[[str, str], bool]
_NEEDED = ("network", "fusion")  # the table's own choices hang on them


def space_of(
    modalities: Sequence[str],
    narrowed: Mapping[str, Any] | None = None,
    *,
    network: str | None = None,
    own: Sequence[Hyperparameter] | None = None,
    takes: Takes = lambda reference, name: True,
) -> Space:
    """The table for a dataset, narrowed.

    Args:
      modalities: the dataset's.
      narrowed: name → one value (fixed), a list of values, a range as {"min": ..., "max": ...,
        "step": ..., "log": ...}, or None (dropped: the trainer's default holds).
      network: with `own`: whose hyperparameters these are, `module:function`.
      own: a hypermodel's hyperparameters, with their places; they are then the space, beside what
        `narrowed` names of the trainer's.
      takes: (`module:function`, name) → whether this network of a user's has such an option.

    Raises:
      UsageError: an unknown name or value, or one that nothing in the space can use.
    """
    narrowed = dict(narrowed or {})
    settings: Sequence[Setting] = SETTINGS
    if own is not None:
        if "network" in narrowed:
            raise UsageError(f"network: it is {network}, whose hyperparameters are searched")
        narrowed = {"fusion": "early", **narrowed, "network": network}
        settings = [setting for setting in SETTINGS if setting.name in narrowed | {"modality": 0}]
    theirs = {one.name for one in own or ()}
    options = [name for name in narrowed if name.startswith(OPTION) and name not in theirs]
    names = [setting.name for setting in SETTINGS]
    for name in narrowed:
        if name in ELSEWHERE:
            raise UsageError(f"{name} cannot be searched: {ELSEWHERE[name]}")
    known = {*names, *theirs, *(options if own is None else ())}
    if unknown := [name for name in narrowed if name not in known]:
        listed = ", ".join([*names, *sorted(theirs)])
        raise UsageError(f"unknown hyperparameter {', '.join(unknown)}: known are {listed}")
    kept: dict[str, Hyperparameter] = {}
    for setting in (*settings, *(_option(name, narrowed[name]) for name in options)):
        choice = _chosen(setting, tuple(modalities), narrowed)
        if choice is None:
            continue
        if setting.parent:
            condition = _condition(setting, kept, named=setting.name in narrowed, takes=takes)
            if condition is None:
                if setting.name in narrowed:
                    raise UsageError(
                        f"{setting.name} is of no use: no {setting.parent} of the space takes it"
                    )
                continue
            # A part of every network of ours hangs on none where there are no others.
            always = {*MODELS} <= {*condition.when} and _always(condition, kept)
            conditions = () if always or condition.parent not in kept else (condition,)
            choice = dataclasses.replace(choice, conditions=conditions)
        kept[setting.name] = choice
    if "modality" not in kept and kept["fusion"].has("single"):
        raise UsageError("modality cannot be dropped while fusion may be single: fix it instead")
    every = [*kept.values(), *_narrowed_own(own or (), narrowed)]
    space = Space(choices=usable(every), modalities=tuple(modalities))
    _check(space)
    return space


def read_space(text: str, modalities: Sequence[str], *, source: str, **more: Any) -> Space:
    """`space_of` a file's JSON object.

    Args:
      text: the file's.
      modalities: the dataset's.
      source: the file's name, for messages.
      more: as `space_of` takes it.

    Raises:
      UsageError: as `space_of`, or no such object; the message names the file.
    """
    try:
        return space_of(modalities, json_object(text), **more)
    except ValueError as error:  # a UsageError is one
        raise UsageError(f"--space {source}: {error}") from error


def _chosen(
    setting: Setting, modalities: tuple[str, ...], narrowed: Mapping[str, Any]
) -> Hyperparameter | None:
    """A setting as this dataset and the file have it; None where it is not searched."""
    if setting.name == "modality":
        setting = dataclasses.replace(setting, values=modalities, known=modalities)
    elif setting.name == "fusion" and len(modalities) == 1:  # nothing to fuse
        setting = dataclasses.replace(setting, values=("early",), known=("early",))
    choice = Choice(
        name=setting.name, values=setting.values, known=setting.known, place=setting.place
    )
    if setting.name not in narrowed:
        return choice if setting.values else None
    requested = narrowed[setting.name]
    if requested is None:
        if setting.name in _NEEDED:
            raise UsageError(
                f"{setting.name} cannot be dropped, others depend on it: fix it to one value"
            )
        return None
    return _narrow(choice, requested, setting.kind, own=setting.own)


def _condition(
    setting: Setting, kept: Mapping[str, Hyperparameter], *, named: bool, takes: Takes
) -> Condition | None:
    """Beside what a setting means anything; None where the space has nothing of the kind."""
    parent = kept.get(setting.parent)
    if parent is None:  # dropped: the trainer's default holds
        held: Any = TrainConfig().to_json()
        for part in next(one for one in SETTINGS if one.name == setting.parent).place:
            held = held[part]
        default = held in setting.when or isinstance(held, dict)
        return Condition(parent=setting.parent, when=setting.when) if default else None
    when: list[Value] = [*setting.when]
    if setting.when_own and named:
        references = [v for v in _listed(parent) if isinstance(v, str) and is_reference(v)]
        option = setting.name.removeprefix(OPTION) if setting.name.startswith(OPTION) else ""
        when += [one for one in references if not option or takes(one, option)]
    holds = any(parent.has(value) for value in when)
    return Condition(parent=setting.parent, when=tuple(when)) if holds else None


def _always(condition: Condition, kept: Mapping[str, Hyperparameter]) -> bool:
    parent = kept[condition.parent]
    return sum(parent.has(value) for value in condition.when) == parent.size


def _listed(choice: Hyperparameter) -> tuple[Value, ...]:
    return choice.values if isinstance(choice, Choice) else ()


def _option(name: str, requested: Any) -> Setting:
    """An option of a user's own network; its kind is that of the values in the file."""
    if isinstance(requested, dict):
        values = [
            requested[key] for key in ("min", "max", "step") if requested.get(key) is not None
        ]
    else:
        values = requested if isinstance(requested, list) else [requested]
    kinds = [type(value) for value in values]
    kind = float if {*kinds} == {int, float} else next(iter(kinds), str)
    if kind not in (str, int, float, bool):
        kind = str
    return Setting(
        name=name,
        kind=kind,
        place=("network", "options", name.removeprefix(OPTION)),
        parent="network",
        when_own=True,
    )


def _narrowed_own(
    own: Sequence[Hyperparameter], narrowed: Mapping[str, Any]
) -> list[Hyperparameter]:
    """A hypermodel's hyperparameters, as the file has them."""
    found = []
    for one in own:
        if one.name not in narrowed:
            found.append(one)
        elif narrowed[one.name] is not None:
            kind = one.kind if isinstance(one, Range) else type(one.first)
            found.append(_narrow(one, narrowed[one.name], kind))
        elif any(c.parent == one.name for other in own for c in other.conditions):
            raise UsageError(
                f"{one.name} cannot be dropped, others depend on it: fix it to one value"
            )
    return found


def _narrow(
    choice: Hyperparameter, requested: Any, kind: type, *, own: bool = False
) -> Hyperparameter:
    """The choice with the requested values, or the range."""
    if isinstance(requested, dict):
        return narrowed_range(choice, requested, kind)
    known = choice.known if isinstance(choice, Choice) else ()
    listed = requested if isinstance(requested, list) else [requested]
    if not listed:
        raise UsageError(f"{choice.name}: an empty list; null drops it")
    values: list[Value] = []
    for one in listed:
        fits = isinstance(one, (int, float) if kind is float else kind)
        if not fits or (isinstance(one, bool) and kind is not bool):
            raise UsageError(
                f"{choice.name}: {shown(one)} is not {'' if kind is bool else 'a '}"
                f"{_KINDS.get(kind, 'number')}{' without a fraction' if kind is int else ''}"
            )
        if known and one not in known and not (own and is_reference(one)):
            raise UsageError(f"{choice.name}: unknown {shown(one)}; known: {', '.join(known)}")
        values.append(float(one) if kind is float else one)
    if len(set(values)) != len(values):
        raise UsageError(f"{choice.name}: a value stands twice in {listed}")
    if kind in (int, float):
        values.sort(key=float)
    return Choice(
        name=choice.name,
        values=tuple(values),
        known=known,
        place=choice.place,
        conditions=choice.conditions,
    )


def _check(space: Space) -> None:
    """Refuses what no run can have: each value, or end of a range, is once put into a config.

    That beside each value of the choice it hangs on; amounts of augmentation in pairs, for what one
    may be depends on another.
    """
    every = [(choice, value) for choice in space.choices for value in choice.ends]
    augment = [(choice, value) for choice, value in every if choice.place[:1] == ("augment",)]
    pairs = [pair for pair in itertools.combinations(augment, 2) if pair[0][0] != pair[1][0]]
    beside = [pair for one in every for pair in _beside(*one, space)]
    for wanted in [*((one,) for one in every), *beside, *pairs]:
        told: dict[str, Value] = {choice.name: value for choice, value in wanted}
        for choice, _ in wanted:
            for condition in reversed(_above(choice, space)):
                parents = [one for one in space.choices if one.name == condition.parent]
                fits = (v for v in condition.when if any(one.has(v) for one in parents))
                told.setdefault(condition.parent, next(fits))
        active: dict[str, Value] = {}
        for choice in space.choices:
            if choice.is_active(active):
                active[choice.name] = told.get(choice.name, choice.first)
        TrainConfig.from_json(space.settings(active))


def _beside(
    choice: Hyperparameter, value: Value, space: Space
) -> list[tuple[tuple[Hyperparameter, Value], ...]]:
    """A value with each of those, of names that are listed, beside which it may be chosen."""
    parents = {one.name: one for one in space.choices if isinstance(one, Choice)}
    return [
        ((choice, value), (parents[condition.parent], above))
        for condition in choice.conditions
        if condition.parent in parents
        for above in condition.when
        if isinstance(above, str) and parents[condition.parent].has(above)
    ]


def _above(choice: Hyperparameter, space: Space) -> list[Condition]:
    """The conditions of a choice and of its parents, the furthest first."""
    found: list[Condition] = []
    for condition in choice.conditions:
        for parent in space.choices:
            if parent.name == condition.parent:
                found.extend(_above(parent, space))
        found.append(condition)
    return found
