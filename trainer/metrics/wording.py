"""What an evaluation allows one to say, in plain words.

Every sentence follows from `estimate.estimate_of`'s better_than_chance, worse_than_chance and
no_claim, and every number is printed with digits enough not to contradict it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from beam_jobs.common.printable import in_digits
from trainer.metrics.estimate import ALL_PAIRS, BY_PERMUTATIONS
from trainer.metrics.tasks.measure import measure_named

_KINDS_TOLD = 4  # classes or findings whose counts a line has room for

# Why scores allow no claim: what stands in no_claim, and what it means.
REASONS = {
    "own_fold": "A version before 0.3 kept the epochs that scored best on these same patients.",
    "searched": "The settings were searched on some of these same patients.",
    "no_folds": "It has no folds, and a file beside it scores the same patients out of fold: its "
    "model may have been trained on these patients.",
    "permuted": "The labels were permuted: this is what the recipe scores without any signal.",
}


def score_of(metrics: Mapping[str, Any]) -> float:
    """The score of `estimate_of`'s or `estimate_of_task`'s object: an AUC, or the task's own."""
    return float(metrics["auc" if "auc" in metrics else "score"])


def interval_of(metrics: Mapping[str, Any]) -> list[float] | None:
    """The score's interval; None where no claim is allowed."""
    found: list[float] | None = metrics["auc_interval" if "auc" in metrics else "interval"]
    return found


def chance_of(metrics: Mapping[str, Any]) -> float:
    """The score without signal."""
    return 0.5 if "auc" in metrics else float(metrics["chance"])


def told_of(metrics: Mapping[str, Any]) -> float | None:
    """The score from where better than chance begins; None where no claim is allowed."""
    name = "auc_told_from_chance" if "auc" in metrics else "told_from_chance"
    return None if metrics[name] is None else float(metrics[name])


def title_of(metrics: Mapping[str, Any]) -> str:
    """What the score is called: "AUC", "macro AUC", "mean AUC" or "Spearman correlation"."""
    return "AUC" if "auc" in metrics else measure_named(metrics["measure"]).title


def summary_line(metrics: Mapping[str, Any]) -> str:
    """An estimate as "AUC 0.93 (95 % interval 0.85 to 0.98, n = 60: 30 positive)".

    Of classes and findings the patients of each are told: "n = 60; 2: 20, 3: 25, 4: 15".
    """
    interval = ""
    if interval_of(metrics):
        interval = f"{100 * metrics['level']:g} % interval {interval_text(metrics)}, "
    counted = f": {metrics['positive']} positive" if "auc" in metrics else ""
    if metrics.get("counts"):
        counted = f"; {counts_text(_counts_of(metrics))}"
    return (
        f"{auc_name(metrics['no_claim'], title_of(metrics))} {auc_text(metrics)} "
        f"({interval}n = {metrics['n']}{counted})"
    )


def counts_text(counts: Mapping[str, int]) -> str:
    """Patients of each class or finding; of the rarest alone where there are many."""
    if len(counts) <= _KINDS_TOLD:
        return ", ".join(f"{name}: {count}" for name, count in counts.items())
    rarest = sorted(counts.items(), key=lambda one: one[1])[:_KINDS_TOLD]
    told = ", ".join(f"{name}: {count}" for name, count in rarest)
    return f"{told}, more of {len(counts) - _KINDS_TOLD} others"


def _counts_of(metrics: Mapping[str, Any]) -> dict[str, int]:
    """Patients of each class or finding in the target's order, which a JSON's keys lose."""
    places = {part["name"]: place for place, part in enumerate(metrics.get("parts") or ())}
    named = metrics["counts"].items()
    return dict(sorted(named, key=lambda one: places.get(one[0], len(places))))


def auc_name(no_claim: Sequence[str], title: str = "AUC") -> str:
    """What a score is called that has these reasons against a claim."""
    names = {"": title, "optimistic": f"optimistic {title}"}
    return names.get(mark(no_claim), f"{title} of permuted labels")


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
    chance = f"{chance_of(metrics):g}"
    if metrics["better_than_chance"]:
        return f"The interval lies above {chance}: better than chance on patients like these."
    if metrics["worse_than_chance"]:
        return f"The interval lies below {chance}: worse than chance; are labels or ids swapped?"
    return f"The interval contains {chance}: these predictions cannot be told from chance."


