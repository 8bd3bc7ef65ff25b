"""MODEL_CARD.md: what a model is, what it was measured to do and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from beam_jobs.core.drift import Statistics
from serving.model.calibration import Calibration
from serving.model.contract import Contract
from serving.model.task_card import (
    answers_text,
    calibration_lines,
    cohort_text,
    covariates_text,
    limits_text,
    score_title,
)

_EPOCHS = {
    "last": "The number of epochs was fixed beforehand.",
    "crossfit": "A fold's epoch was chosen by the log loss of the other folds, not by its own.",
}
_SPREAD = "- The spread between members tells how far they disagree, not how far they are off.\n"


def model_card(contract: Contract, statistics: Statistics | None) -> str:
    """The card as Markdown, from contract and statistics alone: no number is typed by hand."""
    schema = contract.schema
    score = "val_auc" if contract.target.task == "binary" else "val_score"
    silent = {run["run"] for run in contract.training if run["no_claim"]}
    members = "\n".join(
        f"| {m['run']} | {m['model']} | {m['fold']} | {m['seed']} | {m['epoch']} "
        f"| {m[score]:.3f}{', no claim' if m['run'] in silent else ''} |"
        for m in contract.members
    )
    return f"""# Model card

**For research. No clinical use:** not a medical device; no diagnosis, no treatment may rest on it.

## What it is
{_what(contract)} that answers with {answers_text(contract)}
It takes prepared volumes of {" × ".join(map(str, schema.shape))} voxels (row, column, slice),
stored as {schema.dtype}, with the channels {", ".join(schema.modalities)}, and looks at
{", ".join(contract.modalities)}. The recipe from DICOM to such a volume is `spec` in
`contract.json` (fingerprint `{schema.spec_fingerprint[:12]}`); records made otherwise are refused.
{covariates_text(contract)}
## Intended use
Research on cohorts like the one below: ranking patients, comparing methods, planning studies.
Not for screening, diagnosis or treatment of anybody, not for modalities, diseases or age groups
that the cohort does not hold, and not without a test on patients of the place it is used at.

## What it was trained on
{_cohort(contract, statistics)}

## What it was measured to do
{_measured(contract)}

| run | network | fold left out | seed | epoch | {score_title(contract)} of that fold |
|---|---|---|---|---|---|
{members}

{_made_of(contract)}## {"Interval" if contract.interval else "Calibration"}
{_calibration(contract)}

## Limits
- Measured on one cohort only; scanners, protocols and patients elsewhere differ.
{limits_text(contract)}
- A missing modality reaches the networks as a channel of zeros.
{_SPREAD if len(contract.members) > 1 else ""}"""


def _what(contract: Contract) -> str:
    count = len(contract.members)
    if contract.interval and count > 1:
        return f"A mean of the values of {count} networks"
    return "One network" if count == 1 else f"A mean of {contract.ensemble} of {count} networks"


def _measured(contract: Contract) -> str:
    """A paragraph a run: what its networks were trained and measured on, and what came out."""
    runs = [
        _measured_run(
            run,
            [member for member in contract.members if member["run"] == run["run"]],
            score_title(contract),
        )
        for run in contract.training
    ]
    if len(runs) > 1:
        runs.append("Each run was measured by itself; the ensemble of all of them was not.")
    return "\n\n".join(runs)


def _measured_run(run: Mapping[str, Any], members: Sequence[Mapping[str, Any]], score: str) -> str:
    patients, metrics = run["trained_on"]["patients"], run["metrics"]
    folds = {member["fold"] for member in members}
    if len(folds) > 1:
        counts = sorted({patients - of_fold["n"] for of_fold in metrics["folds"]})
        trained = " to ".join(str(count) for count in (counts[0], counts[-1])[: len(counts)])
        how = (
            f"its {len(members)} networks were trained on {trained} of {patients} patients each, "
            f"and {metrics['n']} were scored by networks that had not seen them. The ensemble "
            "itself was not measured: every patient scored was seen by some of its networks."
        )
    elif len(members) > 1:
        how = (
            f"its {len(members)} networks were trained on the same {patients} patients, and the "
            f"{metrics['n']} of fold {min(folds)}, whom none of them saw, measured each of them; "
            f"the {score} is the mean of theirs. Their ensemble was not measured."
        )
    else:
        how = (
            f"its network was trained on {patients} patients, and the {metrics['n']} of fold "
            f"{min(folds)}, whom it did not see, measured this very network."
        )
    said = run["said"][0].upper() + run["said"][1:]
    return f"Run {run['run']}: {how} {_EPOCHS[members[0]['epoch_choice']]}\n{said}"


def _made_of(contract: Contract) -> str:
    """A section on what is not the package's own; empty where all is."""
    lines = []
    for run in contract.training:
        for code in run.get("code", ()):
            named = f"{code['package']} {code['version']}, " if "package" in code else ""
            with_ = "".join(f", with {k} {v}" for k, v in code.get("imports", {}).items())
            lines.append(
                f"- Run {run['run']}: `{code['function']}` "
                f"({named}source sha256 `{code['sha256'][:12]}`{with_})"
            )
        for file in run.get("weights", ()):
            lines.append(
                f"- Run {run['run']} started from {file['file']} (sha256 `{file['sha256'][:12]}`)"
            )
    if not lines:
        return ""
    told = "The model answers without any of it; only training it again needs it."
    return "\n".join(["## Made of, beside voxelbeam's own", *lines, "", told, "", ""])


