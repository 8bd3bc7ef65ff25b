"""What an evaluation allows one to say, in plain words.

Every sentence follows from `estimate.estimate_of`'s better_than_chance, worse_than_chance and
no_claim, and every number is printed with digits enough not to contradict it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.metrics.estimate import ALL_PAIRS, BY_PERMUTATIONS

# Why scores allow no claim: what stands in no_claim, and what it means.
REASONS = {
    "own_fold": "A version before 0.3 kept the epochs that scored best on these same patients.",
    "searched": "The settings were searched on some of these same patients.",
    "no_folds": "It has no folds, and a file beside it scores the same patients out of fold: its "
    "model may have been trained on these patients.",
    "permuted": "The labels were permuted: this is what the recipe scores without any signal.",
}
PERMUTED = REASONS["permuted"]


def summary_line(metrics: Mapping[str, Any]) -> str:
    """`estimate_of`'s object as "AUC 0.93 (95 % interval 0.85 to 0.98, n = 60: 30 positive)"."""
    interval = ""
    if metrics["auc_interval"]:
        interval = f"{100 * metrics['level']:g} % interval {interval_text(metrics)}, "
    return (
        f"{auc_name(metrics['no_claim'])} {auc_text(metrics)} "
        f"({interval}n = {metrics['n']}: {metrics['positive']} positive)"
    )


def auc_name(no_claim: Sequence[str]) -> str:
    """What an AUC is called that has these reasons against a claim."""
    return {"": "AUC", "optimistic": "optimistic AUC"}.get(mark(no_claim), "AUC of permuted labels")


def mark(no_claim: Sequence[str]) -> str:
    """What is set beside a number that has these reasons against a claim; "" without any."""
    if "permuted" in no_claim:
        return "of permuted labels"
    return "optimistic" if no_claim else ""


def verdict(metrics: Mapping[str, Any]) -> str:
    """What `estimate_of`'s object allows one to say, in words."""
    if metrics["no_claim"]:
        reasons = " ".join(REASONS[reason] for reason in metrics["no_claim"])
        return f"No claim. {reasons}"
    if metrics["better_than_chance"]:
        return "The interval lies above 0.5: better than chance on patients like these."
    if metrics["worse_than_chance"]:
        return "The interval lies below 0.5: worse than chance; are labels or ids swapped?"
    return "The interval contains 0.5: these predictions cannot be told from chance."


def reading(evaluation: Mapping[str, Any]) -> list[str]:
    """The honest reading of an evaluation, a sentence each; the first is the headline."""
    n, positive = evaluation["n"], evaluation["positive"]
    said = f"This AUC of {auc_text(evaluation)} on {n} patients"
    if no_claim := evaluation["no_claim"]:
        what = "is that of permuted labels" if "permuted" in no_claim else "is optimistic"
        return [
            f"{said} {what}: no measure of what the model is worth.",
            "The AUC gets neither interval nor p-value: they would hold for scores that nothing "
            "was chosen by, of labels as they are.",
        ]
    if evaluation["better_than_chance"]:
        first = f"{said} is better than chance on patients like these."
    elif evaluation["worse_than_chance"]:
        first = f"{said} is worse than chance; are labels or ids swapped?"
    else:
        first = f"{said} cannot be told from chance."
    low, high = (number_apart(limit, 0.5) for limit in evaluation["auc_interval"])
    least = evaluation["auc_told_from_chance"]
    told = f"only an AUC above {number_apart(least, evaluation['auc'])}" if least < 1 else "no AUC"
    sentences = [
        first,
        f"The true AUC of such a model may lie anywhere from {low} to {high}; with {positive} "
        f"positive and {n - positive} negative patients, {told} could be told from chance.",
    ]
    if evaluation["estimator"] != ALL_PAIRS:
        sentences.append(
            "The patients were held out, fold by fold: those of one fold are compared with each "
            "other, and the interval reckons with networks that share most of their training."
        )
    if evaluation["permutations"]:
        sentences.append(permutations_text(evaluation))
    return sentences


def permutations_text(metrics: Mapping[str, Any]) -> str:
    """What the retrainings on permuted labels gave, and whether they decide."""
    found = metrics["permutations"]
    count, as_high = found["count"], found["as_high"]
    text = (
        f"Of {count} whole {'retraining' if count == 1 else 'retrainings'} on permuted labels, "
        f"{as_high or 'none'} {'scores' if as_high == 1 else 'score'} as high"
    )
    if metrics["no_claim"]:
        return f"{text}."
    if metrics["decided_by"] == BY_PERMUTATIONS:
        return f"{text}: {p_text(metrics['p_value'], 1 - metrics['level'])}, two-sided."
    return f"{text}; so few cannot decide, and the interval does."


