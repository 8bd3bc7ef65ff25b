"""Calibration of classes and findings by temperatures, and intervals of values; all out of fold.

    classes    softmax(logits / T): one parameter, the order of the classes stays
    findings   sigmoid(logit / T): one T for all, or one each where every finding has the patients
               for it; what lowers the log loss of patients it was not fitted on most is taken
    values     value - h to value + h: h is the quantile of out-of-fold residuals that a conformal
               interval takes

As of binary labels (`serving.model.calibration`), no temperature is taken that helps nobody, unless
one is requested.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import (
    ContractError,
    Kind,
    ListOf,
    OneOf,
    Within,
    require_kinds,
    require_known,
)
from beam_jobs.common.printable import in_digits
from beam_jobs.core.cohort.target import Target
from serving.model.calibration import LEAST_FOR_TEMPERATURE, TEMPERATURES, Calibration
from serving.model.out_of_fold import Float, OutOfFold

INTERVAL_LEVEL = 0.9  # share of patients whose value is to lie within its interval
TASK_METHODS = ("temperature", "none")
_PARTS = 10
_KINDS: dict[str, Kind] = {
    **{"method": OneOf(TASK_METHODS), "temperatures": ListOf(Within(float, *TEMPERATURES))},
    **{"why": str, "measured": dict},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Temperatures:
    """What logits are divided by before they become probabilities.

    Attributes:
      method: one of `TASK_METHODS`.
      temperatures: one for all outputs, or one an output; () where none was fitted.
      why: where nothing was fitted, the reason, for a person.
      measured: `n`, `positive` ({name: patients}), and log loss and Brier score `before` and
        `after`; `after` is cross-fitted: each tenth of the patients by what the others say.
    """

    method: str = "none"
    temperatures: tuple[float, ...] = ()
    why: str = ""
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperatures", tuple(map(float, self.temperatures)))
        if self.method not in TASK_METHODS:
            raise ContractError(f"calibration {self.method!r}: one of {TASK_METHODS} required")
        if bool(self.temperatures) != (self.method == "temperature"):
            raise ContractError(f"{len(self.temperatures)} temperatures with {self.method}")
        if not all(math.isfinite(one) and one > 0 for one in self.temperatures):
            raise ContractError(f"temperatures must be positive: {self.temperatures}")

    def apply(self, logits: Float) -> Float:
        """The calibrated logits (..., outputs), float64."""
        return np.asarray(logits / np.array(self.temperatures or (1.0,)))

    @property
    def steepness(self) -> float:
        """How much a rounding of a logit may grow at most."""
        return 1 / min(self.temperatures, default=1.0)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        return {**dataclasses.asdict(self), "temperatures": list(self.temperatures)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], target: Target) -> Temperatures:
        """Reads `to_json`'s object.

        Raises:
          ContractError: a field is missing, unknown or malformed.
        """
        where = "calibration."
        require_kinds(data, _KINDS, where=where)
        require_known(data, _KINDS, where=where)
        if len(data["temperatures"]) not in (0, 1, target.outputs):
            raise ContractError(
                f"{where}temperatures: {len(data['temperatures'])} found, 1 or {target.outputs} "
                "required"
            )
        return cls(**{**data, "temperatures": tuple(data["temperatures"])})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """Of a predicted value: from `half_width` below to `half_width` above it.

    Attributes:
      level: share of patients whose value it is meant to hold.
      half_width: in the label's unit; None where the patients are too few to say.
      n: patients out of fold whose residuals it is made of.
      coverage: share of these whose value an interval of the other folds' residuals holds; None
        where it was not measured.
      why: where there is none, the reason, for a person.
    """

    level: float
    half_width: float | None
    n: int
    coverage: float | None = None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Interval:
        """Reads `to_json`'s object.

        Raises:
          ContractError: a field is missing, unknown or no value that it can have.
        """
        require_kinds(data, _INTERVAL_KINDS, where="interval.")
        require_known(data, _INTERVAL_KINDS, where="interval.")
        return cls(**data)


_INTERVAL_KINDS: dict[str, Kind] = {
    **{"level": Within(float, 0, 1), "n": Within(int, 0), "why": str},
    **{"half_width": Within(float, 0, null=True), "coverage": Within(float, 0, 1, null=True)},
}


def fit_temperatures(data: OutOfFold, ensemble: str, method: str | None) -> Temperatures:
    """Fits the temperatures and measures them.

    Args:
      data: out-of-fold predictions of classes or several findings.
      ensemble: one of `ENSEMBLES`.
      method: "temperature" or "none"; None is "temperature" where the predictions are enough for
        it and it lowers the cross-fitted log loss, else "none".

    Raises:
      UsageError: "isotonic", or a temperature that needs more predictions than there are.
    """
    target, labels = data.target, data.labels
    if method == "isotonic":
        raise UsageError("--calibration isotonic is for binary labels (--calibration temperature)")
    logits = data.ensembled(ensemble).reshape(-1, target.outputs)
    positive, negative = _counts(target, labels)
    measured: dict[str, Any] = {
        "n": len(labels),
        "positive": dict(zip(target.names, positive.tolist(), strict=True)),
    }
    if len(labels):
        measured["before"] = _scores(target, labels, logits)
    if method == "none":
        return Temperatures(why="--calibration none was requested", measured=measured)
    ways = _ways(target, positive, negative)
    if not ways:
        few = (
            f"{len(labels)} patients out of fold: {LEAST_FOR_TEMPERATURE} of each class are the "
            "least to calibrate on"
        )
        if method is not None:
            raise UsageError(f"--calibration {method}: {few}")
        return Temperatures(why=few, measured=measured)
    after = {own: _scores(target, labels, _cross_fitted(target, labels, logits, own))
             for own in ways}  # fmt: skip
    own = min(ways, key=lambda way: after[way]["log_loss"])
    found = _fitted(target, labels, logits, own)
    measured["after"] = after[own]
    before = measured["before"]["log_loss"]
    if found is None:
        why = "no answer out of fold is wrong: nothing says how sharp to be"
        return Temperatures(why=why, measured=measured)
    if method is None and after[own]["log_loss"] >= before:
        what = "temperatures" if own else "a temperature"
        return Temperatures(
            why=f"{what} of {_shown(found)} would not lower the log loss of patients they were not "
            f"fitted on: {before:.4f} without, {after[own]['log_loss']:.4f} with",
            measured=measured,
        )
    return Temperatures(method="temperature", temperatures=tuple(found), measured=measured)


def _counts(target: Target, labels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Patients who are of each class or have each finding, and who are known not to, (outputs,)."""
    if target.task == "multiclass":
        positive = np.bincount(labels, minlength=target.outputs)
        return positive, len(labels) - positive
    return (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)


