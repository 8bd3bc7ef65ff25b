"""Calibration: what the ensemble's logits are turned into, fitted out of fold and nowhere else.

An ensemble of all folds is a little less sharp than the single members measured here (a mean of
logits lies nearer to 0 than its parts), so that its fitted probabilities lean to caution. Unless it
is requested, a temperature is therefore left out where it does not lower the log loss of patients
it was not fitted on. What follows is of binary labels; `serving.model.temperatures` is of the rest.

    temperature   logit / T: one parameter, order and AUC stay
    isotonic      a rising line through the blocks of pool-adjacent-violators: as many parameters
                  as the data support, so that it needs far more of them
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

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
    require_that,
)
from serving.model.out_of_fold import Float, OutOfFold

METHODS = ("temperature", "isotonic", "none")

# Ten cases of each class for each parameter fitted: Peduzzi et al., J Clin Epidemiol 49 (1996).
LEAST_FOR_TEMPERATURE = 10
# Below about 1,000 cases isotonic regression overfits and a one-parameter map does better:
# Niculescu-Mizil and Caruana, Predicting Good Probabilities, ICML 2005.
LEAST_FOR_ISOTONIC = 1000
# Bounds of the temperature. At the upper one the logits carry no information; at the lower one no
# out-of-fold answer is wrong, so that no sharpness is too much: that is no optimum.
TEMPERATURES = (0.05, 100.0)
_PARTS = 10
_KINDS: dict[str, Kind] = {
    **{"method": OneOf(METHODS), "temperature": Within(float, TEMPERATURES[0], TEMPERATURES[1])},
    **{"knots": ListOf(list), "why": str, "measured": dict},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """A rising map from the ensemble's logit to the calibrated one.

    Attributes:
      method: one of `METHODS`.
      temperature: the logit is divided by it; 1 for the other methods.
      knots: (logit, calibrated logit) of the isotonic line, rising in both; beyond its ends it
        continues with slope 1.
      why: where nothing was fitted, the reason, for a person.
      measured: `n`, `positive`, and log loss and Brier score `before` and `after`; `after` is
        cross-fitted: each tenth of the patients by a map fitted on the others.
    """

    method: str = "none"
    temperature: float = 1.0
    knots: tuple[tuple[float, float], ...] = ()
    why: str = ""
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        knots = tuple((float(x), float(y)) for x, y in self.knots)
        object.__setattr__(self, "knots", knots)
        if self.method not in METHODS:
            raise ContractError(f"calibration {self.method!r} found, one of {METHODS} required")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ContractError(f"temperature must be a positive number: {self.temperature}")
        if self.temperature != 1 and self.method != "temperature":
            raise ContractError(f"temperature {self.temperature} with calibration {self.method}")
        flat = np.array(knots, dtype=np.float64).reshape(-1, 2)
        if not (np.isfinite(flat).all() and (np.diff(flat, axis=0) > 0).all()):
            raise ContractError("calibration knots must be finite and rise")
        if bool(knots) != (self.method == "isotonic"):
            raise ContractError(f"{len(knots)} calibration knots with {self.method}")

    def apply(self, logits: Float) -> Float:
        """The calibrated logits, float64."""
        if not self.knots:
            return logits / self.temperature
        x, y = np.array(self.knots).T
        inside = np.interp(logits, x, y)
        below, above = np.minimum(logits - x[0], 0.0), np.maximum(logits - x[-1], 0.0)
        return np.asarray(inside + below + above)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        return {**dataclasses.asdict(self), "knots": [list(knot) for knot in self.knots]}

    @property
    def steepness(self) -> float:
        """The map's largest slope: how much a rounding of the logit may grow."""
        x, y = np.array(self.knots or ((0.0, 0.0),)).T
        return float(max(1 / self.temperature, *(np.diff(y) / np.diff(x)), 0.0))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """Reads `to_json`'s object.

        Raises:
          ContractError: a field is missing, unknown or malformed.
        """
        where = "calibration."
        require_kinds(data, _KINDS, where=where)
        require_known(data, _KINDS, where=where)
        for place, knot in enumerate(data["knots"]):
            name = f"knots[{place}]"
            require_kinds({name: knot}, {name: ListOf(float)}, where=where)
            require_that(len(knot) == 2, {name: knot}, name, "two numbers", where=where)
        return cls(**{**data, "knots": tuple((x, y) for x, y in data["knots"])})


