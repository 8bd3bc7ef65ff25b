"""Figures of classes, findings and values in plain words, for pages and terminals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "quadratic_kappa": "quadratic kappa",
    "log_loss": "log loss",
    "brier": "Brier score",
    "all_right": "all findings right",
    "mae": "mean absolute error",
    "rmse": "root mean square error",
    "r2": "R²",
    "pearson": "Pearson's correlation",
}
IN_UNITS = ("mae", "rmse")  # figures in the unit of values; others have none


# A figure's row on a terminal: its name, and what its text begins with.
_ROWS = {
    "accuracy": ("accuracy", ""),
    "balanced_accuracy": ("balanced", "accuracy "),
    "quadratic_kappa": ("kappa", "quadratic "),
    "log_loss": ("log loss", ""),
    "brier": ("Brier", "score "),
    "all_right": ("all right", "every finding of a patient "),
    "mae": ("MAE", "mean absolute error "),
    "rmse": ("RMSE", "root mean square error "),
    "r2": ("R²", ""),
    "pearson": ("Pearson", "correlation "),
}


def figure_lines(measured: Mapping[str, Any], unit: str = "") -> Iterator[tuple[str, str]]:
    """The figures that a terminal shows under the headline, (name, text) of a row each.

    Args:
      measured: with figures, and of values agreement, as metrics.json has them.
      unit: of values.
    """
    for name, figure in measured["figures"].items():
        if figure["value"] is None:
            continue
        row, start = _ROWS[name]
        one_unit = unit if name in IN_UNITS else ""
        text = f"{start}{with_interval(figure['value'], figure['interval'], one_unit)}"
        if figure["reference"] is not None:
            text += f"; {number(figure['reference'])} {reference_text(name)}"
        yield row, text
    if agreement := measured.get("agreement"):
        low, high = number(agreement["low"]), number(agreement["high"])
        bias = with_interval(agreement["bias"], agreement["bias_interval"], unit)
        yield "agreement", f"bias {bias}; 95 % of differences from {low} to {high}"


def reference_text(name: str) -> str:
    """What a figure's reference is of."""
    return {
        "accuracy": "by the most frequent class alone",
        "balanced_accuracy": "by any one class alone",
        "quadratic_kappa": "by chance",
        "log_loss": "by the shares alone",
        "brier": "by the shares alone",
        "all_right": "by the more frequent state of each",
        "mae": "by these patients' median alone",
        "rmse": "by these patients' mean alone",
        "r2": "by these patients' mean alone",
        "pearson": "by chance",
    }[name]


def plain_words(evaluation: Mapping[str, Any]) -> list[str]:
    """What the figures mean, a sentence each; none of answers that allow no claim."""
    if evaluation["no_claim"]:
        return []
    words = {"multiclass": _of_classes, "multilabel": _of_findings, "regression": _of_values}
    return words[evaluation["task"]](evaluation)


def _of_classes(evaluation: Mapping[str, Any]) -> list[str]:
    accuracy = evaluation["figures"]["accuracy"]
    sentences = [
        f"Of 100 patients like these, {_hundred(accuracy['value'])} "
        f"({_hundreds(accuracy['interval'])}) are called right; always calling the most frequent "
        f"class would be right in {_hundred(accuracy['reference'])}."
    ]
    kappa = evaluation["figures"].get("quadratic_kappa")
    if kappa and kappa["value"] is not None:
        sentences.append(
            f"The classes are numbers in order: quadratic kappa, which forgives near misses, is "
            f"{with_interval(kappa['value'], kappa['interval'])}; 1 is full agreement, 0 that of "
            "calls dealt at random."
        )
    return sentences


def _of_findings(evaluation: Mapping[str, Any]) -> list[str]:
    right = evaluation["figures"]["all_right"]
    return [
        f"Of 100 patients like these, {_hundred(right['value'])} ({_hundreds(right['interval'])}) "
        "have every finding called right at a probability of 0.5; calling the more frequent state "
        f"of each would be right in {_hundred(right['reference'])}.",
    ]


def _of_values(evaluation: Mapping[str, Any]) -> list[str]:
    unit = evaluation["target"]["unit"]
    mae, agreement = evaluation["figures"]["mae"], evaluation["agreement"]
    sentences = [
        f"A prediction is off by {with_interval(mae['value'], mae['interval'], unit)} on average; "
        f"answering every patient with their median would be off by "
        f"{in_unit(mae['reference'], unit)}."
    ]
    if interval := agreement["bias_interval"]:
        side = "cannot be told from 0"
        if interval[0] > 0 or interval[1] < 0:
            side = f"predictions are too {'high' if interval[0] > 0 else 'low'}"
        sentences.append(f"The bias is {with_interval(agreement['bias'], interval, unit)}: {side}.")
    line = evaluation["line"]
    if line and line["slope_interval"]:
        low, high = line["slope_interval"]
        said = "1 is right, and cannot be told from it"
        if high < 1:
            said = "below 1, predictions are spread wider than they can answer for"
        elif low > 1:
            said = "above 1, predictions keep too near the mean"
        sentences.append(
            f"True values rise by {with_interval(line['slope'], line['slope_interval'])} for every "
            f"1 that predictions rise by: {said}."
        )
    return sentences


def _hundred(share: float) -> str:
    return f"{100 * share:.0f}"


def _hundreds(interval: Sequence[float]) -> str:
    return f"{_hundred(interval[0])} to {_hundred(interval[1])}"


def with_interval(value: float, interval: Sequence[float] | None, unit: str = "") -> str:
    """ "4.21 ml (3.60 to 4.90)", or without an interval "4.21 ml"."""
    text = in_unit(value, unit)
    return f"{text} ({number(interval[0])} to {number(interval[1])})" if interval else text


def in_unit(value: float, unit: str) -> str:
    """ "4.21 ml"."""
    return f"{number(value)} {unit}".rstrip()


def number(value: float) -> str:
    """Three digits that count, all before the point of great numbers, with a true minus.

    Small ones have two behind the point at least.
    """
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-4:
        text = f"{value:.2e}"
    else:
        text = f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3}f}"
    return "0.00" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")