def _cohort(contract: Contract, statistics: Statistics | None) -> str:
    if contract.cohort:
        size = cohort_text(contract)
    else:
        size = (
            "Its runs' patients, below, may be the same or not: how many they are together was not "
            "known at export (`--data` says it)."
        )
    if statistics is None:
        return f"{size}\nWhat their images looked like was not known at export (`--data` says it)."
    rows = [_channel_row(name, statistics) for name in contract.schema.modalities]
    return "\n".join(
        [
            size,
            "",
            "| modality | patients without | planes | field strength |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _channel_row(modality: str, statistics: Statistics) -> str:
    missing = statistics.bins(modality, "missing").get("yes", 0)
    cells = (
        modality,
        f"{missing} of {statistics.patients}",
        _mix(statistics.bins(modality, "plane")),
        _mix(statistics.bins(modality, "field_strength"), " T"),
    )
    return f"| {' | '.join(cells)} |"


def _mix(bins: Mapping[str, int], unit: str = "") -> str:
    found = sorted(bins.items(), key=lambda item: (-item[1], item[0]))
    shares = [f"{name}{unit if name != 'unknown' else ''} {count}" for name, count in found]
    return ", ".join(shares) or "not known"


def _calibration(contract: Contract) -> str:
    calibration = contract.calibration
    if not isinstance(calibration, Calibration):
        measured = calibration.measured if contract.interval is None else contract.interval.n
        beside = _less_sharp(contract) if measured else []
        return "\n".join([*calibration_lines(contract), *beside])
    method: Sequence[str] = {
        "none": ["None: logits are as the networks give them."],
        "temperature": [f"The logit is divided by the temperature {calibration.temperature:.4g}."],
        "isotonic": [f"The logit goes through a rising line of {len(calibration.knots)} knots."],
    }[calibration.method]
    lines = [*method]
    if calibration.why:
        lines.append(f"({calibration.why[0].upper()}{calibration.why[1:]}.)")
    measured = calibration.measured
    if "before" not in measured:
        return "\n".join(lines)
    on = f"On {measured['n']} patients out of fold ({measured['positive']} positive)"
    if calibration.method == "none":
        before = measured["before"]
        scores = f"log loss {before['log_loss']:.4f} nats, Brier score {before['brier']:.4f}"
        lines.append(f"{on}: {scores}.")
    else:
        lines += [
            f"{on}, each tenth by a map fitted on the others:",
            "",
            "| | before | after |",
            "|---|---|---|",
            *(
                f"| {name} | {measured['before'][key]:.4f} | {measured['after'][key]:.4f} |"
                for name, key in (("log loss (nats)", "log_loss"), ("Brier score", "brier"))
            ),
            "",
            "The order of patients, and with it the AUC, stays as it is.",
        ]
    return "\n".join([*lines, *_less_sharp(contract)])


def _less_sharp(contract: Contract) -> list[str]:
    """What an ensemble of several folds is against the members that were measured."""
    datasets = {run["run"]: run["dataset_fingerprint"] for run in contract.training}
    if len({(datasets[member["run"]], member["fold"]) for member in contract.members}) < 2:
        return []
    if contract.interval:
        return ["The ensemble of all folds errs a little less than the members measured here."]
    return ["The ensemble of all folds is a little less sharp than the members measured here."]
