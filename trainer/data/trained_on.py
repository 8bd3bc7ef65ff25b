"""Whom networks were trained on, in numbers, and what these alone answer.

task         beside `patients`                 answered without an image, (outputs,)
-----------  --------------------------------  -------------------------------------
binary       positive                          share of positives
multiclass   classes {name: patients}          share of each class
multilabel   labels {name: positives},         share of positives, of those known
             known {name: patients}
regression   mean, sd, in the label's unit     the mean
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from beam_jobs.common.contract_json import (
    ContractError,
    Kind,
    Within,
    require_kinds,
    require_that,
    shown,
)
from beam_jobs.core.cohort.target import Label, Target
from trainer.data.targets import truth_of

_COUNT = Within(int, 0)


def trained_on(target: Target, labels: Sequence[Label]) -> dict[str, Any]:
    """The numbers of some patients' labels, as JSON; see the table above."""
    truth = truth_of(target, labels)
    told: dict[str, Any] = {"patients": len(labels)}
    if target.task == "binary":
        told["positive"] = int((truth == 1).sum())
    elif target.task == "multiclass":
        counts = np.bincount(truth, minlength=target.outputs).tolist()
        told["classes"] = dict(zip(target.names, counts, strict=True))
    elif target.task == "multilabel":
        for name, counts in (("labels", truth == 1), ("known", ~np.isnan(truth))):
            told[name] = dict(zip(target.names, counts.sum(axis=0).tolist(), strict=True))
    else:
        told |= {"mean": float(truth.mean()), "sd": float(truth.std())}
    return told


def prior_of(target: Target, told: Mapping[str, Any]) -> tuple[float, ...]:
    """What is answered of a patient of whom nothing is known, from `trained_on`'s numbers."""
    patients = told["patients"]
    if target.task == "binary":
        return (told["positive"] / patients,)
    if target.task == "multiclass":
        return tuple(told["classes"][name] / patients for name in target.names)
    if target.task == "multilabel":
        return tuple(told["labels"][name] / told["known"][name] for name in target.names)
    return (told["mean"],)


def require_trained_on(target: Target, told: Mapping[str, Any], *, where: str) -> None:
    """Refuses what `trained_on` would not have told of patients that can be trained on.

    Args:
      target: what labels say.
      told: JSON.
      where: its place, with a dot at its end.

    Raises:
      ContractError: names the member.
    """
    place = where.removesuffix(".")
    if target.task == "binary":
        require_kinds(told, dict.fromkeys(("patients", "positive"), _COUNT), where=where)
        if not 0 <= told["positive"] <= told["patients"] != 0:
            raise ContractError(f"{place}: {shown(told)} found, some of patients required")
        return
    require_kinds(told, {"patients": Within(int, 1)}, where=where)
    if target.task == "regression":
        kinds: dict[str, Kind] = {"mean": float, "sd": Within(float, 0)}
        require_kinds(told, kinds, where=where)
        return
    counted = ("classes",) if target.task == "multiclass" else ("labels", "known")
    for name in counted:
        require_kinds(told, {name: dict}, where=where)
        require_kinds(told[name], dict.fromkeys(target.names, _COUNT), where=f"{where}{name}.")
    if target.task == "multiclass":
        fits = sum(told["classes"][name] for name in target.names) == told["patients"]
        require_that(fits, told, "classes", f"{told['patients']} in all", where=where)
        return
    for name in target.names:
        fits = told["labels"][name] <= told["known"][name] <= told["patients"]
        fits = fits and told["known"][name] > 0
        required = f"at least those positive, at most {told['patients']},"
        require_that(fits, told["known"], name, required, where=f"{where}known.")
