"""metrics.json and report.html of an evaluation: one page that needs nothing but itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import write_json
from beam_jobs.common.templating import render
from trainer.config.run_layout import METRICS_NAME, REPORT_NAME
from trainer.metrics.covariates.against import against_covariates
from trainer.metrics.evaluation import evaluation_of
from trainer.metrics.predictions import Predictions
from trainer.metrics.wording import auc_name, permutations_text
from trainer.reports import charts
from trainer.reports.formats import filters_of, learnt
from trainer.reports.task_evaluation import task_page


def write_report(
    directory: files.StrPath,
    predictions: Predictions,
    *,
    others: Sequence[Predictions] = (),
    series: files.StrPath | None = None,
    run: files.StrPath | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Path:
    """Measures predictions and writes metrics.json and report.html.

    Args:
      directory: where to, local or in a store; made when it does not exist.
      predictions: of the model the report is about (`predictions.read_predictions`).
      others: of models it is compared with.
      series: the dataset's series.csv, for groups by scanner and plane.
      run: the training run's directory, for learning curves.
      level: of every interval.
      seed: of the bootstrap.

    Returns:
      The report's path.

    Raises:
      ContractError, UsageError: as `evaluation.evaluation_of`.
    """
    evaluation = evaluation_of(
        predictions, others=others, series=series, run=run, level=level, seed=seed
    )
    judged = dataclasses.replace(predictions, no_claim=tuple(evaluation["no_claim"]))
    if alone := against_covariates(judged, run, level=level):
        evaluation["covariates_alone"] = alone
        evaluation["reading"].append(f"Covariates alone, without an image: {alone['said']}")
    json.dumps(evaluation, allow_nan=False)  # JSON has no NaN: other readers would refuse the file
    text = page(evaluation)
    write_json(files.join(directory, METRICS_NAME), evaluation)
    files.write_text(files.join(directory, REPORT_NAME), text)
    return Path(directory, REPORT_NAME)


def page(evaluation: dict[str, Any]) -> str:
    """report.html of the object in metrics.json."""
    if "task" in evaluation:
        return task_page(evaluation)
    drawn = {
        "roc": charts.roc(evaluation),
        "precision_recall": charts.precision_recall(evaluation),
        "calibration": charts.calibration(evaluation) if evaluation["calibration"] else "",
        "histogram": charts.histogram(evaluation),
        "chance": charts.chance(evaluation) if evaluation["permutations"] else "",
        "groups": charts.groups(evaluation) if evaluation["groups"] else "",
    }
    return render(
        "trainer.reports",
        "evaluation.html.j2",
        filters=filters_of(evaluation),
        e=evaluation,
        charts={name: Markup(svg) for name, svg in drawn.items()},
        permutations=permutations_text(evaluation) if evaluation["permutations"] else "",
        called=auc_name(evaluation["no_claim"]),
        learning=[Markup(svg) for svg in charts.learning(evaluation)],
        learnt=learnt(evaluation),
        roc_rows=_sensitivity_at(evaluation["curves"]["roc"]),
        recall_rows=_precision_at(evaluation["curves"]["precision_recall"]),
    )


def _sensitivity_at(roc: dict[str, Any]) -> list[dict[str, Any]]:
    """Sensitivity and its band, if there is one, at every tenth of the false positive rate."""
    band = roc["band"]
    grid = np.linspace(0, 1, 101).tolist()
    values = np.interp(grid, roc["false_positive_rate"], roc["sensitivity"])
    return [
        {
            "rate": grid[place],
            "sensitivity": float(values[place]),
            "interval": [band["low"][place], band["high"][place]] if band else None,
        }
        for place in range(10, 100, 10)
    ]


def _precision_at(curve: dict[str, Any]) -> list[dict[str, float]]:
    """Precision at the first threshold that reaches each fifth of recall."""
    rows = []
    for fifths in range(1, 6):
        place = next(i for i, r in enumerate(curve["recall"]) if r >= fifths / 5 - 1e-12)
        rows.append({"recall": curve["recall"][place], "precision": curve["precision"][place]})
    return rows
