"""saliency.json: what maps of patients amount to in numbers, and what there is to mind in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.files import interface as files
from trainer.explain.attribution import LEAST_GAP, TOLERANCE, rank_correlation
from trainer.explain.cases import Explained
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
                "the volume is the baseline, the logit the network's answer to nothing."
                if patient["empty"]
                else f"{name}: the map is empty: no voxel speaks for the class that was predicted."
            )
        if not patient["complete"]:
            warnings.append(
                f"{name}: attributions miss the logit's difference by "
                f"{patient['completeness_gap']:.3f} after {patient['steps']} steps."
            )
    return {
        "format": FORMAT,
        "method": method,
        "run": directory_name(trained.directory),
        "model": trained.model,
        "modalities": list(trained.modalities),
        "dataset_fingerprint": trained.dataset_fingerprint,
        "completeness": {"of_difference": TOLERANCE, "least": LEAST_GAP},
        "alike_from": ALIKE,
        "patients": patients,
        "warnings": warnings,
    }


def _numbers(one: Explained, trained: Run, method: str) -> dict[str, Any]:
    """A patient's entry in saliency.json."""
    chosen, case, found, random = one.chosen, one.case, one.found, one.random
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
        "label": chosen.label,
        "fold": chosen.fold,
        "members": [trained.members[place].path for place in chosen.members],
        "logit": found.logit,
        "probability": float(sigmoid(np.float64(found.logit))),
        "oof_logit": chosen.oof_logit,
        "right": None if chosen.label is None else (found.logit > 0) == bool(chosen.label),
        "baseline_logit": found.baseline,
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


def correlation_text(value: float | None) -> str:
    """A correlation as text."""
    return "none" if value is None else f"{value:.2f}"
