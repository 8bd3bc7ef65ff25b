"""What an evaluation allows one to say, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.metrics.predictions import Predictions

# Why scores allow no claim: what stands in no_claim, and what it means.
REASONS = {
    "own_fold": "A version before 0.3 kept the epochs that scored best on these same patients.",
    "searched": "The settings were searched on some of these same patients.",
    "permuted": "The labels were permuted: this is what the recipe scores without any signal.",
}
PERMUTED = REASONS["permuted"]


def summary_line(metrics: Mapping[str, Any]) -> str:
    """`metrics_of`'s object as "AUC 0.93 (95 % interval 0.85 to 0.98, n = 60: 30 positive)"."""
    interval = ""
    if metrics["auc_interval"]:
        low, high = metrics["auc_interval"]
        interval = f"{100 * metrics['level']:g} % interval {low:.2f} to {high:.2f}, "
    name = auc_name(metrics["no_claim"])
    return (
        f"{name} {metrics['auc']:.2f} ({interval}n = {metrics['n']}: {metrics['positive']} "
        "positive)"
    )


def auc_name(no_claim: Sequence[str]) -> str:
    """What an AUC is called that has these reasons against a claim."""
    if "permuted" in no_claim:
        return "AUC of permuted labels"
    return "optimistic AUC" if no_claim else "AUC"


def verdict(metrics: Mapping[str, Any]) -> str:
    """What the interval allows one to say, in words."""
    if metrics["no_claim"]:
        reasons = " ".join(REASONS[reason] for reason in metrics["no_claim"])
        return f"No claim. {reasons}"
    if metrics["better_than_chance"]:
        return "The interval lies above 0.5: better than chance on patients like these."
    if metrics["worse_than_chance"]:
        return "The interval lies below 0.5: worse than chance; are labels or ids swapped?"
    return "The interval contains 0.5: these predictions cannot be told from chance."


def reading(evaluation: Mapping[str, Any]) -> list[str]:
    """The honest reading of an evaluation, a sentence each."""
    n, value = evaluation["n"], evaluation["auc"]
    low, high = evaluation["auc_interval"]
    said = f"This AUC of {value:.2f} on {n} patients"
    if low > 0.5:
        first = f"{said} is better than chance on patients like these."
    elif high < 0.5:
        first = f"{said} is worse than chance; are labels or ids swapped?"
    else:
        first = f"{said} cannot be told from chance."
    lowest = evaluation["auc_told_from_chance"]
    sentences = [
        first,
        f"The true AUC of such a model may lie anywhere from {low:.2f} to {high:.2f}; with "
        f"{evaluation['positive']} positive and {n - evaluation['positive']} negative patients, "
        f"only an AUC above {lowest:.2f} could be told from chance.",
    ]
    permutation = evaluation["permutation"]
    sentences.append(
        f"With labels shuffled {permutation['permutations']:,} times, an AUC as far from chance "
        f"came up with {p_text(permutation['p_value'])}."
    )
    return sentences


def p_text(p: float) -> str:
    """A p-value in words: "p = 0.031", "p = 0.0004", "p < 0.0001"."""
    if p < 0.00005:
        return "p < 0.0001"
    return f"p = {p:.2g}" if p >= 0.001 else f"p = {p:.1g}"


def warnings_of(predictions: Predictions, evaluation: Mapping[str, Any]) -> list[str]:
    """What stands between these numbers and new patients, a sentence each."""
    warnings = []
    facts = evaluation["run"]
    if facts or evaluation["learning_curves"]:
        last = facts["last_epoch_auc"] if facts else None
        also = "" if last is None else f" The last epochs, which were not chosen, score {last:.2f}."
        warnings.append(
            "The best epochs were chosen on these same patients, which flatters them." + also
        )
    elif predictions.folds is not None:
        warnings.append(
            "Out-of-fold predictions without their run: if each fold's best epoch was chosen on "
            "these same patients, that flatters them."
        )
    if facts and facts["permute_labels"]:
        warnings.append(PERMUTED)
    if relabelled := predictions.relabelled:
        warnings.append(
            f"{len(relabelled)} of {evaluation['n']} patients have another label here than in the "
            "predictions file."
        )
    for ids, said in (
        (predictions.without_label, "predicted but without a label, and left out"),
        (predictions.without_prediction, "labelled but not predicted, and left out"),
    ):
        if ids:
            warnings.append(
                f"{len(ids)} {'patient is' if len(ids) == 1 else 'patients are'} {said}."
            )
    if lacking := sum(1 for one in np.isnan(list(predictions.seeds.values())).T if one.any()):
        warnings.append(
            f"{lacking} patients lack some of the seeds: theirs is the mean over those they have."
        )
    return warnings