def _ways(target: Target, positive: npt.NDArray[Any], negative: npt.NDArray[Any]) -> list[bool]:
    """Whether one temperature for all (False), and one an output (True), can be fitted."""
    if target.task == "multiclass":
        return [False] if positive.min() >= LEAST_FOR_TEMPERATURE else []
    least = np.minimum(positive, negative)
    enough = [False] if min(positive.sum(), negative.sum()) >= LEAST_FOR_TEMPERATURE else []
    return [*enough, True] if least.min() >= LEAST_FOR_TEMPERATURE else enough


def _fitted(
    target: Target, labels: npt.NDArray[Any], logits: Float, own: bool
) -> list[float] | None:
    """The temperatures of least log loss; None where nothing says how sharp to be."""
    if not own:
        found = _sharpness(target, labels, logits)
        return None if found is None else [1 / found]
    columns = [
        _sharpness(target, labels[:, place : place + 1], logits[:, place : place + 1])
        for place in range(target.outputs)
    ]
    if all(one is None for one in columns):
        return None
    return [1.0 if one is None else 1 / one for one in columns]


def _sharpness(target: Target, labels: npt.NDArray[Any], logits: Float) -> float | None:
    """1 / T of least log loss, which is convex in it; None where it is above every bound.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    from scipy.optimize import brentq
    from scipy.special import expit, softmax

    if target.task == "multiclass":
        true = logits[np.arange(len(labels)), labels]

        def slope(sharpness: float) -> float:
            return float(np.mean((softmax(sharpness * logits, axis=1) * logits).sum(axis=1) - true))
    else:
        known = ~np.isnan(labels)
        found, values = labels[known], logits[known]

        def slope(sharpness: float) -> float:
            return float(np.mean(values * (expit(sharpness * values) - found)))

    least, most = (1 / bound for bound in reversed(TEMPERATURES))
    if slope(least) >= 0:
        return least
    if slope(most) <= 0:
        return None
    return float(brentq(slope, least, most, xtol=1e-10))


def _cross_fitted(target: Target, labels: npt.NDArray[Any], logits: Float, own: bool) -> Float:
    """Every patient's logits by the temperatures that the nine other tenths say."""
    # Dealt in turn over logits within each class (or number of findings): all parts look alike.
    kind = labels if target.task == "multiclass" else np.nansum(labels, axis=1)
    part = np.empty(len(labels), dtype=np.int64)
    part[np.lexsort((logits.max(axis=1), kind))] = np.arange(len(labels)) % _PARTS
    after = logits.copy()
    for number in range(_PARTS):
        held = part == number
        found = _fitted(target, labels[~held], logits[~held], own) if not held.all() else None
        if found is not None:
            after[held] = logits[held] / np.array(found)
    return after


