"""What a phantom cohort shall hold, drawn from a seed and written nowhere.

The plan is the truth: the writer (`beam_jobs.phantoms`) obeys it and stores it beside the files, so
what a test reads back is what decided the pixels.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from beam_jobs.phantoms.anatomy import (
    HALO_MM,
    MARKER_CENTRE,
    MARKER_RADIUS,
    TISSUES,
    Head,
    Lesion,
    Vector,
    cerebrum_radius,
    is_brain,
)
from beam_jobs.phantoms.labels import (
    LESION_RADIUS_MM,
    TASKS,
    Label,
    Looks,
    draw_covariates,
    draw_labels,
    draw_looks,
    wrong,
)
from beam_jobs.phantoms.series import PLANES, Plane, SeriesSpec

_TROUBLE_FROM = 20  # from so many training patients on, at least one of each

# (share, bits stored, signed, slope, stored value of 0). Slopes are exact in binary, so the
# background comes back as exactly 0 after rescale.
_STORAGE = (
    (0.40, 16, False, 1.0, 0),
    (0.15, 12, False, 1.0, 0),
    (0.10, 16, True, 1.0, 0),
    (0.10, 16, False, 0.5, 0),
    (0.07, 12, False, 0.75, 64),
    (0.06, 16, True, 0.25, -1000),
    (0.06, 12, True, 1.25, -512),
    (0.06, 16, False, 2.0, 100),
)


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """What cohort to write.

    Attributes:
        patients: labelled patients, under `train/`.
        test_patients: patients under `test/`; None means a quarter of `patients`, rounded up.
        seed: decides everything; the same seed gives the same bytes.
        matrix: least and greatest number of rows and columns.
        slices: least and greatest number of slices.
        modalities: in the order of the channels; a subset of FLAIR, T1w, T1wCE, T2w.
        trouble_rate: share of series that are missing, and again of series that are black; at most
            one a patient, and from 20 training patients on at least one of each. 0 gives a cohort
            without either.
        difficulty: 0..1, how alike the two kinds of lesion look. 0: every lesion looks as its kind
            says. Above, each patient's lesion lies somewhere between the two kinds;
            `labels.best_auc` is what a reader reaches who sees exactly where. 1: kinds look the
            same. Of values, what the lesion shows correlates with them by 1 - difficulty.
        label_noise: 0..0.5, share of training patients whose label is written wrong.
        no_signal: whether lesions, and covariates, are drawn without regard to the label.
        task: what a label says, one of `labels.TASKS`.
        covariates: whether age, sex and site are known too, and tell the label: lesions then have
            nothing to do with it.
    """

    patients: int
    test_patients: int | None = None
    seed: int = 0
    matrix: tuple[int, int] = (96, 120)
    slices: tuple[int, int] = (32, 42)
    modalities: tuple[str, ...] = tuple(TISSUES)
    trouble_rate: float = 0.03
    difficulty: float = 0.0
    label_noise: float = 0.0
    no_signal: bool = False
    task: str = "binary"
    covariates: bool = False

    def __post_init__(self) -> None:
        if self.patients < 1:
            raise ValueError(f"patients must be >= 1, found {self.patients}")
        if self.test_patients is not None and self.test_patients < 0:
            raise ValueError(f"test_patients must be >= 0, found {self.test_patients}")
        if self.patients + self.test_count > 60_000:
            raise ValueError(
                "five-digit ids hold at most 60000 patients, found "
                f"{self.patients + self.test_count}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, found {self.seed}")
        for name, least in (("matrix", 16), ("slices", 4)):
            low, high = getattr(self, name)
            if not least <= low <= high <= 4096:
                raise ValueError(
                    f"{name} must be 'min,max' with {least} <= min <= max <= 4096, "
                    f"found {low},{high}"
                )
        unknown = [name for name in self.modalities if name not in TISSUES]
        if unknown or not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise ValueError(
                f"modalities must be different names out of {','.join(TISSUES)}, "
                f"found {','.join(self.modalities) or 'none'}"
            )

        # A patient suffers at most one trouble: twice the rate over all of its series is at most 1.
        if not 0 <= self.trouble_rate * 2 * len(self.modalities) <= 1:
            raise ValueError(
                f"trouble_rate must be in 0..{0.5 / len(self.modalities):g}, "
                f"found {self.trouble_rate}"
            )
        for name, most in (("difficulty", 1.0), ("label_noise", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be in 0..{most:g}, found {getattr(self, name)}")

        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, found {self.task!r}")
        for name in ("no_signal", "covariates"):
            if getattr(self, name) and self.difficulty:
                raise ValueError(f"{name} leaves nothing to tell apart: not with a difficulty")

    @property
    def test_count(self) -> int:
        """The number of test patients, the default worked out."""
        return math.ceil(self.patients / 4) if self.test_patients is None else self.test_patients


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One patient as planned and as written.

    Attributes:
        patient_id: five digits, the directory's name and PatientID.
        index: place in the cohort, training patients first; decides the noise.
        split: "train" or "test".
        label: the true one; 1 has a ring lesion, 0 a solid one, unless the cohort has no signal;
            `labels` has the other tasks'.
        head: the physical head, lesion included.
        series: one spec a modality, missing ones too (`missing=True`).
        flipped: whether the label is written wrong.
        covariates: name → as the table has it; {} of a cohort without.
    """

    patient_id: str
    index: int
    split: Literal["train", "test"]
    label: Label
    head: Head
    series: tuple[SeriesSpec, ...]
    flipped: bool = False
    covariates: Mapping[str, int | str] = field(default_factory=dict)

    @property
    def written_label(self) -> Label:
        """The label as train_labels.csv has it."""
        return wrong(self.label) if self.flipped else self.label


