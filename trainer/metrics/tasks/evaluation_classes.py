"""What is measured of classes beside the headline: calls, agreement, probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics.auc import Floats
from trainer.metrics.roc_and_calibration import wilson_interval
from trainer.metrics.tasks import evaluation_parts as parts
from trainer.metrics.tasks.measure import log_odds, softmax, softmax_log_losses
from trainer.metrics.tasks.spread import (
    DRAWS,
    Figure,
    figure,
    mean_interval,
    ratio_interval,
    set_by_chance,
    sum_interval,
)

CONFUSION_MOST = 50  # classes whose confusion matrix is told


def accuracies(
    truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: int
) -> tuple[float, float | None]:
    """Accuracy, and the mean of the classes' shares called right; None where a class is absent.

    Args:
      truth, predicted: class indices, (n,).
      classes: how many there are.
    """
    sizes = np.bincount(truth, minlength=classes)
    hits = np.bincount(truth[truth == predicted], minlength=classes)
    balanced = float(np.mean(hits / sizes)) if sizes.all() else None
    return float(hits.sum() / truth.size), balanced


def quadratic_kappa(
    truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]
) -> tuple[float, Floats] | None:
    """Cohen's kappa with quadratic weights, of classes in order; a step counts the same anywhere.

    It is 1 - A / D: A the mean square of the steps between truth and call, D the same of a truth
    and a call of any two patients.

    Returns:
      Kappa and each patient's part in log(1 - kappa), (n,), whose mean is 0 (the delta method: the
      variance of Fleiss, Cohen and Everitt); these are 0 where every call is right. None where all
      patients and calls are of one class.

    Source: J. Cohen, Psychological Bulletin 70 (1968) 213-220; J. L. Fleiss, J. Cohen and B. S.
    Everitt, Psychological Bulletin 72 (1969) 323-327.
    """
    t, p = truth.astype(np.float64), predicted.astype(np.float64)
    squares = (t - p) ** 2
    to_calls = (t - p.mean()) ** 2 + p.var()  # mean square of this truth and anybody's call
    to_truths = (p - t.mean()) ** 2 + t.var()
    apart, expected = float(squares.mean()), float(to_calls.mean())
    if expected == 0:
        return None
    influence = -(to_calls + to_truths - 2 * expected) / expected
    if apart:
        influence = influence + (squares - apart) / apart
    else:
        influence = np.zeros_like(t)
    return 1 - apart / expected, influence


def class_figures(
    truth: npt.NDArray[np.int64],
    logits: Floats,
    *,
    ordered: bool,
    folds: npt.ArrayLike | None = None,
    level: float = 0.95,
    factor: float = 1.0,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Figure]:
    """Accuracy, balanced accuracy, quadratic kappa, log loss and Brier score.

    A patient is called what is most probable, the first of equals.

    Args:
      truth: class indices, (n,).
      logits: (n, classes).
      ordered: whether the classes are numbers in rising order: of others there is no kappa.
      folds: (n,) that labels are dealt anew within; None for one.
      level: of every interval.
      factor: of the variance behind it.
      seed: of the labels dealt anew.
      draws: how many deals of them.

    Returns:
      Name → `spread.figure`: accuracy (its reference the most frequent class's share),
      balanced_accuracy, quadratic_kappa (where ordered), log_loss and brier (the sum of the squares
      over the classes; references: the classes' shares here).
    """
    wide = np.asarray(logits, np.float64)
    classes = wide.shape[1]
    predicted = wide.argmax(axis=1)
    shares = np.bincount(truth, minlength=classes) / truth.size
    accuracy, balanced = accuracies(truth, predicted, classes)
    right = truth == predicted
    probabilities = softmax(wide)
    hot = truth[:, np.newaxis] == np.arange(classes)
    losses = softmax_log_losses(truth, wide)
    squares = ((probabilities - hot) ** 2).sum(axis=1)
    known = shares[shares > 0]
    figures = {
        "accuracy": figure(
            accuracy,
            wilson_interval(int(right.sum()), truth.size, level, factor),
            reference=float(shares.max()),
        ),
        "balanced_accuracy": figure(
            balanced,
            None if balanced is None else _balanced_interval(truth, right, classes, level, factor),
            reference=1 / classes,
        ),
    }
    if ordered:
        figures["quadratic_kappa"] = _kappa_figure(truth, predicted, level, factor)
    probable = {
        "log_loss": figure(
            float(losses.mean()),
            mean_interval(losses, level, factor),
            reference=float(-(known * np.log(known)).sum()),
        ),
        "brier": figure(
            float(squares.mean()),
            mean_interval(squares, level, factor),
            reference=float(1 - (shares**2).sum()),
        ),
    }

    def called(labels: npt.NDArray[np.int64]) -> dict[str, float | None]:
        found = dict(zip(("accuracy", "balanced_accuracy"),
                         accuracies(labels, predicted, classes), strict=True))  # fmt: skip
        if ordered:
            kappa = quadratic_kappa(labels, predicted)
            found["quadratic_kappa"] = kappa[0] if kappa else None
        return found

    set_by_chance(
        figures, called, truth, folds=folds, level=level, factor=factor, seed=seed, draws=draws
    )  # fmt: skip
    return {**figures, **probable}


def _balanced_interval(
    truth: npt.NDArray[np.int64],
    right: npt.NDArray[np.bool_],
    classes: int,
    level: float,
    factor: float,
) -> tuple[float, float]:
    each = []
    for one in range(classes):
        of, hits = int((truth == one).sum()), int(right[truth == one].sum())
        each.append((1 / classes, hits / of, wilson_interval(hits, of, level, factor)))
    return sum_interval(each)


def _kappa_figure(
    truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], level: float, factor: float
) -> Figure:
    found = quadratic_kappa(truth, predicted)
    if found is None or truth.size < 2:
        return figure(found[0] if found else None, reference=0.0)
    kappa, influence = found
    if kappa == 1:
        # Nobody is a step away; as many may be as Wilson's limit of none of n leaves room for.
        missed = wilson_interval(0, truth.size, level, factor)[1]
        expected = float(2 * truth.var())
        return figure(1.0, (1 - missed / expected, 1.0), reference=0.0)
    low, high = ratio_interval(1 - kappa, influence, level, factor)
    return figure(kappa, (1 - high, 1 - low), reference=0.0)


def class_parts(
    truth: npt.NDArray[np.int64],
    answers: Floats,
    names: tuple[str, ...],
    *,
    folds: npt.NDArray[Any] | None,
    level: float,
    factor: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Each class against the rest: what is called it, its calibration and its curve.

    Args:
      truth: class indices, (n,).
      answers: logits, (repeats, n, classes), NaN where a repeat lacks a patient.
      names: of the classes.
      folds: (n,) where curves are within folds; else None.
      level, factor, seed: as `class_figures`.

    Returns:
      A JSON object a class: name, share, `evaluation_parts.calls`, mean_probability of all
      patients, calibration and roc (null beyond `evaluation_parts.CURVES_MOST` classes).
    """
    mean = np.nanmean(answers, axis=0)
    predicted = mean.argmax(axis=1)
    odds, each = log_odds(mean), log_odds(answers)
    found: list[dict[str, Any]] = []
    for place, name in enumerate(names):
        own, logits = truth == place, odds[:, place]
        drawn = place < parts.CURVES_MOST
        found.append(
            {
                "name": name,
                "share": float(own.mean()),
                **parts.calls(own, predicted == place, level, factor),
                "calibration": parts.calibration(
                    own, logits, level=level, factor=factor, seed=seed
                ) if drawn else None,
                "roc": parts.curve(own, each[:, :, place], folds) if drawn else None,
            }
        )  # fmt: skip
    return found


def confusion(
    truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: int
) -> list[list[int]] | None:
    """Counts: a row a true class, a column a call; None of more classes than anybody reads."""
    if classes > CONFUSION_MOST:
        return None
    counts = np.bincount(truth * classes + predicted, minlength=classes**2)
    rows: list[list[int]] = counts.reshape(classes, classes).tolist()
    return rows