def auc_text(metrics: Mapping[str, Any]) -> str:
    """The AUC, on its side of 0.5 where that is claimed, and of the AUC told from chance."""
    told = metrics["auc_told_from_chance"]
    bounds = [] if told is None or told >= 1 else [told]
    if metrics["better_than_chance"] or metrics["worse_than_chance"]:
        bounds.append(0.5)
    texts = [f"{metrics['auc']:.2f}", *(number_apart(metrics["auc"], one) for one in bounds)]
    return max(texts, key=len)


def interval_text(metrics: Mapping[str, Any]) -> str:
    """ "0.503 to 0.88": each limit on its side of 0.5; "no interval" where none is given."""
    if not metrics["auc_interval"]:
        return "no interval"
    low, high = metrics["auc_interval"]
    return f"{number_apart(low, 0.5)} to {number_apart(high, 0.5)}"


def number_apart(value: float, bound: float) -> str:
    """The value with two digits, or with so many that it does not read as the bound.

    Two that are the same in nine digits are the same but for rounding, and read so.
    """
    texts = ((f"{value:.{digits}f}", f"{bound:.{digits}f}") for digits in range(2, 10))
    apart = (text for text, other in texts if float(text) != float(other))
    return next(apart, f"{value:.2f}")


def p_text(p: float, alpha: float = 0.05) -> str:
    """A p-value in words, on its side of alpha: "p = 0.031", "p = 0.0496", "p < 0.0001"."""
    if p < 0.00005:
        return "p < 0.0001"
    alpha = round(alpha, 12)
    texts = [f"{p:.{digits}g}" for digits in range(2 if p >= 0.001 else 1, 18)]
    sides = (text for text in texts if p == alpha or (float(text) < alpha) == (p < alpha))
    apart = (text for text in sides if p == alpha or float(text) != alpha)
    return f"p = {next(apart, texts[0])}"


def comparison_line(one: Mapping[str, Any]) -> str:
    """One of `comparisons.comparisons_of` for the terminal, p adjusted for their number (Holm)."""
    first, second = (
        f"{one[auc]:.2f}" + (f" ({mark(one[reasons])})" if one[reasons] else "")
        for auc, reasons in (("auc", "no_claim"), ("other_auc", "other_no_claim"))
    )
    text = f"{one['name']}: {first} and {second} on {one['n']} patients"
    if one["no_test"]:
        return f"{text}, no test: {one['no_test']}"
    low, high = one["difference_interval"]
    p = one["p_value_holm"]
    test = "no test" if p is None else p_text(p, 1 - one["level"])
    if p != one["p_value"]:
        test += " (Holm)"
    return (
        f"{text}, difference {_signed(one['difference'])} ({_signed(low)} to {_signed(high)}), "
        f"{test}"
    )


def _signed(value: float) -> str:
    """A difference, on its side of 0."""
    text = number_apart(value, 0.0)
    return text if text.startswith("-") else f"+{text}"


def warnings_of(
    evaluation: Mapping[str, Any], *, relabelled: int, lacking: int, notes: Sequence[str] = ()
) -> list[str]:
    """What stands between these numbers and new patients, a sentence each.

    Args:
      evaluation: `evaluation.evaluation_of`'s object.
      relabelled: patients whose label differs from that in the predictions file.
      lacking: patients that lack some of the seeds.
      notes: of the predictions compared (`predictions.Predictions.notes`).
    """
    warnings = [*(REASONS[reason] for reason in evaluation["no_claim"]), *notes]
    if (out_of_fold := evaluation["out_of_fold"]) and out_of_fold["no_claim"]:
        warnings.append(f"The run's own AUC out of fold: {verdict(out_of_fold)}")
    if relabelled:
        warnings.append(
            f"{relabelled} of {evaluation['n']} patients have another label here than in the "
            "predictions file."
        )
    for name, said in (
        ("without_label", "predicted but without a label, and left out"),
        ("without_prediction", "labelled but not predicted, and left out"),
    ):
        if count := len(evaluation[name]):
            warnings.append(f"{count} {'patient is' if count == 1 else 'patients are'} {said}.")
    if lacking:
        warnings.append(
            f"{lacking} patients lack some of the seeds: each seed is measured on those it has."
        )
    return warnings