@dataclass(frozen=True, kw_only=True)
class CohortTruth:
    """What a cohort holds: config and patients, training patients first, in order of id."""

    config: PhantomConfig
    patients: tuple[Patient, ...] = field(repr=False)

    def patient(self, patient_id: str) -> Patient:
        """The patient of that five-digit id.

        Raises:
            KeyError: the cohort holds no such id.
        """
        for patient in self.patients:
            if patient.patient_id == patient_id:
                return patient
        raise KeyError(f"no patient {patient_id!r} among {len(self.patients)}")


def plan_cohort(config: PhantomConfig) -> CohortTruth:
    """Draw every head, lesion and series of a cohort.

    Writes nothing; `SeriesSpec.blank_slices` stay empty until the cohort is written.
    """
    rng = np.random.default_rng([config.seed, 0])
    total = config.patients + config.test_count
    ids = rng.choice(math.ceil(total * 1.5), size=total, replace=False)
    ids = np.concatenate([np.sort(ids[: config.patients]), np.sort(ids[config.patients :])])
    labels = [
        label
        for count in (config.patients, config.test_count)
        for label in draw_labels(config.task, count, rng)
    ]
    troubles = _troubles(config, rng)
    flipped = _flipped(config)
    return CohortTruth(
        config=config,
        patients=tuple(
            replace(
                _plan_patient(config, index, f"{ids[index]:05d}", labels[index], troubles[index]),
                flipped=index in flipped,
            )
            for index in range(total)
        ),
    )


def _flipped(config: PhantomConfig) -> set[int]:
    """The training patients whose labels are written wrong."""
    rng = np.random.default_rng([config.seed, 4])
    order = rng.permutation(config.patients)
    return set(order[: round(config.label_noise * config.patients)].tolist())


def _troubles(config: PhantomConfig, rng: np.random.Generator) -> list[tuple[str, str] | None]:
    """For each patient: None, or the one (modality, "missing" | "blank") that befalls it."""
    total, names = config.patients + config.test_count, config.modalities
    result: list[tuple[str, str] | None] = [None] * total
    draws = rng.random(total)
    choices = rng.integers(len(names), size=total)
    if len(names) == 1 or not config.trouble_rate:
        return result  # a patient keeps at least one usable series
    rate = config.trouble_rate * len(names)
    for index, draw in enumerate(draws):
        if draw < 2 * rate:
            result[index] = (names[choices[index]], "missing" if draw < rate else "blank")
    if config.patients >= _TROUBLE_FROM:
        for kind in ("missing", "blank"):
            train = result[: config.patients]
            if not any(trouble and trouble[1] == kind for trouble in train):
                healthy = [index for index, trouble in enumerate(train) if trouble is None]
                index = int(rng.choice(healthy or range(len(train))))
                result[index] = (names[choices[index]], kind)
    return result


def _plan_patient(
    config: PhantomConfig,
    index: int,
    patient_id: str,
    label: Label,
    trouble: tuple[str, str] | None,
) -> Patient:
    rng = np.random.default_rng([config.seed, 1, index])
    looks = draw_looks(
        label,
        np.random.default_rng([config.seed, 5, index]),
        difficulty=config.difficulty,
        no_signal=config.no_signal or config.covariates,
    )
    # Where a halo may be its room is kept free, whether there is one or not.
    around = HALO_MM if config.task in ("multiclass", "multilabel") else 0.0
    head = _draw_head(looks, around, rng)
    known: dict[str, int | str] = {}
    if config.covariates:
        draws = np.random.default_rng([config.seed, 6, index])
        known = draw_covariates(label, draws, no_signal=config.no_signal)
    series = []
    for place, modality in enumerate(config.modalities):
        spec = _draw_series(
            config, modality, head, np.random.default_rng([config.seed, 2, index, place])
        )
        if trouble == (modality, "blank"):  # black series in the reference cohort carry no rescale
            spec = replace(spec, blank=True, slope=1.0, intercept=0.0)
        series.append(replace(spec, missing=trouble == (modality, "missing")))
    split: Literal["train", "test"] = "train" if index < config.patients else "test"
    return Patient(
        patient_id=patient_id,
        index=index,
        split=split,
        label=label,
        head=head,
        series=tuple(series),
        covariates=known,
    )


