"""Patient to fold and shard: grouped, stratified, seeded, and independent of input order."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping

from beam_jobs.core.manifest import TEST, Place


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


def assign_grouped_folds(
    labels: Mapping[str, int], groups: Mapping[str, str], folds: int, seed: int
) -> dict[str, int]:
    """Deals whole groups to folds, as evenly by class and in total as groups allow.

    Groups go, the largest first, to the fold that leaves the least sum of squares: of each class's
    shares of the folds, and of all patients'. Compare scikit-learn's StratifiedGroupKFold, which
    places by the spread of class shares alone. A fold is filled before another gets its second
    group, so none stays empty.

    Args:
      labels: patient id to class index.
      groups: patient id to group.
      folds: number of folds, at least 2.
      seed: of the order among groups of one size.

    Returns:
      patient id to fold, 0 <= fold < folds; the patients of a group have one fold.

    Raises:
      ValueError: fewer than two folds, or fewer groups than folds.
    """
    members: dict[str, list[str]] = {}
    for patient in sorted(labels, key=lambda patient: (hash_order(patient, seed), patient)):
        members.setdefault(groups[patient], []).append(patient)
    if folds < 2:
        raise ValueError(f"at least 2 folds are needed, {folds} requested")
    if len(members) < folds:
        raise ValueError(f"{len(members)} groups for {folds} folds: at least as many are needed")
    sizes = Counter(labels.values())
    # Whole numbers, so that equal folds are equal on every machine.
    scale = math.prod(sizes.values()) * len(labels)
    weights = {label: (scale // size) ** 2 for label, size in sizes.items()}
    in_all = (scale // len(labels)) ** 2
    filled = [Counter[int]() for _ in range(folds)]
    assignment: dict[str, int] = {}
    for group in sorted(members.values(), key=len, reverse=True):
        counts = Counter(labels[patient] for patient in group)

        def grown(fold: int, counts: Counter[int] = counts) -> int:
            there = filled[fold]
            by_class = sum(weights[label] * there[label] * n for label, n in counts.items())
            return by_class + in_all * there.total() * counts.total()

        chosen = min(range(folds), key=grown)
        filled[chosen] += counts
        assignment.update(dict.fromkeys(group, chosen))
    return assignment


def assign_shards(patients: Mapping[str, Place], per_shard: int, seed: int) -> dict[str, str]:
    """Patient to shard file name, fold by fold in keyed-hash order.

    Args:
      patients: patient id to where it stands.
      per_shard: patients a shard, at most; shards of a fold are filled evenly.
      seed: of the order.

    Returns:
      patient id to `fold-0-00000-of-00002.tfrecord`, `test-00000-of-00001.tfrecord` or
      `unlabelled-00000-of-00001.tfrecord`.

    Raises:
      ValueError: fewer than one patient a shard.
    """
    if per_shard < 1:
        raise ValueError(f"at least 1 patient a shard is needed, {per_shard} requested")
    names: dict[str, str] = {}
    for place in {place: None for place in patients.values()}:
        members = [patient for patient, value in patients.items() if value == place]
        members.sort(key=lambda patient: (hash_order(patient, seed), patient))
        shards = -(-len(members) // per_shard)
        stem = "unlabelled" if place is None else place if place == TEST else f"fold-{place}"
        for index, patient in enumerate(members):
            shard = index * shards // len(members)
            names[patient] = f"{stem}-{shard:05d}-of-{shards:05d}.tfrecord"
    return names
