"""What the model card says of a task: answers, cohort, calibration and limits, of any labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beam_jobs.common.printable import in_digits
from serving.model.contract import Contract
from serving.model.temperatures import Temperatures

_SCORES = {
    "binary": "AUC",
    "multiclass": "macro AUC",
    "multilabel": "mean AUC",
    "regression": "Spearman correlation",
}


def score_title(contract: Contract) -> str:
    """What the members were scored by."""
    return _SCORES[contract.target.task]


def answers_text(contract: Contract) -> str:
    """What a model answers with: the end of a sentence that begins with what it is."""
    target = contract.target
    if target.task == "multiclass":
        return f"the probabilities of {_listed(target.names)} ({target.labels[0]}) of one patient."
    if target.task == "multilabel":
        return f"a probability of each of {_listed(target.names)} of one patient."
    if target.task == "regression":
        unit = f" in {target.unit}" if target.unit else ""
        return f"the {target.labels[0]}{unit} of one patient, and an interval of it."
    if target.classes:
        low, high = target.classes
        return f"the probability of {high} against {low} ({target.labels[0]}) of one patient."
    return "the probability of the positive class of one patient."


def covariates_text(contract: Contract) -> str:
    """What it takes beside a volume; "" where that is nothing."""
    if not contract.covariates:
        return ""
    named = [
        one.name if one.is_number else f"{one.name} (one of {_listed(one.categories)})"
        for one in contract.known_covariates
    ]
    return (
        f"Beside a volume it takes {_listed(named)} of the patient; one that is not known is\n"
        "answered without, by what the networks have learnt of such patients.\n"
    )


def cohort_text(contract: Contract) -> str:
    """How many patients it was trained on, of which labels."""
    cohort = contract.cohort
    if "positive" in cohort:
        negative = cohort["patients"] - cohort["positive"]
        if contract.target.classes:
            low, high = contract.target.classes
            return f"{cohort['patients']} patients: {cohort['positive']} {high}, {negative} {low}."
        return f"{cohort['patients']} patients: {cohort['positive']} positive, {negative} negative."
    size = f"{cohort['patients']} patients"
    if "classes" in cohort:
        return f"{size}: {_counted(cohort['classes'])}."
    if "labels" in cohort:
        known = cohort.get("known", {})
        found = (
            f"{count} {'' if name not in known else f'of {known[name]} '}with {name}"
            for name, count in cohort["labels"].items()
        )
        return f"{size}: {', '.join(found)}."
    if "mean" in cohort:
        unit = f" {contract.target.unit}" if contract.target.unit else ""
        return f"{size}: {_mean_in_words(cohort)}{unit} (mean and deviation)."
    return f"{size}."


def _mean_in_words(cohort: Mapping[str, Any]) -> str:
    return f"{in_digits(cohort['mean'])} ± {in_digits(cohort['sd'])}"


def calibration_lines(contract: Contract) -> list[str]:
    """How logits become probabilities, or how wide a value's interval is, and what was measured."""
    if contract.target.task == "regression":
        return _interval_lines(contract)
    calibration = contract.calibration
    assert isinstance(calibration, Temperatures)
    names, temperatures = contract.target.names, calibration.temperatures
    if len(temperatures) == len(names):
        each = ", ".join(
            f"{one:.4g} ({name})" for name, one in zip(names, temperatures, strict=True)
        )
        lines = [f"Each logit is divided by a temperature of its own: {each}."]
    elif temperatures:
        lines = [f"The logits are divided by the temperature {temperatures[0]:.4g}."]
    else:
        lines = ["None: logits are as the networks give them."]
    if calibration.why:
        lines.append(f"({calibration.why[0].upper()}{calibration.why[1:]}.)")
    measured = calibration.measured
    if "before" not in measured:
        return lines
    on = f"On {measured['n']} patients out of fold ({_counted(measured['positive'])})"
    before = measured["before"]
    if not temperatures:
        return [
            *lines,
            f"{on}: log loss {before['log_loss']:.4f} nats, Brier score {before['brier']:.4f}.",
        ]
    return [
        *lines,
        f"{on}, each tenth by what was fitted on the others:",
        "",
        "| | before | after |",
        "|---|---|---|",
        *(
            f"| {name} | {before[key]:.4f} | {measured['after'][key]:.4f} |"
            for name, key in (("log loss (nats)", "log_loss"), ("Brier score", "brier"))
        ),
    ]


def _interval_lines(contract: Contract) -> list[str]:
    interval, target = contract.interval, contract.target
    assert interval is not None
    if interval.half_width is None:
        return [f"None. ({interval.why[:1].upper()}{interval.why[1:]}.)"]
    unit = f" {target.unit}" if target.unit else ""
    lines = [
        f"A value's interval is ± {in_digits(interval.half_width)}{unit}: the conformal quantile "
        f"of the residuals of {interval.n}",
        f"patients out of fold, which is to hold {interval.level:.0%} of the values of patients "
        "like these.",
    ]
    if interval.coverage is not None:
        lines.append(
            f"Of these patients {interval.coverage:.1%} lay inside what the other folds' residuals "
            "say."
        )
    return lines


def limits_text(contract: Contract) -> str:
    """Where the answers are off, and what stands where there is none."""
    prior, target = contract.prior, contract.target
    if target.task == "binary":
        high = target.classes[1] if target.classes else "positive"
        return (
            f"- In the training data {prior[0]:.1%} were {high}; where that differs, "
            "probabilities\n  are off.\n- A patient who cannot be predicted gets that share as "
            "answer, and a line in the failures file."
        )
    if target.task == "regression":
        unit = f" {target.unit}" if target.unit else ""
        return (
            f"- In the training data the mean was {in_digits(prior[0])}{unit}; values far from "
            "what was seen there\n  are not answered well, and the interval is as wide for "
            "everybody.\n"
            "- A patient who cannot be predicted gets that mean as answer, and a line in the "
            "failures file."
        )
    shares = ", ".join(
        f"{name}: {share:.1%}" for name, share in zip(target.names, prior, strict=True)
    )
    return (
        f"- In the training data these were the shares: {shares};\n  where they differ, "
        "probabilities are off.\n- A patient who cannot be predicted gets these shares as answer, "
        "and a line in the failures file."
    )


def _listed(names: Any) -> str:
    """Names in words.

    >>> _listed(["2", "3", "4"])
    '2, 3 and 4'
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else str(last)


def _counted(counts: Mapping[str, int]) -> str:
    """Counts in words.

    >>> _counted({"2": 20, "3": 18})
    '2: 20, 3: 18'
    """
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
