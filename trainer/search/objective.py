"""What a search maximises: a task's score of a trial's networks at their last epoch."""

from __future__ import annotations

from typing import Any

from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.target import Target
from trainer.config.run_layout import OOF_NAME
from trainer.metrics.predictions import read_predictions
from trainer.metrics.tasks.estimate import estimate_of_task
from trainer.metrics.tasks.measure import TASK_MEASURES, measure_of
from trainer.metrics.wording import score_of
from trainer.search.trial import COMPLETED
from trainer.training.run_files import Run

OBJECTIVES = ("val_auc", *(f"val_{name}" for name in TASK_MEASURES))


def objective_of(target: Target) -> str:
    """The one of `OBJECTIVES` by which networks of such labels are scored."""
    return f"val_{measure_of(target).name}"


def measured(predictions: files.StrPath) -> dict[str, Any]:
    """`estimate_of_task` of oof_predictions.csv, each seed a repeat."""
    found = read_predictions(predictions)
    return estimate_of_task(found.target, found.labels, found.repeats, folds=found.folds)


def result_of(run_: Run) -> dict[str, Any]:
    """result.json of a finished run; without an interval, for a trial is chosen among many.

    The objective is the mean over seeds and folds of the score; of an AUC, a fold weighed by its
    pairs.
    """
    name = measure_of(run_.target).key
    estimate = measured(files.join(run_.directory, OOF_NAME))
    return {
        "status": COMPLETED,
        "objective": score_of(estimate),
        "n": estimate["n"],
        "folds": [
            {key: one[key] for key in ("fold", "seed", name)} for one in run_.metrics["folds"]
        ],
        "epochs": run_.config["epochs"],
        "batch_size": run_.config["batch_size"],
        "precision": run_.precision,
        "seconds": run_.wall_seconds,
        "config": run_.config,
    }
