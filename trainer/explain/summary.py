"""saliency.json: what maps of patients amount to in numbers, and what there is to mind in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.files import interface as files
from beam_jobs.common.printable import in_digits
from beam_jobs.core.cohort.target import Label, Target
from trainer.explain.attribution import LEAST_GAP, TOLERANCE, rank_correlation
from trainer.explain.cases import Explained, logit_of
from trainer.metrics.logits import sigmoid
from trainer.metrics.predictions import directory_name
from trainer.training.run_files import Run

FORMAT = "voxelbeam-saliency"
JSON_NAME, PAGE_NAME, MAP_SUFFIX = "saliency.json", "saliency.html", ".nii.gz"
# From here on two maps count as alike: half of the variance of their ranks is shared.
ALIKE = 0.7


def summarise(trained: Run, explained: Sequence[Explained], *, method: str) -> dict[str, Any]:
    """The object that saliency.json holds."""
    patients = [_numbers(one, trained, method) for one in explained]
    target = trained.target
    answer = "value" if target.task == "regression" else "logit"
    warnings = []
    if trained.config.get("permute_labels"):
        warnings.append(
            "The run was trained on permuted labels: its maps show what a network finds where "
            "there is nothing to learn."
        )
    for patient in patients:
        name, check = patient["patient_id"], patient["random_weights"]
        if check["alike"]:
            warnings.append(
                f"{name}: the map is much like that of random weights (rank correlation "
                f"{correlation_text(check['rank_correlation'])}, of sizes "
                f"{correlation_text(check['rank_correlation_of_sizes'])}): it shows the image or "
                "the architecture rather than what was learnt."
            )
        if patient["half_in"] is None:
            warnings.append(
                f"{name}: the map is empty. There is no foreground in any of the run's modalities: "
                f"the volume is the baseline, the {answer} the network's answer to nothing."
                if patient["empty"]
                else f"{name}: the map is empty: no voxel speaks for {_aim(trained.target)}."
            )
        if not patient["complete"]:
            warnings.append(
                f"{name}: attributions miss the {answer}'s difference by "
                f"{patient['completeness_gap']:.3f} after {patient['steps']} steps."
            )
    return {
        "format": FORMAT,
        "method": method,
        "run": directory_name(trained.directory),
        "model": trained.model,
        "modalities": list(trained.modalities),
        "dataset_fingerprint": trained.dataset_fingerprint,
        **({} if target.is_plain else {"target": target.to_json()}),
        **({"covariates": [one.name for one in trained.covariates]} if trained.covariates else {}),
        "completeness": {"of_difference": TOLERANCE, "least": LEAST_GAP},
        "alike_from": ALIKE,
        "patients": patients,
        "warnings": warnings,
    }


def _numbers(one: Explained, trained: Run, method: str) -> dict[str, Any]:
    """A patient's entry in saliency.json."""
    target, chosen, case, found, random = (
        *(trained.target, one.chosen, one.case, one.found),
        one.random,
    )
    each = found.strength(method)
    total, of_random = each.sum(axis=-1), random.strength(method).sum(axis=-1)
    head, whole = one.head, float(total.sum())
    voxel = np.unravel_index(int(total.argmax()), total.shape)
    signed = rank_correlation(found.values.sum(-1), random.values.sum(-1), within=head)
    sizes = rank_correlation(total, of_random, within=head)
    told_apart = each.shape[-1] == len(trained.modalities)
    shares = each.sum(axis=(0, 1, 2)) / whole if whole and told_apart else ()
    return {
        "patient_id": chosen.patient_id,
        "label": chosen.label if target.is_plain else _label(target, chosen.label),
        "fold": chosen.fold,
        "members": [trained.members[place].path for place in chosen.members],
        **_answer(one, target),
        "completeness_gap": found.gap,
        "complete": found.complete,
        "steps": found.steps,
        "share_of_modality": dict(zip(trained.modalities, map(float, shares), strict=False)),
        "empty": not bool(head.any()),
        "peak": {
            "voxel": [int(index) for index in voxel],
            "lps_mm": [round(float(mm), 2) for mm in (case.affine @ [*voxel, 1])[:3]],
        },
        "outside_head": float(total[~head].sum()) / whole if whole else None,
        "half_in": half_in(total[head]),
        "random_weights": {
            "rank_correlation": signed,
            "rank_correlation_of_sizes": sizes,
            "alike": any(value is not None and abs(value) >= ALIKE for value in (signed, sizes)),
            "half_in": half_in(of_random[head]),
        },
        "map": map_name(chosen.patient_id),
    }


def _aim(target: Target) -> str:
    """What Grad-CAM shows the reasons for."""
    if target.task == "regression":
        return "a greater value"
    return f"the {'class' if target.task != 'multilabel' else 'answer'} that was predicted"


def _label(target: Target, label: Label | None) -> Any:
    """A value as a number, others in words; None unknown."""
    if label is None or target.task == "regression":
        return label
    return target.text(label)


def _answer(one: Explained, target: Target) -> dict[str, Any]:
    """What is explained of a patient, in numbers."""
    chosen, found = one.chosen, one.found
    oof = None
    if chosen.oof is not None:
        known = ~np.isnan(chosen.oof.reshape(len(chosen.oof), -1)).any(axis=1)
        oof = float(np.mean(logit_of(target, chosen.oof[known], one.output)))
    if target.task == "regression":
        return {"value": found.logit, "oof_value": oof, "right": None,
                "baseline_value": found.baseline}  # fmt: skip
    told: dict[str, Any] = {}
    label: Any = chosen.label
    right = None if label is None else (found.logit > 0) == bool(label)
    if target.task == "multiclass":
        told = {"class": target.names[one.output], "predicted": target.names[one.predicted]}
        right = None if label is None else one.predicted == label
    elif target.task == "multilabel":
        told = {"finding": target.names[one.output]}
        found_there = None if label is None else label[one.output]
        right = None if found_there is None else (found.logit > 0) == bool(found_there)
    return {
        **told,
        "logit": found.logit,
        "probability": float(sigmoid(np.float64(found.logit))),
        "oof_logit": oof,
        "right": right,
        "baseline_logit": found.baseline,
    }


def half_in(strength: npt.NDArray[np.float64]) -> float | None:
    """The smallest share of voxels that holds half of a map's strength; None where it has none.

    >>> half_in(np.array([6.0, 1.0, 1.0, 1.0, 1.0]))
    0.2
    """
    if not strength.sum() > 0:
        return None
    running = np.cumsum(np.sort(strength)[::-1])
    return float(np.searchsorted(running, running[-1] / 2) + 1) / len(strength)


def map_name(patient_id: str) -> str:
    """The file of a patient's map; an id is any text."""
    return files.file_name(patient_id, MAP_SUFFIX)


def label_text(label: int | float | str) -> str:
    """A label as text; a value with four digits.

    >>> label_text(1), label_text("edema"), label_text(29.130276), label_text(4875086.0)
    ('1', 'edema', '29.13', '4875000')
    """
    return in_digits(label) if isinstance(label, float) else str(label)


def correlation_text(value: float | None) -> str:
    """A correlation as text."""
    return "none" if value is None else f"{value:.2f}"
