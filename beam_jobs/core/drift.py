"""Whether two cohorts look alike: counts that add up, and one comparison of them.

Prediction holds its patients against those of training with it, a dataset's report two datasets.

Counts, per modality: patients without it, intensity quantiles of the foreground, planes, spacing
within slices and between them, field strengths. Every number is a whole number, so that parts can
be added in any order and give the same sum to the last bit; the size does not grow with the cohort.

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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import ContractError, Within, json_object, require_kinds, shown
from beam_jobs.core.record import PreparedCase, RecordSchema

FORMAT = "voxelbeam-statistics"
QUANTILES = (5, 25, 50, 75, 95)  # per cent, of the foreground
INTENSITIES = (
    "n",
    *(f"q{quantile:02d} {what}" for quantile in QUANTILES for what in ("sum", "squares")),
)
# Spacings fall into bins of a ninth: eight to each doubling.
_BINS_PER_DOUBLING = 8
# Every other row and column gives the same quantiles, for a quarter of the time.
_STRIDE = 2

LEAST_DIFFERENCE = 0.1
_SMIRNOV = 1.95
_STANDARD_ERRORS = 4.0
_LEVELS = 2.0
_COUNT = Within(int, 0)

_UNIT = {"spacing": " mm", "step": " mm", "field_strength": " T"}
_NAME = {"spacing": "spacing in plane", "step": "slice step", "field_strength": "field strength"}

Key = tuple[str, str, str]  # modality, what is counted, the bin


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Counts over a cohort.

    Attributes:
      patients: how many were counted.
      counts: (modality, what, bin) -> count. What: "missing" (bins yes, no), "plane",
        "field_strength" (tesla), "spacing" and "step" (mm), over series; "intensity" (bins n, and
        for each quantile its sum and sum of squares over patients, in 256ths of the stored range).
      dataset_fingerprint: of the dataset counted; "" for other patients.
    """

    patients: int
    counts: Mapping[Key, int]
    dataset_fingerprint: str = ""

    def __add__(self, other: Statistics) -> Statistics:
        counts = Counter(self.counts)
        counts.update(other.counts)
        return Statistics(patients=self.patients + other.patients, counts=counts)

    def bins(self, modality: str, what: str) -> dict[str, int]:
        """The counts of one thing."""
        return {key[2]: n for key, n in self.counts.items() if key[:2] == (modality, what)}

    def dumps(self) -> str:
        """JSON text; `loads` takes it back."""
        nested: dict[str, dict[str, dict[str, int]]] = {}
        for (modality, what, name), count in sorted(self.counts.items()):
            nested.setdefault(modality, {}).setdefault(what, {})[name] = count
        data = {
            "format": FORMAT,
            "dataset_fingerprint": self.dataset_fingerprint,
            "patients": self.patients,
            "counts": nested,
        }
        return json.dumps(data, indent=1, sort_keys=True) + "\n"

    @classmethod
    def loads(cls, text: str | bytes) -> Statistics:
        """Reads `dumps`' text.

        Raises:
          ContractError: not such a text.
        """
        data = json_object(text)
        if data.get("format") != FORMAT:
            raise ContractError(f"format {shown(data.get('format'))} found, {FORMAT!r} required")
        require_kinds(data, {"patients": _COUNT, "counts": dict, "dataset_fingerprint": str})
        counts: dict[Key, int] = {}
        for modality, kinds in data["counts"].items():
            require_kinds({modality: kinds}, {modality: dict}, where="counts.")
            for what, bins in kinds.items():
                require_kinds({what: bins}, {what: dict}, where=f"counts.{modality}.")
                require_kinds(bins, dict.fromkeys(bins, _COUNT), where=f"counts.{modality}.{what}.")
                if what == "intensity":
                    named = dict.fromkeys(INTENSITIES, _COUNT)
                    require_kinds(bins, named, where=f"counts.{modality}.{what}.")
                counts.update({(modality, what, name): n for name, n in bins.items()})
        return cls(
            patients=data["patients"],
            counts=counts,
            dataset_fingerprint=data["dataset_fingerprint"],
        )


