"""MODEL_CARD.md: what a model is, what it was measured to do and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from beam_jobs.core.drift import Statistics
from serving.model.calibration import Calibration
from serving.model.contract import Contract


def model_card(contract: Contract, statistics: Statistics | None) -> str:
    """The card as Markdown, from contract and statistics alone: no number is typed by hand."""
    schema = contract.schema
    runs = "\n".join(_run_row(run) for run in contract.training)
    members = "\n".join(
        f"| {m['run']} | {m['model']} | {m['fold']} | {m['seed']} | {m['epoch']} "
        f"| {m['val_auc']:.3f} |"
        for m in contract.members
    )
    return f"""# Model card

**For research. No clinical use:** not a medical device; no diagnosis, no treatment may rest on it.

## What it is
An ensemble (mean of {contract.ensemble}) of {len(contract.members)} network(s) that answers with
the probability of the positive class of one patient.
It takes prepared volumes of {" × ".join(map(str, schema.shape))} voxels (row, column, slice),
stored as {schema.dtype}, with the channels {", ".join(schema.modalities)}, and looks at
{", ".join(contract.modalities)}. The recipe from DICOM to such a volume is `spec` in
`contract.json` (fingerprint `{schema.spec_fingerprint[:12]}`); records made otherwise are refused.

## Intended use
Research on cohorts like the one below: ranking patients, comparing methods, planning studies.
Not for screening, diagnosis or treatment of anybody, not for modalities, diseases or age groups
that the cohort does not hold, and not without a test on patients of the place it is used at.

## What it was trained on
{_cohort(contract, statistics)}

## What it was measured to do
Out of fold: every patient was scored by a network that did not see that patient. The ensemble
itself was not measured; there is no patient left that none of its members has seen.

| run | patients | positive | AUC | interval |
|---|---|---|---|---|
{runs}

An interval that holds 0.5 does not tell the model from a coin.

| run | network | fold left out | seed | epoch | AUC of that fold |
|---|---|---|---|---|---|
{members}

## Calibration
{_calibration(contract.calibration)}

## Limits
- Measured on one cohort only; scanners, protocols and patients elsewhere differ.
- In the training data {contract.prevalence:.1%} were positive; where that differs, probabilities
  are off.
- A patient who cannot be predicted gets that share as answer, and a line in the failures file.
- A missing modality reaches the networks as a channel of zeros.
- The spread between members tells how far they disagree, not how far they are off.
"""


def _cohort(contract: Contract, statistics: Statistics | None) -> str:
    cohort = contract.cohort
    if cohort:
        negative = cohort["patients"] - cohort["positive"]
        size = (
            f"{cohort['patients']} patients: {cohort['positive']} positive, {negative} negative "
            f"({cohort['source']})."
        )
    else:
        size = "How many patients it was trained on was not known at export (`--data` says it)."
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


def _calibration(calibration: Calibration) -> str:
    method: Sequence[str] = {
        "none": ["None: logits are as the networks give them."],
        "temperature": [f"The logit is divided by the temperature {calibration.temperature:.4g}."],
        "isotonic": [f"The logit goes through a rising line of {len(calibration.knots)} knots."],
    }[calibration.method]
    lines = [*method]
    if calibration.why:
        lines.append(f"({calibration.why[0].upper()}{calibration.why[1:]}.)")
    measured = calibration.measured
    if "before" in measured:
        lines += [
            f"On {measured['n']} patients out of fold ({measured['positive']} positive), each "
            "tenth by a map fitted on the others:",
            "",
            "| | before | after |",
            "|---|---|---|",
            *(
                f"| {name} | {measured['before'][key]:.4f} | {measured['after'][key]:.4f} |"
                for name, key in (("log loss (nats)", "log_loss"), ("Brier score", "brier"))
            ),
            "",
            "The order of patients, and with it the AUC, stays as it is. The ensemble of all folds",
            "is a little less sharp than the members measured here.",
        ]
    return "\n".join(lines)


def _run_row(run: Mapping[str, Any]) -> str:
    metrics = run["metrics"]
    interval = "not measured"
    if metrics.get("auc_interval"):
        low, high = metrics["auc_interval"]
        interval = f"{low:.3f} to {high:.3f} ({100 * metrics.get('level', 0.95):g} %)"
    cells = (
        run["run"],
        metrics.get("n", "not known"),
        metrics.get("positive", "not known"),
        _auc(metrics),
        interval,
    )
    return f"| {' | '.join(map(str, cells))} |"


def _auc(metrics: Mapping[str, Any]) -> str:
    return "not measured" if metrics.get("auc") is None else f"{metrics['auc']:.3f}"
