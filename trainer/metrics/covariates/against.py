"""A run's networks against what covariates alone say: has more been learnt than age and sex?"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.csv_table import write_table
from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import Target
from trainer.config.run_layout import ALONE_NAME
from trainer.data.targets import truth_of
from trainer.metrics.comparisons import comparisons_of
from trainer.metrics.covariates.alone import held_out_answers
from trainer.metrics.predictions import Predictions, read_predictions
from trainer.metrics.tasks.estimate import estimate_of_task
from trainer.metrics.tasks.oof_table import oof_columns, oof_rows
from trainer.metrics.wording import summary_line, title_of

NAME = "covariates alone"


def write_alone(
    directory: files.StrPath,
    target: Target,
    covariates: Sequence[Covariate],
    *,
    labels: Mapping[str, Any],
    folds: Mapping[str, int | None],
    known: Mapping[str, npt.NDArray[Any]],
    held_out: Sequence[int],
    no_claim: Sequence[str],
) -> None:
    """Writes what covariates alone answer for a run's held-out patients, as its own table.

    Args:
      directory: of the run.
      target: what labels say.
      covariates: the dataset's.
      labels: of patients, permuted where the run permutes them.
      folds: of those that the run trains on or scores.
      known: their covariates, as in records.
      held_out: the folds that the run scores.
      no_claim: reason codes, of which these share that labels are permuted.
    """
    ids = sorted(folds)
    truth = truth_of(target, [labels[name] for name in ids])
    values = np.array([known[name] for name in ids], np.float64)
    of_fold = np.array([folds[name] for name in ids])
    rows: list[tuple[Any, ...]] = []
    for fold, places, answers in held_out_answers(
        target, covariates, values, truth, of_fold, held_out
    ):
        rows += oof_rows(
            target,
            patient_ids=[ids[place] for place in places],
            truth=truth[places],
            answers=answers,
            fold=fold,
            seed=0,
            chosen=("", "none", "+".join(code for code in no_claim if code == "permuted")),
        )
    write_table(files.join(directory, ALONE_NAME), oof_columns(target), rows)


def against_covariates(
    predictions: Predictions, run: files.StrPath | None, *, level: float = 0.95
) -> dict[str, Any] | None:
    """What covariates alone score on a run's own patients, and whether its networks score more.

    Args:
      predictions: of the run, with the reasons why they allow no claim.
      run: its directory.
      level: of the intervals.

    Returns:
      As JSON: "estimate" of covariates alone, "comparison" (`comparisons_of`; None where patients
      are too few for one) and "said", the two in words. None where the predictions are not out of
      fold, or the dataset has no covariates.

    Raises:
      ContractError: the run's table of them is none, or is of another task.
    """
    file = None if run is None else files.join(run, ALONE_NAME)
    if file is None or predictions.folds is None or files.stat(file) is None:
        return None
    alone = _of_same_patients(read_predictions(file, target=predictions.target), predictions)
    if not alone.keys:
        return None
    estimate = estimate_of_task(
        alone.target,
        alone.labels,
        alone.repeats,
        folds=alone.folds,
        level=level,
        no_claim=alone.no_claim,
    )
    comparison, said = None, f"{summary_line(estimate)}."
    with contextlib.suppress(ContractError):  # one patient of a class has no variance
        (comparison,) = comparisons_of(predictions, [alone], level)
        said = f"{said} {_judged(estimate, comparison)}".strip()
    return {"estimate": estimate, "comparison": comparison, "said": said}


def _of_same_patients(alone: Predictions, predictions: Predictions) -> Predictions:
    """Covariates alone on the patients that both have, by the labels of the predictions."""
    mine, theirs = predictions.common(alone)
    assert alone.folds is not None
    return dataclasses.replace(
        alone,
        name=NAME,
        keys=tuple(alone.keys[place] for place in theirs),
        labels=predictions.labels[mine],
        scores=alone.scores[theirs],
        probabilities=None,
        logits=None,
        folds=alone.folds[theirs],
        seeds={seed: answers[theirs] for seed, answers in alone.seeds.items()},
    )


def _judged(estimate: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """Whether the networks tell more than covariates do; "" where nothing can be said."""
    title = title_of(estimate)
    if comparison["difference_interval"] is None:
        return ""
    low, high = comparison["difference_interval"]
    if low > 0:
        return f"The networks' {title} is greater: they tell more than covariates do."
    if high < 0:
        return f"The networks' {title} is smaller: they tell less than covariates do."
    if estimate["better_than_chance"]:
        return "The networks cannot be told from that: they may have learnt no more."
    return f"Neither this {title} nor the networks' lead over it can be told from chance."
