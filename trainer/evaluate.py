"""How good predictions are, and how sure one can be: AUC, its interval, log loss; no TensorFlow."""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.core.cli import EXIT_OK, Parser, UsageError, read_text, run
from beam_jobs.core.record import ContractError

PROG = "python -m trainer.evaluate"
_SHOWN = 10  # ids listed on the terminal; metrics.json has all


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the ROC curve, exactly: the share of (positive, negative) pairs ranked right.

    A tie counts half (Mann-Whitney's U by midranks).

    Args:
      labels: 0 or 1, (n,).
      scores: any finite numbers, (n,); only their order matters.

    Raises:
      ValueError: a class is absent, a label is not 0 or 1, or a score is not finite.
    """
    truth, values = _checked(labels, scores)
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2
    positive = int(truth.sum())
    rank_sum = midranks[place][truth].sum()
    pairs = positive * (truth.size - positive)
    return float((rank_sum - positive * (positive + 1) / 2) / pairs)


def auc_interval(
    labels: npt.ArrayLike, scores: npt.ArrayLike, level: float = 0.95
) -> tuple[float, float]:
    """Confidence interval of the AUC: Newcombe's method 5.

    The limits are the values θ whose distance from the estimate is z standard errors *at θ*
    (as in Wilson's interval for a proportion), with Hanley and McNeil's variance under the
    exponential model and both group sizes in it replaced by their mean. It keeps its coverage for
    small groups and is neither empty nor outside 0 .. 1 at an AUC of 0 or 1.

    Source: R. G. Newcombe, Statistics in Medicine 25 (2006) 559-573.

    Raises:
      ValueError: as `auc`, or a level outside (0, 1).
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1: {level}")
    estimate = auc(labels, scores)
    truth = np.asarray(labels)
    positive = int(truth.sum())
    negative = truth.size - positive
    z = float(ndtri(0.5 + level / 2))
    excess = (positive + negative) / 2 - 1

    def standard_error(theta: float) -> float:
        spread = 1 + excess * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return math.sqrt(theta * (1 - theta) * spread / (positive * negative))

    def limit(end: float, sign: float) -> float:
        """The root between the estimate and `end`; where they meet, the estimate is the limit."""
        if estimate == end:
            return end
        near = min(max(estimate, 1e-12), 1 - 1e-12)  # the trivial root at 0 and 1 lies outside
        return float(brentq(lambda t: sign * (t - estimate) - z * standard_error(t), near, end))

    return limit(0.0, -1.0), limit(1.0, 1.0)


def log_loss(labels: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """Mean negative log likelihood in nats, from logits: exact and finite for any finite logit.

    Raises:
      ValueError: as `auc`, except that one class may be absent.
    """
    truth, values = _checked(labels, logits, both_classes=False)
    return float(np.mean(np.logaddexp(0.0, np.where(truth, -values, values))))


def sigmoid(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Probability of each logit, float64, without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64)))


def metrics_of(labels: npt.ArrayLike, scores: npt.ArrayLike, level: float = 0.95) -> dict[str, Any]:
    """AUC, its interval and the counts behind it, as a JSON object."""
    truth = np.asarray(labels)
    low, high = auc_interval(labels, scores, level)
    return {
        "auc": auc(labels, scores),
        "auc_interval": [low, high],
        "level": level,
        "n": int(truth.size),
        "positive": int(truth.sum()),
        "interval_method": "Newcombe 2006, method 5",
    }


def summary_line(metrics: Mapping[str, Any]) -> str:
    """`metrics_of`'s object as "AUC 0.93 (95 % interval 0.85 to 0.98, n = 60: 30 positive)"."""
    low, high = metrics["auc_interval"]
    return (
        f"AUC {metrics['auc']:.2f} ({100 * metrics['level']:g} % interval {low:.2f} to {high:.2f}, "
        f"n = {metrics['n']}: {metrics['positive']} positive)"
    )


def verdict(metrics: Mapping[str, Any]) -> str:
    """What the interval allows one to say, in words."""
    low, high = metrics["auc_interval"]
    if low > 0.5:
        return "The interval lies above 0.5: better than chance on patients like these."
    if high < 0.5:
        return "The interval lies below 0.5: worse than chance; are labels or ids swapped?"
    return "The interval contains 0.5: these predictions cannot be told from chance."


def _checked(
    labels: npt.ArrayLike, scores: npt.ArrayLike, *, both_classes: bool = True
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape or not truth.size:
        raise ValueError(f"as many labels as scores needed: {truth.shape} and {values.shape}")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite numbers")
    positive = int(truth.sum())
    if both_classes and not 0 < positive < truth.size:
        raise ValueError(
            f"an AUC needs both classes: {positive} positive and {truth.size - positive} negative"
        )
    return truth.astype(bool), values


def read_column(file: Path, id_columns: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    """Patient key → text of a CSV's column; the first of the given names that exists is taken.

    The key is the id without leading zeros: tools that read "00005" as a number write "5".

    Raises:
      UsageError: no such file, no UTF-8 text, no CSV, or none of the columns.
      ContractError: an id that stands twice, or two ids that differ in leading zeros only.
    """
    reader = csv.DictReader(io.StringIO(read_text(file).removeprefix("\ufeff"), newline=""))
    try:
        found = reader.fieldnames or []
        id_column = next((name for name in id_columns if name in found), None)
        column = next((name for name in columns if name in found), None)
        for wanted, chosen in ((id_columns, id_column), (columns, column)):
            if chosen is None:
                told = ", ".join(found) or "none"
                raise UsageError(f"{file}: no column {' or '.join(wanted)}; it has {told}")
        rows = [((row[id_column] or "").strip(), row[column] or "") for row in reader]
    except csv.Error as error:
        raise UsageError(f"{file}, line {reader.line_num}: {error}") from error
    values: dict[str, str] = {}
    spelt: dict[str, str] = {}
    for patient_id, value in rows:
        key = patient_id.lstrip("0") or patient_id[:1]
        if key in values:
            raise ContractError(f"{file}: ambiguous ids {spelt[key]!r} and {patient_id!r}")
        values[key], spelt[key] = value.strip(), patient_id
    return values


def evaluate_files(
    predictions: dict[str, str], labels: dict[str, str], level: float = 0.95
) -> dict[str, Any]:
    """Joins predictions with labels by key and measures what both sides have.

    A blank label counts as none.

    Raises:
      ContractError: a value that is not a number, or too little to measure.
    """
    known = {key: text for key, text in labels.items() if text}
    both = sorted(predictions.keys() & known.keys())
    if not both:
        raise ContractError("no patient has both a prediction and a label: are the ids the same?")
    try:
        scores = np.array([float(predictions[key]) for key in both])
        truth = np.array([float(known[key]) for key in both])
        metrics = metrics_of(truth, scores, level)
    except ValueError as error:
        raise ContractError(str(error)) from error
    if scores.min() >= 0 and scores.max() <= 1:
        clipped = np.clip(scores, 1e-15, 1 - 1e-15)
        metrics["log_loss"] = log_loss(truth, np.log(clipped) - np.log1p(-clipped))
    return {
        **metrics,
        "verdict": verdict(metrics),
        "without_label": sorted(predictions.keys() - known.keys()),
        "without_prediction": sorted(known.keys() - predictions.keys()),
    }


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        description="AUC of predictions against labels, with its interval and a verdict in words.",
        examples=(
            f"  {PROG} --predictions submission.csv --labels labels.csv\n"
            f"  {PROG} --predictions run/oof_predictions.csv \\\n"
            "      --labels labels.csv --output report"
        ),
    )
    add = parser.add_argument
    add("--predictions", required=True, type=Path, help="submission.csv or oof_predictions.csv")
    add("--labels", required=True, type=Path, help="CSV with an id and a label of 0 or 1 a row")
    add(
        "--id_column",
        default="BraTS21ID",
        help="of both files (patient_id is understood too); leading zeros do not matter",
    )
    add("--label_column", default="MGMT_value", help="of the labels file")
    add(
        "--probability_column",
        default="MGMT_value",
        help="of the predictions file (probability is understood too)",
    )
    add("--output", type=Path, help="folder to write metrics.json into")
    return parser


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    args = _parser().parse_args(argv)
    ids = (args.id_column, "patient_id")
    predictions = read_column(args.predictions, ids, (args.probability_column, "probability"))
    labels = read_column(args.labels, ids, (args.label_column,))
    metrics = evaluate_files(predictions, labels)
    print(summary_line(metrics))
    print(metrics["verdict"])
    for name, text in (
        ("without_label", "predicted but without a label"),
        ("without_prediction", "labelled but not predicted"),
    ):
        if missing := metrics[name]:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            print(f"{len(missing)} {text}: {', '.join(missing[:_SHOWN])}{more}", file=sys.stderr)
    if args.output:
        from trainer.runs import write_json

        args.output.mkdir(parents=True, exist_ok=True)
        write_json(args.output / "metrics.json", metrics)
        print(f"wrote {args.output / 'metrics.json'}")
    return EXIT_OK


if __name__ == "__main__":
    run(main, PROG)
