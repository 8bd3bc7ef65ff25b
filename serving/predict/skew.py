"""How far the patients asked about are from those a model was trained on: numbers, never a refusal.

    intensity      each quantile's mean over patients: further than 4 standard errors and 2 of 256
                   levels (the training patients' own spread makes the error)
    plane, field strength, missing
                   half the sum of the differences of the shares (total variation)
    spacing, step  the largest difference of the two distribution functions (Kolmogorov-Smirnov)

A share or a distribution has drifted where it differs by more than 0.1 and by more than chance
does once in a thousand cohorts of these sizes (Smirnov's 1.95 · sqrt(1/n + 1/m)); so a handful of
patients never raises it. 40 comparisons of four modalities give a false alarm rarely, not never.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serving.model.cohort_statistics import QUANTILES, Statistics

LEAST_DIFFERENCE = 0.1
_SMIRNOV = 1.95
_STANDARD_ERRORS = 4.0
_LEVELS = 2.0
_LINES = 4

_UNIT = {"spacing": " mm", "step": " mm", "field_strength": " T"}
_NAME = {"spacing": "spacing in plane", "step": "slice step", "field_strength": "field strength"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One thing compared.

    Attributes:
      modality: whose.
      what: "missing", "intensity q50", "plane", "spacing", "step" or "field_strength".
      training, found: the numbers compared, for JSON.
      distance: between the two, in the unit of `limit`.
      limit: above it, it has drifted.
      told: the comparison in words.
    """

    modality: str
    what: str
    training: Any
    found: Any
    distance: float
    limit: float
    told: str

    @property
    def drifted(self) -> bool:
        """Whether the two differ by more than chance and habit."""
        return self.distance > self.limit


def compare(
    training: Statistics, found: Statistics, modalities: Sequence[str]
) -> tuple[list[Comparison], list[str]]:
    """Everything that both sides know, and what one of them does not.

    Args:
      training: of the model.
      found: of the patients asked about.
      modalities: the channels that the model looks at.

    Returns:
      The comparisons, and "modality what" of those that could not be made.
    """
    compared: list[Comparison] = []
    unknown: list[str] = []
    for modality in modalities:
        for what in ("missing", "intensity", "plane", "spacing", "step", "field_strength"):
            ours, theirs = training.bins(modality, what), found.bins(modality, what)
            if not ours or not theirs:
                unknown.append(f"{modality} {what}")
            elif what == "intensity":
                compared += _intensities(modality, ours, theirs)
            else:
                compared.append(_shares(modality, what, ours, theirs))
    return compared, unknown


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
        "format": "voxelbeam-skew",
        "patients": found.patients,
        "training_patients": training.patients,
        "drifted": [f"{c.modality} {c.what}" for c in drifted],
        "compared": [{**dataclasses.asdict(c), "drifted": c.drifted} for c in compared],
        "not_compared": unknown,
    }
    text = json.dumps(data, indent=1, sort_keys=True) + "\n"
    sizes = f"{found.patients} patients against {training.patients} of training"
    if not drifted:
        left = f", {len(unknown)} not known on both sides" if unknown else ""
        return text, [f"none of {len(compared)} comparisons stands out ({sizes}{left})"]
    lines = [f"{len(drifted)} of {len(compared)} comparisons stand out ({sizes})"]
    lines += [f"  {comparison.told}" for comparison in drifted[:_LINES]]
    if len(drifted) > _LINES:
        lines[0] += f", the {_LINES} largest:"
    return text, lines


def _intensities(
    modality: str, ours: Mapping[str, int], theirs: Mapping[str, int]
) -> Iterator[Comparison]:
    n, m = ours.get("n", 0), theirs.get("n", 0)
    if n < 2 or not m:
        return
    for quantile in QUANTILES:
        name = f"q{quantile:02d}"
        mean, other = ours[f"{name} sum"] / n, theirs[f"{name} sum"] / m
        spread = math.sqrt(max(0.0, ours[f"{name} squares"] / n - mean**2) * n / (n - 1))
        yield Comparison(
            modality=modality,
            what=f"intensity {name}",
            training={"mean": mean / 256, "sd": spread / 256},
            found={"mean": other / 256},
            distance=abs(mean - other) / 256,
            limit=max(_LEVELS, _STANDARD_ERRORS * spread * math.sqrt(1 / n + 1 / m)) / 256,
            told=(
                f"{modality} intensity, {quantile} % quantile of the foreground: "
                f"{other / 256:.2f} (training {mean / 256:.2f} ± {spread / 256:.2f})"
            ),
        )


def _shares(
    modality: str, what: str, ours: Mapping[str, int], theirs: Mapping[str, int]
) -> Comparison:
    n, m = sum(ours.values()), sum(theirs.values())
    names = sorted({*ours, *theirs}, key=_by_number)
    training = {name: ours.get(name, 0) / n for name in names}
    found = {name: theirs.get(name, 0) / m for name in names}
    differences = [found[name] - training[name] for name in names]
    if what in ("spacing", "step"):
        sums = [sum(differences[: end + 1]) for end in range(len(differences))]
        distance = max(map(abs, sums))
        told = f"median {_median(found)}{_UNIT[what]} (training {_median(training)}{_UNIT[what]})"
    else:
        distance = sum(map(abs, differences)) / 2
        largest = max(range(len(names)), key=lambda index: abs(differences[index]))
        name = names[largest]
        unit = _UNIT.get(what, "") if name != "unknown" else ""
        told = f"{name}{unit} {found[name]:.0%} (training {training[name]:.0%})"
        if what == "missing":
            told = f"{found.get('yes', 0):.0%} (training {training.get('yes', 0):.0%})"
    return Comparison(
        modality=modality,
        what=what,
        training=training,
        found=found,
        distance=distance,
        limit=max(LEAST_DIFFERENCE, _SMIRNOV * math.sqrt(1 / n + 1 / m)),
        told=f"{modality} {_NAME.get(what, what)}: {told}",
    )


def _median(shares: Mapping[str, float]) -> str:
    """The bin that holds the middle; bins in rising order."""
    below = 0.0
    for name, share in shares.items():
        below += share
        if below >= 0.5 - 1e-12:
            return name
    return "unknown"


def _by_number(name: str) -> tuple[float, str]:
    try:
        return (float(name), name)
    except ValueError:
        return (math.inf, name)
