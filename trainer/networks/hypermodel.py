"""KerasTuner's `build(hp)` and `HyperModel`: what they search over, and a model at fixed values.

The values of hyperparameters are a network's `options` (name → value); one that has none is at its
default, as KerasTuner has it. The only module here that knows KerasTuner, which it imports where a
hypermodel is built.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from beam_jobs.common.cli import UsageError
from beam_jobs.core.cohort.target import PLAIN, Target
from trainer.config.hyperparameter import Choice, Condition, Hyperparameter, Range, Value
from trainer.config.user_code import reason, undisturbed
from trainer.networks.compiled import own_optimizer, take_apart
from trainer.networks.layers import precision_kept

_OTHERS = ("volume", "input_shape")  # parameters of the other forms
_SHAPE, _CLASSES = ("input_shape",), ("classes", "num_classes")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
OPTION = "options."  # before a hyperparameter's name in a space
_BUILDS_MOST = 500  # of a hypermodel whose hyperparameters are looked for
_LISTED_MOST = 64  # values of a whole number that are tried one by one
_DRAWS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What a hypermodel searches over.

    Attributes:
      hyperparameters: parents before their children, called `options.NAME` as in a space's file.
      compiled: whether it brings its own optimizer.
    """

    hyperparameters: tuple[Hyperparameter, ...]
    compiled: bool


def is_hypermodel(found: Any) -> bool:
    """Whether a user's object is one: a HyperModel, its class, or a function of `hp` alone."""
    if hasattr(found, "build") and hasattr(found, "declare_hyperparameters"):
        return True
    if inspect.isclass(found) or not callable(found):
        return False
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # Python's own functions have none
        return False
    needed = [one for one in parameters if one.default is one.empty and one.kind not in _VARIADIC]
    return len(needed) == 1 and needed[0].name not in _OTHERS


def build(
    reference: str,
    found: Any,
    options: Mapping[str, Any],
    input_shape: tuple[int, ...],
    target: Target = PLAIN,
) -> keras.Model:
    """The model of one choice of hyperparameters.

    Args:
      reference: what `found` is called, for messages.
      found: the hypermodel.
      options: hyperparameter → value.
      input_shape: (row, column, slice, channel), for a class that asks for it.
      target: what is answered.

    Returns:
      What the hypermodel builds, not compiled any more: `own_optimizer` has what it was compiled
      with.

    Raises:
      UsageError: it cannot be built, is no Keras model, would be trained in a way of its own, or
        has no hyperparameter of an option's name.
    """
    made = _instance(reference, found, input_shape, target)
    model, hp = _built(reference, made, options)
    take_apart(reference, model, target)
    if unused := options.keys() - _asked(hp).keys():
        # Where the code goes another way it asks for others: only then is it built again and again.
        known = _names(reference, found, input_shape, target)
        if unknown := sorted(unused - known):
            raise UsageError(
                f"{reference} has no hyperparameter {', '.join(unknown)}: "
                f"known are {', '.join(sorted(known)) or 'none'}"
            )
    return model


@functools.cache
def _names(
    reference: str, found: Any, input_shape: tuple[int, ...], target: Target
) -> frozenset[str]:
    """The names of all hyperparameters, as KerasTuner has them."""
    every = discover(reference, found, input_shape, target).hyperparameters
    return frozenset(one.place[-1] for one in every)


def _instance(reference: str, found: Any, input_shape: tuple[int, ...], target: Target) -> Any:
    """The HyperModel itself, one made of its class, or the function.

    Raises:
      UsageError: the class needs other arguments than shape and classes, or trains in its own way.
    """
    import keras_tuner as kt

    made = found
    if inspect.isclass(found):
        given: dict[str, Any] = {}
        for one in inspect.signature(found).parameters.values():
            if one.name in _SHAPE:
                given[one.name] = input_shape
            elif one.name in _CLASSES:
                given[one.name] = target.outputs
            elif one.default is one.empty and one.kind not in _VARIADIC:
                raise UsageError(
                    f"{reference} needs {one.name}: of a class only {', '.join(_SHAPE + _CLASSES)} "
                    "are filled in; name an instance of it, or a function build(hp)"
                )
        try:
            made = found(**given)
        except (Exception, SystemExit) as error:
            raise UsageError(f"{reference} fails: {reason(error)}") from error
    if isinstance(made, kt.HyperModel) and type(made).fit is not kt.HyperModel.fit:
        raise UsageError(
            f"{reference} has a fit of its own, which is not called: trials train as "
            "trainer.task does (--space has its settings; take fit away)"
        )
    return made


