"""MODEL_CARD.md: what a model is, what it was measured to do and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.bundle import Contract


def model_card(contract: Contract) -> str:
    """The card as Markdown, from the contract alone: no number in it is typed by hand."""
    schema = contract.schema
    runs = "\n".join(_run_row(run) for run in contract.training)
    members = "\n".join(
        f"| {m['run']} | {m['model']} | {m['fold']} | {m['seed']} | {m['best_epoch']} "
        f"| {m['val_auc']:.3f} |"
        for m in contract.members
    )
    calibrated = (
        "not calibrated (temperature 1)"
        if contract.temperature == 1.0
        else f"divided by the temperature {contract.temperature:.4g}"
    )
    return f"""# Model card

**For research. No clinical use:** not a medical device; no diagnosis, no treatment may rest on it.

## What it is
An ensemble ({contract.ensemble}) of {len(contract.members)} network(s) that answers with the
probability of the positive class of one patient. The logit is {calibrated}.
It takes prepared volumes of {" × ".join(map(str, schema.shape))} voxels (row, column, slice),
stored as {schema.dtype}, with the channels {", ".join(schema.modalities)}, and looks at
{", ".join(contract.modalities)}. The recipe from DICOM to such a volume is `spec` in
`contract.json` (fingerprint `{schema.spec_fingerprint[:12]}`); records made otherwise are refused.

## What it was measured to do
Out of fold: every patient was scored by a network that did not see that patient. The ensemble
itself was not measured; there is no patient left that none of its members has seen.

| run | patients | positive | AUC | interval | AUC of the last epochs |
|---|---|---|---|---|---|
{runs}

An interval that holds 0.5 does not tell the model from a coin. The epochs served were chosen on the
same folds, so that their AUC leans to the bright side; the last epochs nobody chose.

| run | network | fold left out | seed | best epoch | AUC of that fold |
|---|---|---|---|---|---|
{members}

## Limits
- Measured on one cohort only; scanners, protocols and patients elsewhere differ.
- In the training data {contract.prevalence:.1%} were positive; where that differs, probabilities
  are off.
- A patient who cannot be predicted gets that share as answer, and a line in the failures file.
- A missing modality reaches the networks as a channel of zeros.
"""


def _run_row(run: Mapping[str, Any]) -> str:
    metrics = run["metrics"]
    interval = "not measured"
    if metrics.get("auc_interval"):
        low, high = metrics["auc_interval"]
        interval = f"{low:.3f} to {high:.3f} ({100 * metrics.get('level', 0.95):g} %)"
    cells = (
        run["run"],
        metrics.get("n", "not told"),
        metrics.get("positive", "not told"),
        _auc(metrics),
        interval,
        _auc(metrics.get("last_epoch", {})),
    )
    return f"| {' | '.join(map(str, cells))} |"


def _auc(metrics: Mapping[str, Any]) -> str:
    return "not measured" if metrics.get("auc") is None else f"{metrics['auc']:.3f}"