NONE = Statistics(patients=0, counts={})


def of_case(case: PreparedCase, schema: RecordSchema) -> Statistics:
    """One patient's volume: which modalities are missing, how bright the others are."""
    sampled = case.volume[::_STRIDE, ::_STRIDE]
    return of_levels(
        {
            modality: _foreground(sampled[..., channel]) if case.present[channel] else None
            for channel, modality in enumerate(schema.modalities)
        }
    )


def of_levels(levels: Mapping[str, npt.NDArray[np.integer[Any]] | None]) -> Statistics:
    """One patient's volume, where its voxels are counted already.

    Args:
      levels: modality -> (256,) foreground voxels at each level of the stored range; None where
        the patient does not have it.
    """
    counts: Counter[Key] = Counter()
    for modality, voxels in levels.items():
        counts[modality, "missing", "yes" if voxels is None else "no"] += 1
        if voxels is not None and (quantiles := _quantiles(voxels)):
            counts[modality, "intensity", "n"] += 1
            for quantile, level in zip(QUANTILES, quantiles, strict=True):
                counts[modality, "intensity", f"q{quantile:02d} sum"] += level
                counts[modality, "intensity", f"q{quantile:02d} squares"] += level**2
    return Statistics(patients=1, counts=counts)


def of_series(rows: Iterable[Mapping[str, Any]], modalities: Iterable[str]) -> Statistics:
    """Series used, as rows of series.csv (text or values): planes, spacings, field strengths."""
    counts: Counter[Key] = Counter()
    known = set(modalities)
    for row in rows:
        modality = str(row["modality"])
        if row["verdict"] != "used" or modality not in known:
            continue
        field = _number(row["field_strength"])
        counts[modality, "plane", str(row["plane"]) or "unknown"] += 1
        counts[modality, "spacing", _length_bin(spacing_of(row))] += 1
        counts[modality, "step", _length_bin(_number(row["slice_step"]))] += 1
        counts[modality, "field_strength", f"{field:.1f}" if field else "unknown"] += 1
    return Statistics(patients=0, counts=counts)


