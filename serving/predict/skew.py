"""How far the patients to predict are from those a model was trained on: numbers, never a refusal.

The comparison is `beam_jobs.core.drift`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from beam_jobs.core.drift import Statistics, compare

FORMAT = "voxelbeam-skew"
_LINES = 4


def report(
    training: Statistics, found: Statistics, modalities: Sequence[str]
) -> tuple[str, list[str]]:
    """(text of skew.json, one to five lines for the terminal)."""
    compared, unknown = compare(training, found, modalities)
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
