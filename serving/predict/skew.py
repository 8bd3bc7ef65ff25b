"""How far the patients to predict are from those a model was trained on: numbers, never a refusal.

The comparison is `beam_jobs.core.drift`'s. Of labels other than 0 and 1 their mix is compared too,
where the patients to predict have labels: classes and findings by their shares, values by how they
are spread over the tenths of the training patients'.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np

from beam_jobs.common.printable import in_digits
from beam_jobs.core.cohort.target import PLAIN, Target
from beam_jobs.core.drift import Comparison, Statistics, compare, compare_counts
from serving.model.cohort_statistics import LABELS

FORMAT = "voxelbeam-skew"
_LINES = 4


def report(
    training: Statistics, found: Statistics, modalities: Sequence[str], target: Target = PLAIN
) -> tuple[str, list[str]]:
    """(text of skew.json, one to five lines for the terminal)."""
    compared, unknown = compare(training, found, modalities)
    for name in target.labels:
        ours, theirs = training.bins(LABELS, name), found.bins(LABELS, name)
        if not (any(ours.values()) and any(theirs.values())):
            unknown.append(f"{LABELS} {name}")
        elif target.task == "regression":
            compared.append(_of_values(name, ours, theirs))
        else:
            one = compare_counts(LABELS, name, ours, theirs, ordered=False)
            if target.task == "multilabel":
                shares = [side.get("yes", 0) for side in (one.found, one.training)]
                text = f"{LABELS} {name}: {shares[0]:.0%} (training {shares[1]:.0%})"
                one = dataclasses.replace(one, text=text)
            compared.append(one)
    drifted = sorted(
        (comparison for comparison in compared if comparison.drifted),
        key=lambda c: (-c.distance / c.limit, c.modality, c.what),
    )
    data = {
        "format": FORMAT,
        "patients": found.patients,
        "training_patients": training.patients,
        "drifted": [f"{c.modality} {c.what}" for c in drifted],
        "compared": [comparison.to_json() for comparison in compared],
        "not_compared": unknown,
    }
    text = json.dumps(data, indent=1, sort_keys=True) + "\n"
    sizes = f"{found.patients} patients against {training.patients} of training"
    if not drifted:
        left = f", {len(unknown)} not known on both sides" if unknown else ""
        return text, [f"none of {len(compared)} comparisons stands out ({sizes}{left})"]
    lines = [f"{len(drifted)} of {len(compared)} comparisons stand out ({sizes})"]
    lines += [f"  {comparison.text}" for comparison in drifted[:_LINES]]
    if len(drifted) > _LINES:
        lines[0] += f", the {_LINES} largest:"
    return text, lines


def _of_values(name: str, training: Mapping[str, int], found: Mapping[str, int]) -> Comparison:
    """Values in the tenths of the training patients', in words by those above their median."""
    compared = compare_counts(LABELS, name, training, found, ordered=True)
    bins = sorted(map(float, compared.training))
    below = np.cumsum([compared.training[repr(one)] for one in bins])
    median = bins[int(np.searchsorted(below, 0.5 - 1e-9))]
    above = [
        sum(share for one, share in shares.items() if float(one) > median)
        for shares in (compared.found, compared.training)
    ]
    text = f"{above[0]:.0%} above {in_digits(median)} (training {above[1]:.0%})"
    return dataclasses.replace(compared, text=f"{LABELS} {name}: {text}")