def spacing_of(row: Mapping[str, Any]) -> float:
    """Spacing in plane of a row of series.csv, mm: its two spacings' geometric mean; 0 unknown."""
    rows, columns = _number(row["row_spacing"]), _number(row["column_spacing"])
    return math.sqrt(rows * columns) if rows and columns else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One thing compared.

    Attributes:
      modality: whose.
      what: "missing", "intensity q50", "plane", "spacing", "step" or "field_strength".
      training, found: the numbers compared: of the cohort held against, and of the one in hand.
      distance: between the two, in the unit of `limit`.
      limit: above it, it has drifted.
      text: the comparison in words.
    """

    modality: str
    what: str
    training: Any
    found: Any
    distance: float
    limit: float
    text: str

    @property
    def drifted(self) -> bool:
        """Whether the two differ by more than chance and habit."""
        return self.distance > self.limit

    def to_json(self) -> dict[str, Any]:
        """A JSON object, its words under the name that skew.json has for them."""
        fields = dataclasses.asdict(self)
        fields["told"] = fields.pop("text")
        return {**fields, "drifted": self.drifted}


def compare(
    training: Statistics, found: Statistics, modalities: Sequence[str]
) -> tuple[list[Comparison], list[str]]:
    """Everything that both sides know, and what one of them does not.

    Args:
      training: of the cohort held against: its own spread is the measure of intensities.
      found: of the cohort in hand, of any number of patients.
      modalities: those to compare.

    Returns:
      The comparisons, and "modality what" of those that could not be made.
    """
    compared: list[Comparison] = []
    unknown: list[str] = []
    for modality in modalities:
        for what in ("missing", "intensity", "plane", "spacing", "step", "field_strength"):
            ours, theirs = training.bins(modality, what), found.bins(modality, what)
            silent = [set(filter(bins.get, bins)) <= {"unknown"} for bins in (ours, theirs)]
            # NIfTI does not tell it: that all of one cohort is unknown is no difference.
            untold = what == "field_strength" and silent[0] != silent[1]
            if untold or not (any(ours.values()) and any(theirs.values())):
                unknown.append(f"{modality} {what}")
            elif what == "intensity":
                compared += _intensities(modality, ours, theirs)
            else:
                compared.append(compare_counts(modality, what, ours, theirs))
    return compared, unknown


def compare_counts(
    modality: str,
    what: str,
    training: Mapping[str, int],
    found: Mapping[str, int],
    *,
    ordered: bool | None = None,
) -> Comparison:
    """One thing counted in both cohorts.

    Args:
      modality, what: as in `Comparison`.
      training, found: bin -> count; at least one is counted in each.
      ordered: whether the bins are numbers, so that far apart is more than near by; None for
        "spacing" and "step".
    """
    n, m = sum(training.values()), sum(found.values())
    names = sorted({*training, *found}, key=_by_number)
    before = {name: training.get(name, 0) / n for name in names}
    now = {name: found.get(name, 0) / m for name in names}
    differences = [now[name] - before[name] for name in names]
    unit = _UNIT.get(what, "")
    if what in ("spacing", "step") if ordered is None else ordered:
        sums = [sum(differences[: end + 1]) for end in range(len(differences))]
        distance = max(map(abs, sums))
        text = f"median {_median(now)}{unit} (training {_median(before)}{unit})"
    else:
        distance = sum(map(abs, differences)) / 2
        name = max(zip(names, differences, strict=True), key=lambda item: abs(item[1]))[0]
        shown = "" if what == "missing" else f"{name}{'' if name == 'unknown' else unit} "
        name = "yes" if what == "missing" else name
        text = f"{shown}{now.get(name, 0):.0%} (training {before.get(name, 0):.0%})"
    return Comparison(
        modality=modality,
        what=what,
        training=before,
        found=now,
        distance=distance,
        limit=max(LEAST_DIFFERENCE, _SMIRNOV * math.sqrt(1 / n + 1 / m)),
        text=f"{modality} {_NAME.get(what, what)}: {text}",
    )


def _foreground(channel: npt.NDArray[Any]) -> npt.NDArray[np.integer[Any]]:
    """(256,) foreground voxels at each level of the stored range."""
    if channel.dtype == np.uint8:
        counts = np.bincount(channel.ravel(), minlength=256)
        counts[0] = 0
        return counts
    inside = channel[channel > 0]
    levels = inside >> 8 if channel.dtype == np.uint16 else np.clip(inside * 255.0, 0, 255)
    return np.bincount(levels.astype(np.uint8), minlength=256)


def _quantiles(voxels: npt.NDArray[np.integer[Any]]) -> list[int]:
    """The foreground's `QUANTILES`, in 256ths of the stored range; none without foreground."""
    below = np.cumsum(voxels)
    if not below[-1]:
        return []
    wanted = np.array(QUANTILES) / 100 * below[-1]
    return [int(level) for level in np.searchsorted(below, wanted)]


def _number(value: object) -> float:
    """A number of a row, 0 where it is unknown."""
    try:
        number = float(str(value))
    except ValueError:
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0


def _length_bin(length: float) -> str:
    """The bin's middle in mm."""
    if not length:
        return "unknown"
    return f"{2 ** (round(_BINS_PER_DOUBLING * math.log2(length)) / _BINS_PER_DOUBLING):.3g}"


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
            text=(
                f"{modality} intensity, {quantile} % quantile of the foreground: "
                f"{other / 256:.2f} (training {mean / 256:.2f} ± {spread / 256:.2f})"
            ),
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
