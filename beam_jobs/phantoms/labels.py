"""What a phantom's label says, how its lesion shows it, and what else is known of the patient.

task         columns           a label, and the lesion that shows it
-----------  ----------------  -----------------------------------------------------------------
binary       MGMT_value        1: a bright rim around a dark core; 0: homogeneous
multiclass   lesion            solid: homogeneous; ring: a dark core; halo: swollen tissue around
multilabel   necrosis, edema   1 of necrosis: a dark core; 1 of edema: swollen tissue around
regression   diameter_mm       how large the lesion is
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from beam_jobs.phantoms.anatomy import LesionKind

# As a cohort's tables have it: a class's name, 0 or 1, several of them, or a value.
Label = int | float | str | tuple[int, ...]

CLASSES = ("solid", "ring", "halo")
FINDINGS = ("necrosis", "edema")
LESION_RADIUS_MM = (14.0, 24.0)
_DIAMETER_MM = (2 * LESION_RADIUS_MM[0], 2 * LESION_RADIUS_MM[1])
ID_COLUMN = "BraTS21ID"
COLUMNS: dict[str, tuple[str, ...]] = {
    "binary": ("MGMT_value",),
    "multiclass": ("lesion",),
    "multilabel": FINDINGS,
    "regression": ("diameter_mm",),
}
TASKS = tuple(COLUMNS)
# Of a submission to fill in, in the columns of predictions: what is known of a patient whom nobody
# has looked at.
NEUTRAL: dict[str, dict[str, float]] = {
    "binary": {"MGMT_value": 0.5},
    "multiclass": {f"probability_{name}": 0.333 for name in CLASSES},
    "multilabel": {f"probability_{name}": 0.5 for name in FINDINGS},
    "regression": {"value": sum(_DIAMETER_MM) / 2},
}
COVARIATES = ("age", "sex", "site")
_YOUNGEST, _AGE_RANGE = 30, 45
# Years by which the age of one label varies: classes stay apart, and values nearly so.
_AGE_SPREAD, _AGE_SPREAD_OF_VALUES = 6.0, 2.0
_SITES = ("A", "B", "C")
_SITE_UNKNOWN = 0.05


class Looks(NamedTuple):
    """What a label decides of a lesion.

    Attributes:
        kind, mixture, halo: as `anatomy.Lesion` has them.
        radius: mm; None where the label does not decide it.
    """

    kind: LesionKind
    mixture: float = 0.0
    halo: float = 0.0
    radius: float | None = None


def draw_labels(task: str, count: int, rng: np.random.Generator) -> list[Label]:
    """Labels of so many patients: classes and sets of findings equally often, values at random."""
    if task == "multiclass":
        return [CLASSES[index] for index in rng.permutation(np.arange(count) % len(CLASSES))]
    if task == "multilabel":
        sets = rng.permutation(np.arange(count) % 4)
        return [(int(one) & 1, int(one) >> 1) for one in sets]
    if task == "regression":
        return [round(float(value), 1) for value in rng.uniform(*_DIAMETER_MM, size=count)]
    # Half ones, half zeros; an odd count has one more positive.
    return [int(value) for value in rng.permutation((np.arange(count) + 1) % 2)]


def wrong(label: Label) -> Label:
    """What stands in the table where a label is written wrong: of a value, its mirror image."""
    if isinstance(label, str):
        return CLASSES[(CLASSES.index(label) + 1) % len(CLASSES)]
    if isinstance(label, tuple):
        return tuple(1 - one for one in label)
    return round(sum(_DIAMETER_MM) - label, 1) if isinstance(label, float) else 1 - label


def cells(label: Label) -> tuple[int | float | str, ...]:
    """A label as the cells of its columns."""
    return label if isinstance(label, tuple) else (label,)


def draw_looks(
    label: Label, rng: np.random.Generator, *, difficulty: float = 0.0, no_signal: bool = False
) -> Looks:
    """How the lesion of a patient with this label looks.

    Args:
        label: the true one.
        rng: of this patient's appearance alone.
        difficulty: see `PhantomConfig`.
        no_signal: whether the label is not regarded.
    """

    def drawn(*, present: bool) -> tuple[LesionKind, float]:
        return draw_appearance(present, rng, difficulty=difficulty, no_signal=no_signal)

    if isinstance(label, float):
        correlation = 0.0 if no_signal else 1 - difficulty
        return Looks("solid", radius=round(_shown(label, correlation, rng) / 2, 3))
    if isinstance(label, int):
        return Looks(*drawn(present=label == 1))
    necrosis, edema = (label == "ring", label == "halo") if isinstance(label, str) else label
    kind, mixture = drawn(present=bool(necrosis))
    halo, faint = drawn(present=bool(edema))
    return Looks(kind, mixture, round(1 - faint if halo == "ring" else faint, 4))


def _shown(diameter: float, correlation: float, rng: np.random.Generator) -> float:
    """The diameter in mm that is seen: by normal scores it has this correlation with the true."""
    low, high = _DIAMETER_MM
    share = min(max((diameter - low) / (high - low), 1e-3), 1 - 1e-3)
    score = correlation * NormalDist().inv_cdf(share)
    score += math.sqrt(1 - correlation**2) * float(rng.standard_normal())
    return low + (high - low) * NormalDist().cdf(score)


def draw_appearance(
    present: bool, rng: np.random.Generator, *, difficulty: float = 0.0, no_signal: bool = False
) -> tuple[LesionKind, float]:
    """A lesion's kind (a ring where something is present), and its mixture with the other kind.

    A latent normal variable, of unit variance and with a mean on its kind's side of 0, becomes the
    share of a ring by the normal distribution function. A patient's deviation from that mean is the
    same at every difficulty.
    """
    coin, deviation = int(rng.integers(2)), float(rng.standard_normal())
    kind: LesionKind = "ring" if (coin if no_signal else present) else "solid"
    mean = _separation(difficulty) / math.sqrt(2)
    return kind, round(NormalDist().cdf(-mean - deviation), 4)


def best_auc(difficulty: float) -> float:
    """The AUC of a reader who sees exactly how each lesion is mixed, over endless patients."""
    return NormalDist().cdf(_separation(difficulty))


def _separation(difficulty: float) -> float:
    """The z of that AUC: infinite at 0, none at 1.

    By measurement, so that a small network trained on 80 patients falls evenly from 1 to 0.5: it
    loses much more than a perfect reader to lesions that lie between the kinds.
    """
    return 1.9 * ((1 - difficulty) / difficulty) ** 0.25 if difficulty else math.inf


def draw_covariates(
    label: Label, rng: np.random.Generator, *, no_signal: bool = False
) -> dict[str, int | str]:
    """What else is known of a patient: `COVARIATES` → the cell of the table, "" where unknown.

    Age rises with the label (of findings: with the first; sex tells the second), site is noise.

    Args:
        label: the true one.
        rng: of this patient's covariates alone.
        no_signal: whether the label is not regarded.
    """
    if isinstance(label, str):
        height = CLASSES.index(label) / (len(CLASSES) - 1)
    elif isinstance(label, float):
        height = (label - _DIAMETER_MM[0]) / (_DIAMETER_MM[1] - _DIAMETER_MM[0])
    else:
        height = float(label[0] if isinstance(label, tuple) else label)
    chance, coin = float(rng.random()), int(rng.integers(2))
    spread = _AGE_SPREAD_OF_VALUES if isinstance(label, float) else _AGE_SPREAD
    age = _YOUNGEST + _AGE_RANGE * (chance if no_signal else height) + rng.uniform(-spread, spread)
    female = label[1] if isinstance(label, tuple) and not no_signal else coin
    site = _SITES[int(rng.integers(len(_SITES)))]
    return {
        "age": round(float(age)),
        "sex": "F" if female else "M",
        "site": "" if rng.random() < _SITE_UNKNOWN else site,
    }
