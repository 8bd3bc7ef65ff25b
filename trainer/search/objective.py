"""What a search maximises: the AUC of a trial's networks at their last epoch."""

from __future__ import annotations

from typing import Any

from beam_jobs.common.files import interface as files
from trainer.config.run_layout import OOF_NAME
from trainer.metrics.estimate import estimate_of
from trainer.metrics.predictions import read_predictions
from trainer.search.trial import COMPLETED
from trainer.training.run_files import Run


def measured(predictions: files.StrPath) -> dict[str, Any]:
    """`estimate_of` oof_predictions.csv, each seed a repeat."""
    found = read_predictions(predictions)
    return estimate_of(found.labels, found.repeats, folds=found.folds)


def result_of(run_: Run) -> dict[str, Any]:
    """result.json of a finished run; without an interval, for a trial is chosen among many.

    The objective is the mean over seeds and folds of the AUC, a fold weighed by its pairs.
    """
    estimate = measured(files.join(run_.directory, OOF_NAME))
    return {
        "status": COMPLETED,
        "objective": estimate["auc"],
        "n": estimate["n"],
        "folds": [
            {name: one[name] for name in ("fold", "seed", "auc")} for one in run_.metrics["folds"]
        ],
        "epochs": run_.config["epochs"],
        "batch_size": run_.config["batch_size"],
        "precision": run_.precision,
        "seconds": run_.wall_seconds,
        "config": run_.config,
    }