def _draw_head(looks: Looks, around: float, rng: np.random.Generator) -> Head:
    head = Head(
        centre=_vector(rng.uniform(-35, 35, 3)),
        rotation_degrees=_vector(rng.uniform(-8, 8, 3)),
        size=round(float(rng.uniform(0.92, 1.08)), 4),
        phases=tuple(round(float(phase), 4) for phase in rng.uniform(0, 2 * np.pi, 6)),
    )
    radius = round(float(rng.uniform(*LESION_RADIUS_MM)), 3)
    radius = radius if looks.radius is None else looks.radius
    rim_fraction = round(float(rng.uniform(0.30, 0.38)), 3)
    reach = (radius + 3) / head.size  # keep the whole sphere in the cerebrum, off the marker
    sphere = reach * _unit_sphere(96)
    while True:
        centre = rng.uniform((-66, -84, -40), (66, 84, 58))
        x, y, z = (centre + sphere).T
        distance = np.linalg.norm(centre - MARKER_CENTRE)
        clear_of_marker = distance > reach + around / head.size + MARKER_RADIUS
        if clear_of_marker and cerebrum_radius(x, y, z).max() < 0.98:
            break
    lesion = Lesion(
        kind=looks.kind,
        centre=_vector(head.to_patient(centre)),
        radius=radius,
        rim_fraction=rim_fraction,
        mixture=looks.mixture,
        halo=looks.halo,
    )
    return replace(head, lesion=lesion)


def _draw_series(
    config: PhantomConfig, modality: str, head: Head, rng: np.random.Generator
) -> SeriesSpec:
    plane: Plane = rng.choice(list(PLANES), p=(0.5, 0.25, 0.25))
    oblique = rng.random() < 0.3
    rows, columns = (int(value) for value in rng.integers(*config.matrix, size=2, endpoint=True))
    if rng.random() < 0.6:
        columns = rows
    slices = int(rng.integers(*config.slices, endpoint=True))
    draft = SeriesSpec(
        modality=modality,
        plane=str(plane),  # type: ignore[arg-type]
        obliquity_degrees=round(float(rng.uniform(5, 25)), 3) if oblique else 0.0,
        obliquity_axis_degrees=round(float(rng.uniform(0, 360)), 3) if oblique else 0.0,
    )
    # The field of view follows the head's extent along each direction, as set at the scanner.
    along = head.to_patient(_landmarks()) @ draft.directions.T
    low, high = along.min(axis=0), along.max(axis=0)
    margin = rng.uniform((14, 14, 30), (30, 30, 60))
    shift = rng.uniform(-0.2, 0.2, 3) * margin
    width, height, depth = high - low + margin
    pixel = max(width / columns, height / rows)
    stretch = 1 + (0.06 * rng.random() if rng.random() < 0.25 else 0)  # pixels that are not square
    step = round(depth / slices, 3)
    _, bits, signed, slope, zero = _STORAGE[
        rng.choice(len(_STORAGE), p=[row[0] for row in _STORAGE])
    ]
    numbers = rng.choice(np.arange(1, math.ceil(1.3 * slices) + 1), size=slices, replace=False)
    return replace(
        draft,
        rows=rows,
        columns=columns,
        slices=slices,
        row_spacing=round(pixel * stretch, 4),
        column_spacing=round(pixel, 4),
        slice_step=step,
        centre=_vector(((low + high) / 2 + shift) @ draft.directions),
        slope=slope,
        intercept=-slope * zero + 0.0,
        bits_stored=bits,
        signed=signed,
        transfer_syntax="implicit" if rng.random() < 0.2 else "explicit",
        slice_thickness=round(step * float(rng.choice((0.8, 0.9, 1.2, 2.0))), 2),
        spacing_between_slices=(None, step, round(step * 1.67, 2))[
            rng.choice(3, p=(0.3, 0.5, 0.2))
        ],
        file_numbers=tuple(int(number) for number in numbers),
        instance_numbers=tuple(int(number) for number in rng.permutation(slices) + 1),
    )


@functools.cache
def _landmarks() -> NDArray[np.float64]:
    """(n, 3) canonical points that fill the brain: their extent is nearly the head's."""
    axes = np.arange(-77, 78, 7.0), np.arange(-84, 85, 7.0), np.arange(-75, 61, 7.0)
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.asarray(points[is_brain(*points.T)])


def _unit_sphere(count: int) -> NDArray[np.float64]:
    """(count, 3) points spread evenly over the unit sphere (Fibonacci lattice)."""
    z = 1 - (2 * np.arange(count) + 1) / count
    turn = np.arange(count) * np.pi * (3 - math.sqrt(5))
    radius = np.sqrt(1 - z * z)
    return np.asarray(np.stack([np.cos(turn) * radius, np.sin(turn) * radius, z], axis=-1))


def _vector(values: NDArray[np.float64]) -> Vector:
    x, y, z = (round(float(value), 4) for value in values)
    return x, y, z
