"""What a model answers of a patient, and what the columns of a table call it.

task         columns that may be asked for (`groups`); what stands in a row by default
-----------  ---------------------------------------------------------------------------
binary       probability, logit, spread                          probability
multiclass   class, probability_<class>, logit_…, spread_…       class, probability_<class>
multilabel   probability_<label>, logit_…, spread_…              probability_<label>
regression   value, low, high, spread                            value, low, high

A spread is the standard deviation of the members' answers: of probabilities, or of values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from beam_jobs.core.cohort.target import Target

CLASS = "class"  # the most probable one, by name
_GROUPS = {
    "binary": ("probability", "logit", "spread"),
    "multiclass": (CLASS, "probability", "logit", "spread"),
    "multilabel": ("probability", "logit", "spread"),
    "regression": ("value", "low", "high", "spread"),
}
_DEFAULT = {
    "binary": ("probability",),
    "multiclass": (CLASS, "probability"),
    "multilabel": ("probability",),
    "regression": ("value", "low", "high"),
}
# Of the signature `volumes`; those of classes and findings also have their names, `classes`.
_SEVERAL = ("probabilities", "logits", "member_probabilities")
OUTPUTS = {
    "binary": ("probability", "logit", "member_probability"),
    "multiclass": _SEVERAL,
    "multilabel": _SEVERAL,
    "regression": ("value", "low", "high", "member_value"),
}


class Prediction(NamedTuple):
    """One patient's answer.

    Attributes:
      patient_id: as in the record.
      values: column -> number, a float32's value: the probability, or one a class or finding, and
        the logit, all calibrated, and the spread (0 of one member); or the value with `low` and
        `high`, NaN where the model has no interval.
      missing: modalities and covariates that the model looks at and the patient does not have.
    """

    patient_id: str
    values: Mapping[str, float]
    missing: tuple[str, ...]

    def answer(self, target: Target) -> tuple[float, ...]:
        """The probability, one a class or finding, or the value."""
        return tuple(self.values[name] for name in answer_columns(target))


def groups_of(target: Target) -> tuple[str, ...]:
    """What may be asked for of a model's answers."""
    return _GROUPS[target.task]


def default_groups(target: Target) -> tuple[str, ...]:
    """What of them is answered unless something else is asked for."""
    return _DEFAULT[target.task]


def columns_of(target: Target, groups: Iterable[str]) -> list[str]:
    """The columns that groups stand for, in order; a group that is none of a model's is itself."""
    each = ("probability", "logit", "spread")
    found = (target.columns(group) if group in each else (group,) for group in groups)
    return [name for names in found for name in names]


def answer_columns(target: Target) -> list[str]:
    """The columns of what a model is asked: of `Prediction.answer`, and of a contract's prior."""
    return columns_of(target, ["value" if target.task == "regression" else "probability"])


def number_columns(target: Target) -> list[str]:
    """All that hold numbers: of `Prediction.values`."""
    return columns_of(target, [group for group in groups_of(target) if group != CLASS])


def class_of(target: Target, probabilities: Sequence[float]) -> str:
    """The name of the most probable class; the first of several."""
    return target.names[int(np.argmax(probabilities))]