def reading(evaluation: Mapping[str, Any]) -> list[str]:
    """The honest reading of an evaluation, a sentence each; the first is the headline."""
    n, title, chance = evaluation["n"], title_of(evaluation), chance_of(evaluation)
    said = f"This {title} of {auc_text(evaluation)} on {n} patients"
    if no_claim := evaluation["no_claim"]:
        what = "is that of permuted labels" if "permuted" in no_claim else "is optimistic"
        return [
            f"{said} {what}: no measure of what the model is worth.",
            f"The {title} gets neither interval nor p-value: they would hold for scores that "
            "nothing was chosen by, of labels as they are.",
        ]
    if evaluation["better_than_chance"]:
        first = f"{said} is better than chance on patients like these."
    elif evaluation["worse_than_chance"]:
        first = f"{said} is worse than chance; are labels or ids swapped?"
    else:
        first = f"{said} cannot be told from chance."
    limits, least = interval_of(evaluation), told_of(evaluation)
    assert limits is not None
    assert least is not None
    low, high = (number_apart(limit, chance) for limit in limits)
    article = "an" if title == "AUC" else "a"
    told = f"only {article} {title} above {number_apart(least, score_of(evaluation))}"
    told = told if least < 1 else f"no {title}"
    if "auc" in evaluation:
        positive = evaluation["positive"]
        patients = f"{positive} positive and {n - positive} negative patients"
    else:
        counts = _counts_of(evaluation)
        patients = f"{n} patients{f' ({counts_text(counts)})' if counts else ''}"
    sentences = [
        first,
        f"The true {title} of such a model may lie anywhere from {low} to {high}; with {patients}, "
        f"{told} could be told from chance.",
    ]
    if evaluation["estimator"] != ALL_PAIRS:
        sentences.append(
            "The patients were held out, fold by fold: those of one fold are compared with each "
            "other, and the interval reckons with networks that share most of their training."
        )
    if "auc" not in evaluation and evaluation["parts"]:
        sentences.append(parts_text(evaluation))
    if evaluation["permutations"]:
        sentences.append(permutations_text(evaluation))
    return sentences


def part_line(part: Mapping[str, Any], level: float) -> str:
    """A class or a finding by itself: "AUC 0.71 (95 % interval ...), p = 0.03 (Holm)"."""
    counted = f"n = {part['n']}: {part['positive']}"
    if part["auc"] is None:
        return f"no AUC ({counted})"
    if part["interval"] is None:
        return f"AUC {part['auc']:.2f} ({counted})"
    low, high = (number_apart(limit, 0.5) for limit in part["interval"])
    return (
        f"AUC {number_apart(part['auc'], 0.5)} ({100 * level:g} % interval {low} to {high}, "
        f"{counted}), {p_text(part['p_value_holm'], 1 - level)} (Holm)"
    )


def parts_text(metrics: Mapping[str, Any]) -> str:
    """Which classes or findings are told from chance, their number reckoned with."""
    parts = metrics["parts"]
    what = "classes, each against the rest"
    if metrics["task"] != "multiclass":
        what = "findings, each by itself"
    told = [one["name"] for one in parts if one["better_than_chance"]]
    named = f"{len(told)}" if len(told) > _KINDS_TOLD else ", ".join(told)
    found = f"{named or 'none'} {'are' if len(told) > 1 else 'is'}"
    return (
        f"Of {len(parts)} {what}, {found} better than chance, p-values adjusted "
        "for their number (Holm)."
    )


def conformal_line(found: Mapping[str, Any], unit: str) -> str:
    """`tasks.conformal.conformal_of`'s object in words."""
    if found["half_width"] is None:
        return str(found["too_few"])
    text = f"value ± {in_digits(found['half_width'], 3)}{f' {unit}' if unit else ''} holds"
    text = f"{text} {100 * found['level']:g} % of patients like these"
    if found["coverage"] is None:
        return text
    return f"{text}; {100 * found['coverage']:.0f} % of each fold's by the other folds'"


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
    """The score, on its side of chance where that is claimed, and of the one told from chance."""
    told, value = told_of(metrics), score_of(metrics)
    bounds = [] if told is None or told >= 1 else [told]
    if metrics["better_than_chance"] or metrics["worse_than_chance"]:
        bounds.append(chance_of(metrics))
    texts = [f"{value:.2f}", *(number_apart(value, one) for one in bounds)]
    return max(texts, key=len)


def interval_text(metrics: Mapping[str, Any]) -> str:
    """ "0.503 to 0.88": each limit on its side of chance; "no interval" where none is given."""
    limits, chance = interval_of(metrics), chance_of(metrics)
    if not limits:
        return "no interval"
    return f"{number_apart(limits[0], chance)} to {number_apart(limits[1], chance)}"


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
    score = "auc" if "auc" in one else "score"
    first, second = (
        f"{one[value]:.2f}" + (f" ({mark(one[reasons])})" if one[reasons] else "")
        for value, reasons in ((score, "no_claim"), (f"other_{score}", "other_no_claim"))
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
        name = title_of(out_of_fold)
        warnings.append(f"The run's own {name} out of fold: {verdict(out_of_fold)}")
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