def fit(data: OutOfFold, ensemble: str, method: str | None) -> Calibration:
    """Fits the map and measures it.

    Args:
      data: out-of-fold predictions.
      ensemble: one of `ENSEMBLES`.
      method: one of `METHODS`; None is "temperature" where the predictions are enough for it and
        it lowers the cross-fitted log loss, else "none".

    Raises:
      UsageError: a requested method needs more predictions than there are.
    """
    positive = int(data.labels.sum())
    negative = len(data.labels) - positive
    counts = f"{len(data.labels)} patients out of fold ({positive} positive)"
    refusal = ""
    if method == "isotonic" and len(data.labels) < LEAST_FOR_ISOTONIC:
        refusal = (
            f"isotonic wants at least {LEAST_FOR_ISOTONIC} patients out of fold, "
            f"{len(data.labels)} found: on fewer it learns their noise (--calibration temperature)"
        )
    elif method != "none" and min(positive, negative) < LEAST_FOR_TEMPERATURE:
        refusal = f"{counts}: {LEAST_FOR_TEMPERATURE} of each class are the least to calibrate on"
    if refusal and method is not None:
        raise UsageError(f"--calibration {method}: {refusal}")
    logits = data.ensembled(ensemble)
    chosen = "none" if refusal else method or "temperature"
    fitted = _fitters[chosen](data.labels, logits)
    why = refusal or fitted.why or ("none was requested" if chosen == "none" else "")
    measured = _measured(data.labels, logits, chosen)
    if method is None and fitted.method == "temperature":
        before, after = (measured[side]["log_loss"] for side in ("before", "after"))
        if after >= before:
            # An ensemble is better than the members measured: softening it for nothing costs.
            return Calibration(
                why=f"a temperature of {fitted.temperature:.3g} does not lower the log loss of "
                f"patients it was not fitted on: {before:.4f} without, {after:.4f} with it",
                measured=measured,
            )
    return dataclasses.replace(fitted, why=why, measured=measured)


def fit_temperature(labels: npt.NDArray[np.int64], logits: Float) -> Calibration:
    """The temperature of least log loss.

    The loss is convex in 1 / T; its derivative's only root is found.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    def slope(sharpness: float) -> float:
        return float(np.mean(logits * (expit(sharpness * logits) - labels)))

    least, most = (1 / bound for bound in reversed(TEMPERATURES))
    if slope(least) >= 0:
        return Calibration(
            method="temperature",
            temperature=TEMPERATURES[1],
            why="out of fold the logits say no more than chance: flattened to nearly 0",
        )
    if slope(most) <= 0:
        return Calibration(why="no answer out of fold is wrong: nothing says how sharp to be")
    return Calibration(
        method="temperature", temperature=1 / float(brentq(slope, least, most, xtol=1e-10))
    )


def fit_isotonic(labels: npt.NDArray[np.int64], logits: Float) -> Calibration:
    """A line through the mean of each block of pool-adjacent-violators, in logits.

    Blocks of one class alone are taken for half a case away from certainty.
    """
    from scipy.optimize import isotonic_regression

    values, place = np.unique(logits, return_inverse=True)
    weights = np.bincount(place).astype(np.float64)
    shares = np.bincount(place, weights=labels) / weights
    found = isotonic_regression(shares, weights=weights)
    edge = 0.5 / len(labels)
    knots = []
    for start, stop in zip(found.blocks[:-1], found.blocks[1:], strict=True):
        share = float(np.clip(found.x[start], edge, 1 - edge))
        centre = float(np.average(values[start:stop], weights=weights[start:stop]))
        knots.append((centre, math.log(share / (1 - share))))
    return Calibration(method="isotonic", knots=tuple(knots))


_fitters: dict[str, Callable[[npt.NDArray[np.int64], Float], Calibration]] = {
    "temperature": fit_temperature,
    "isotonic": fit_isotonic,
    "none": lambda labels, logits: Calibration(),
}


def _measured(labels: npt.NDArray[np.int64], logits: Float, method: str) -> dict[str, Any]:
    """Counts, and the scores before and after; {} where one class or none is there."""
    counts = {"n": len(labels), "positive": int(labels.sum())}
    if not 0 < counts["positive"] < counts["n"]:
        return counts
    after = logits.copy()
    if method != "none":
        # Dealt in turn over the logits of each class: every part looks like the whole.
        part = np.empty(len(labels), dtype=np.int64)
        part[np.lexsort((logits, labels))] = np.arange(len(labels)) % _PARTS
        for number in range(_PARTS):
            held = part == number
            if len(set(labels[~held].tolist())) == 2:
                after[held] = _fitters[method](labels[~held], logits[~held]).apply(logits[held])
    return {**counts, "before": _scores(labels, logits), "after": _scores(labels, after)}


def _scores(labels: npt.NDArray[np.int64], logits: Float) -> dict[str, float]:
    from scipy.special import expit

    return {
        "log_loss": float(np.mean(np.logaddexp(0.0, np.where(labels == 1, -logits, logits)))),
        "brier": float(np.mean((expit(logits) - labels) ** 2)),
    }