def _built(
    reference: str, made: Any, options: Mapping[str, Any], hp: Any = None, *, quietly: bool = False
) -> tuple[Any, Any]:
    """A model, and KerasTuner's hyperparameters that were asked for when it was built.

    Args:
      reference: for messages.
      made: of `_instance`.
      options: hyperparameter → value.
      hp: KerasTuner's, without any, in which what is asked for stands where the build fails too.
      quietly: without what it prints.

    Raises:
      UsageError: as `build`.
    """
    import keras_tuner as kt

    hp = kt.HyperParameters() if hp is None else hp
    hp.values = dict(options)
    return _called(reference, made, hp, quietly=quietly), hp


def _called(reference: str, made: Any, hp: Any, *, quietly: bool) -> Any:
    try:
        # What it prints is no part of a command's output.
        said = io.StringIO() if quietly else sys.stderr
        with undisturbed(said), precision_kept(reference):
            if hasattr(made, "declare_hyperparameters"):
                made.declare_hyperparameters(hp)
            model = getattr(made, "build", made)(hp)
    except (MemoryError, UsageError):
        raise
    except (Exception, SystemExit) as error:
        if type(error).__name__ == "ResourceExhaustedError":  # TensorFlow's, not imported here
            raise
        at = ", ".join(f"{name} {value}" for name, value in hp.values.items())
        raise UsageError(f"{reference} fails at {at or 'its defaults'}: {reason(error)}") from error
    return model


def _asked(hp: Any) -> dict[str, Value]:
    """The hyperparameters that a build has asked for, with their values."""
    return {one.name: hp.values[one.name] for one in hp.space if hp.is_active(one)}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Build:
    """A build that was tried.

    Attributes:
      asked: the hyperparameters that it asked for, and their values.
      whole: whether it came to its end.
      base: the build that it differs from in one value.
      changed: that value's name; empty where it differs in more.
    """

    asked: Mapping[str, Value]
    whole: bool
    base: _Build | None = None
    changed: str = ""


def discover(
    reference: str, found: Any, input_shape: tuple[int, ...], target: Target = PLAIN
) -> Found:
    """What a hypermodel asks for, whatever the values.

    It is built with its defaults, then each hyperparameter is set to its other values in turn (of a
    number only the ends, as long as they ask for the same), and scopes' conditions are made to hold
    one after the other, as KerasTuner does. KerasTuner meets the `hp.Int(f"units_{i}")` of a loop
    when a trial first comes to it, and from then on chooses it where it means nothing too; here it
    is known from the start, and of which number of layers.

    Args:
      reference, found, input_shape, target: as for `build`.

    Raises:
      UsageError: as `build`, at the defaults; one name is two hyperparameters', or there is no end
        of them.
    """
    return _Search(reference, _instance(reference, found, input_shape, target), target).found()


