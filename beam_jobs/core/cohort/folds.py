"""Patient to fold and shard: grouped, stratified, seeded, and independent of input order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def hash_order(patient_id: str, seed: int) -> str:
    """A key that puts patients in the same arbitrary order on every machine (BLAKE2b, hex)."""
    return hashlib.blake2b(f"{seed}:{patient_id}".encode(), digest_size=16).hexdigest()


def assign_folds(labels: Mapping[str, int], folds: int, seed: int) -> dict[str, int]:
    """Deals patients to folds, class by class, in keyed-hash order.

    Each class is spread as evenly as its size allows, and so is the total: a class is dealt on
    where the one before it stopped.

    Args:
      labels: patient id to class index.
      folds: number of folds, at least 2.
      seed: of the order.

    Returns:
      patient id to fold, 0 <= fold < folds.

    Raises:
      ValueError: fewer than two folds.
    """
    if folds < 2:
        raise ValueError(f"at least 2 folds are needed, {folds} requested")
    assignment: dict[str, int] = {}
    for label in sorted(set(labels.values())):
        members = [patient for patient, value in labels.items() if value == label]
        for patient in sorted(members, key=lambda patient: (hash_order(patient, seed), patient)):
            assignment[patient] = len(assignment) % folds
    return assignment


def assign_shards(patients: Mapping[str, int | None], per_shard: int, seed: int) -> dict[str, str]:
    """Patient to shard file name, fold by fold in keyed-hash order.

    Args:
      patients: patient id to fold, None for a patient without label.
      per_shard: patients a shard, at most; shards of a fold are filled evenly.
      seed: of the order.

    Returns:
      patient id to `fold-0-00000-of-00002.tfrecord` or `unlabelled-00000-of-00001.tfrecord`.

    Raises:
      ValueError: fewer than one patient a shard.
    """
    if per_shard < 1:
        raise ValueError(f"at least 1 patient a shard is needed, {per_shard} requested")
    names: dict[str, str] = {}
    for fold in {fold: None for fold in patients.values()}:
        members = [patient for patient, value in patients.items() if value == fold]
        members.sort(key=lambda patient: (hash_order(patient, seed), patient))
        shards = -(-len(members) // per_shard)
        stem = "unlabelled" if fold is None else f"fold-{fold}"
        for index, patient in enumerate(members):
            shard = index * shards // len(members)
            names[patient] = f"{stem}-{shard:05d}-of-{shards:05d}.tfrecord"
    return names
