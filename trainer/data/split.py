"""Who is trained on and who is held out: read from the manifest, checked, never drawn here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, shown
from beam_jobs.core.cohort.balance import VALUES_A_FOLD
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.cohort.target import Label, Target
from beam_jobs.core.manifest import TEST, Manifest, Place


def folds_in_use(manifest: Manifest, outer: int | None) -> tuple[int, ...]:
    """The folds that a run trains on or scores: all but an outer one."""
    return tuple(fold for fold in range(manifest.folds) if fold != outer)


def folds_to_train(
    manifest: Manifest, fold: int | None, outer: int | None = None
) -> tuple[int, ...]:
    """The folds to hold out, one after the other: the given one, or all but an outer one.

    Raises:
      UsageError: the dataset has no such fold, or too few folds to hold one out.
    """
    if manifest.folds < 2:
        raise UsageError(f"the dataset has {manifest.folds} fold: at least 2 are needed to train")
    for name, one in (("fold", fold), ("outer_fold", outer)):
        if one is not None and one >= manifest.folds:
            raise UsageError(f"--{name} {one}: the dataset has folds 0 to {manifest.folds - 1}")
    if outer is not None and manifest.folds < 3:
        raise UsageError(
            f"--outer_fold {outer}: the dataset has {manifest.folds} folds, at least 3 are needed"
        )
    return folds_in_use(manifest, outer) if fold is None else (fold,)


def check_folds(manifest: Manifest) -> None:
    """Refuses folds that cannot be trained on or would leak.

    Raises:
      ContractError: a patient stands in two places (a test shard is one), under whatever spelling
        of the id, has a fold but no label, or a fold has too few labels to be scored; the message
        names patients or fold.
    """
    places: dict[str, tuple[str, list[str]]] = {}
    for shard in manifest.shards:
        where = _name_of(shard.place)
        for patient in shard.patients:
            name = patient.patient_id
            places.setdefault(normalised_id(name), (name, []))[1].append(where)
    twice = [f"{name} ({', '.join(where)})" for name, where in places.values() if len(where) > 1]
    if twice:
        raise ContractError(f"patients in more than one place: {'; '.join(twice[:5])}")
    odd = [name for name, label, fold in manifest.patients if fold is not None and label is None]
    if odd:
        raise ContractError(f"patients with a fold but no label: {', '.join(odd[:5])}")
    for fold in range(manifest.folds):
        labels = [label for _, label, own in manifest.patients if own == fold]
        if lack := _lack(manifest.schema.target, [one for one in labels if one is not None]):
            raise ContractError(
                f"fold {fold} has {lack}, in every fold (fewer folds, or more patients)"
            )


def _lack(target: Target, labels: Sequence[Label]) -> str:
    """What there is of a fold's labels, and what scoring needs; "" where they are enough."""
    counts = Counter(labels)
    if target.task == "binary" and set(counts) != {0, 1}:
        return f"{counts[0]} negative and {counts[1]} positive patients: AUC needs both"
    if target.task == "multiclass":
        absent = [name for index, name in enumerate(target.classes) if not counts[index]]
        if absent:
            return f"no patient of class {shown(absent[0])}: the macro AUC needs all classes"
    if target.task == "regression" and (len(labels) < VALUES_A_FOLD or len(counts) < 2):
        return (
            f"{len(labels)} patients with {len(counts)} different values: a rank correlation "
            f"needs {VALUES_A_FOLD} patients and 2 values"
        )
    if target.task == "multilabel":
        for name, column in zip(target.labels, zip(*labels, strict=True), strict=True):
            negative, positive = column.count(0), column.count(1)
            if not negative or not positive:
                return (
                    f"{negative} negative and {positive} positive patients of {shown(name)}: "
                    "each label's AUC needs both"
                )
    return ""


def _name_of(place: Place) -> str:
    if place is None:
        return "unlabelled"
    return TEST if place == TEST else f"fold {place}"


def labels_of(manifest: Manifest) -> dict[str, Any]:
    """patient_id → label of every patient that has a fold."""
    return {
        name: label
        for name, label, fold in manifest.patients
        if fold is not None and label is not None
    }


def permuted_labels(manifest: Manifest, seed: int) -> dict[str, Any]:
    """`labels_of` with the labels shuffled among the patients of each fold.

    Within the folds, because shuffling across them unbalances them: the training folds' surplus of
    one class is then the held-out fold's lack, and pooled out-of-fold AUCs fall below 0.5. A label
    moves whole, with what of it is unknown; covariates stay with their patient.
    """
    rng = np.random.default_rng(seed)
    labels = labels_of(manifest)
    for fold in range(manifest.folds):
        names = [name for name, _, own in manifest.patients if own == fold]
        order = rng.permutation(len(names))
        shuffled = [labels[names[place]] for place in order]
        labels.update(zip(names, shuffled, strict=True))
    return labels