class _Search:
    """Builds again and again until nothing new is asked for."""

    def __init__(self, reference: str, made: Any, target: Target) -> None:
        self._reference, self._made, self._target = reference, made, target
        self._known: list[Any] = []  # KerasTuner's, parents first
        self._builds: dict[str, _Build] = {}
        self._left: list[tuple[_Build, Any]] = []  # what is to be varied in which build
        self._compiled = False

    def found(self) -> Found:
        """Everything that was asked for."""
        self._tried({})
        self._vary()
        chance = random.Random(0)
        for _ in range(_DRAWS):  # what is asked for where two values come together
            drawn: dict[str, Value] = {}
            for one in self._known:
                if _holds(one.conditions, drawn):
                    drawn[one.name] = one.prob_to_value(chance.random())
            known = len(self._known)
            build = self._tried(drawn)
            if len(self._known) > known:
                self._left += [(build, one) for one in self._known if one.name in build.asked]
            self._vary()
        every = [_ours(one, self._conditions(place)) for place, one in enumerate(self._known)]
        return Found(hyperparameters=_once(self._reference, every), compiled=self._compiled)

    def _vary(self) -> None:
        while self._left:
            build, one = self._left.pop(0)
            if isinstance(one, list):  # conditions that did not hold
                self._tried({**build.asked, **{each.name: each.values[0] for each in one}})
                continue
            listed = _listed(one)
            numbers = not isinstance(listed[0], (str, bool))
            first = sorted({min(listed), max(listed)}) if numbers else listed
            reached = [self._tried({**build.asked, one.name: v}, build, one.name) for v in first]
            if any(other.asked.keys() != build.asked.keys() for other in reached):
                for value in listed if len(listed) <= _LISTED_MOST else ():
                    self._tried({**build.asked, one.name: value}, build, one.name)

    def _tried(
        self, values: Mapping[str, Value], base: _Build | None = None, changed: str = ""
    ) -> _Build:
        """The build at these values, of those that mean something; at defaults for all others."""
        import keras_tuner as kt

        given: dict[str, Value] = {}
        for name, value in values.items():
            same = [one for one in self._known if one.name == name]
            if any(_holds(one.conditions, given) for one in same):
                given[name] = value
        key = repr(sorted(given.items()))
        if key in self._builds:
            return self._builds[key]
        if len(self._builds) == _BUILDS_MOST:
            raise UsageError(
                f"{self._reference} asks for new hyperparameters in each of {_BUILDS_MOST} builds: "
                "names that follow from chance cannot be searched"
            )
        hp, whole = kt.HyperParameters(), True
        try:
            model, _ = _built(self._reference, self._made, given, hp, quietly=bool(self._builds))
            take_apart(self._reference, model, self._target)
            self._compiled = self._compiled or own_optimizer(model) is not None
        except UsageError:
            if not self._builds:
                raise
            whole = False
        build = _Build(asked=_asked(hp), whole=whole, base=base, changed=changed)
        self._builds[key] = build
        for one in hp.space:
            if not any(o.name == one.name and o.conditions == one.conditions for o in self._known):
                self._known.append(one)
                if one.name in build.asked:
                    self._left.append((build, one))
                else:
                    self._left.append((build, one.conditions))
        return build

    def _conditions(self, place: int) -> tuple[Condition, ...]:
        """When a hyperparameter is asked for: its scopes' conditions, and those of Python's `if`
        and `for` as far as they explain every build."""
        one = self._known[place]
        given = [(each.name, each.values) for each in one.conditions]
        builds = [b for b in self._builds.values() if b.whole and _holds(one.conditions, b.asked)]
        with_it = [b for b in builds if one.name in b.asked]
        parents = {
            build.changed
            for build in builds
            if build.base in builds and (build in with_it) != (build.base in with_it)
        }
        found = [
            (other.name, sorted({build.asked[other.name] for build in with_it}))
            for other in self._known[:place]
            if other.name in parents and all(other.name in build.asked for build in with_it)
        ]
        explained = all(
            all(build.asked.get(name) in values for name, values in found) == (build in with_it)
            for build in builds
        )
        told = [*given, *(found if explained else [])]
        return tuple(Condition(parent=OPTION + name, when=tuple(when)) for name, when in told)


def _holds(conditions: Sequence[Any], values: Mapping[str, Value]) -> bool:
    return all(one.is_active(values) for one in conditions)


def _listed(one: Any) -> list[Value]:
    """The values of one of KerasTuner's, as far as each of them can be tried; else its ends."""
    if type(one).__name__ == "Float":
        return [one.min_value, one.max_value]
    if type(one).__name__ == "Int" and one.step is None:
        most = one.min_value + _LISTED_MOST
        whole = one.max_value < most
        return (
            list(range(one.min_value, one.max_value + 1))
            if whole
            else [one.min_value, one.max_value]
        )
    return list(one.values)


def _ours(one: Any, conditions: tuple[Condition, ...]) -> Hyperparameter:
    """One of KerasTuner's as one of a space."""
    told: dict[str, Any] = {
        "name": OPTION + one.name,
        "place": ("network", "options", one.name),
        "conditions": conditions,
    }
    if type(one).__name__ not in ("Int", "Float"):
        return Choice(values=tuple(dict.fromkeys(one.values)), **told)
    if one.min_value == one.max_value or (one.step and len(list(one.values)) == 1):
        return Choice(values=(one.min_value,), **told)
    kind = type(one.min_value)
    ends = {"low": one.min_value, "high": one.max_value, "step": one.step}
    return Range(scale=one.sampling, kind=kind, **ends, **told)


def _once(reference: str, every: Sequence[Hyperparameter]) -> tuple[Hyperparameter, ...]:
    """Each name once: the same in two scopes is one, asked for in both.

    Raises:
      UsageError: not the same.
    """
    found: dict[str, Hyperparameter] = {}
    for one in every:
        before = found.get(one.name, one)
        if dataclasses.replace(before, conditions=()) != dataclasses.replace(one, conditions=()):
            raise UsageError(
                f"{reference} has two hyperparameters {one.place[-1]} with other values: "
                "a name of its own is needed for each"
            )
        conditions = _either(before.conditions, one.conditions)
        found[one.name] = dataclasses.replace(before, conditions=conditions)
    return tuple(found.values())


def _either(one: Sequence[Condition], other: Sequence[Condition]) -> tuple[Condition, ...]:
    """Conditions that hold where either's do; none where that cannot be said."""
    if [each.parent for each in one] != [each.parent for each in other]:
        return ()
    pairs = list(zip(one, other, strict=True))
    if sum(a != b for a, b in pairs) > 1:
        return ()
    return tuple(
        Condition(parent=a.parent, when=tuple(dict.fromkeys(a.when + b.when))) for a, b in pairs
    )