def _scores(target: Target, labels: npt.NDArray[Any], logits: Float) -> dict[str, float]:
    """Log loss in nats and Brier score: of classes summed over them, of findings their mean."""
    from scipy.special import expit, log_softmax

    if target.task == "multiclass":
        logs = log_softmax(logits, axis=1)
        found = labels[:, np.newaxis] == np.arange(target.outputs)
        return {
            "log_loss": float(-np.mean(logs[found])),
            "brier": float(np.mean(((np.exp(logs) - found) ** 2).sum(axis=1))),
        }
    losses = np.logaddexp(0.0, np.where(labels == 1, -logits, logits))
    errors = (expit(logits) - labels) ** 2
    known = ~np.isnan(labels)
    measured = [
        (losses[rows, place].mean(), errors[rows, place].mean())
        for place, rows in enumerate(known.T)
        if rows.any()
    ]
    log_loss, brier = np.mean(measured, axis=0) if measured else (math.nan, math.nan)
    return {"log_loss": float(log_loss), "brier": float(brier)}


def _shown(temperatures: Sequence[float], digits: int = 3) -> str:
    return ", ".join(f"{one:.{digits}g}" for one in temperatures)


class Fitted(NamedTuple):
    """What was fitted on out-of-fold predictions: a calibration, of values their interval."""

    calibration: Calibration | Temperatures
    interval: Interval | None = None

    def summary(self, target: Target) -> tuple[str, str]:
        """Its name and a line on it, for the terminal."""
        calibration, interval = self
        if interval is not None:
            if interval.half_width is None:
                return "interval", f"none ({interval.why})"
            held = "" if interval.coverage is None else f", {interval.coverage:.1%} inside"
            return "interval", (
                f"± {in_digits(interval.half_width)}{f' {target.unit}' if target.unit else ''} for "
                f"{interval.level:.0%} of patients (n = {interval.n} out of fold{held})"
            )
        if calibration.method == "none":
            return "calibration", f"none ({calibration.why})"
        measured, name = calibration.measured, calibration.method
        counts, divided = f"{measured['positive']} positive", ": "
        if isinstance(calibration, Temperatures):
            name = f"temperature {_shown(calibration.temperatures, digits=4)}"
            divided = "; "
            counts = ", ".join(f"{of}: {count}" for of, count in measured["positive"].items())
        elif name == "temperature":
            name = f"temperature {calibration.temperature:.4g}"
        return "calibration", (
            f"{name}; out-of-fold log loss {measured['before']['log_loss']:.4f} before, "
            f"{measured['after']['log_loss']:.4f} after (n = {measured['n']}{divided}"
            f"{counts}){f'; {calibration.why}' if calibration.why else ''}"
        )


def unfitted(task: str, why: str) -> Fitted:
    """Neither a calibration nor an interval, for a reason."""
    if task == "binary":
        return Fitted(Calibration(why=why))
    if task == "regression":
        return Fitted(Temperatures(), Interval(level=INTERVAL_LEVEL, half_width=None, n=0, why=why))
    return Fitted(Temperatures(why=why))
