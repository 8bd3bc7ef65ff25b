"""Patient to fold and shard: grouped, stratified, seeded, and independent of input order."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

from beam_jobs.core.manifest import TEST, Place

# What patients are dealt by: a class or a part of the values, or several findings (None: unknown).
Stratum = int | tuple[int | None, ...]


def hash_order(patient_id: str, seed: int) -> str:
    """A key that puts patients in the same arbitrary order on every machine (BLAKE2b, hex)."""
    return hashlib.blake2b(f"{seed}:{patient_id}".encode(), digest_size=16).hexdigest()


def assign_folds(labels: Mapping[str, Stratum], folds: int, seed: int) -> dict[str, int]:
    """Deals patients to folds, class by class, in keyed-hash order.

    Each class is spread as evenly as its size allows, and so is the total: a class is dealt on
    where the one before it stopped. Of several findings see `_assign_findings`.

    Args:
      labels: patient id to class index, or to findings.
      folds: number of folds, at least 2.
      seed: of the order.

    Returns:
      patient id to fold, 0 <= fold < folds.

    Raises:
      ValueError: fewer than two folds.
    """
    if folds < 2:
        raise ValueError(f"at least 2 folds are needed, {folds} requested")
    members: dict[Stratum, list[str]] = defaultdict(list)
    for patient in sorted(labels, key=lambda patient: (hash_order(patient, seed), patient)):
        members[labels[patient]].append(patient)
    if any(isinstance(label, tuple) for label in members):
        return _assign_findings(members, folds)
    assignment: dict[str, int] = {}
    for _, patients in sorted(members.items()):
        for patient in patients:
            assignment[patient] = len(assignment) % folds
    return assignment


def _assign_findings(members: Mapping[Stratum, Sequence[str]], folds: int) -> dict[str, int]:
    """Deals patients of several findings: the rarest set of them first.

    A patient goes to the fold that has fewest of its set, among those to the one that lacks most of
    its findings, each weighed by how rare it is. Compare Sechidis, Tsoumakas and Vlahavas (2011),
    who begin with the rarest label and weigh one at a time.

    Args:
      members: a set of findings to its patients, in the order in which they are dealt.
      folds: number of folds.

    Returns:
      patient id to fold.
    """
    sizes: Counter[Hashable] = Counter()
    for label, patients in members.items():
        sizes.update(dict.fromkeys(_marks(label), len(patients)))
    filled = [Counter[Hashable]() for _ in range(folds)]
    totals = [0] * folds
    assignment: dict[str, int] = {}
    for label, patients in sorted(members.items(), key=lambda item: (len(item[1]), str(item[0]))):
        marks = _marks(label)
        of_set = [0] * folds
        for patient in patients:

            def there(fold: int, marks: Sequence[Hashable] = marks) -> float:
                # Whole numbers' quotients, added in one order: the same on every machine.
                return sum(filled[fold][mark] / sizes[mark] for mark in marks)

            keys = ((of_set[fold], there(fold), totals[fold], fold) for fold in range(folds))
            chosen = min(keys)[-1]
            of_set[chosen] += 1
            totals[chosen] += 1
            filled[chosen].update(marks)
            assignment[patient] = chosen
    return assignment


def _marks(label: Stratum) -> Sequence[Hashable]:
    """What of a patient is to be spread evenly: its class, or each finding that is known of it."""
    if not isinstance(label, tuple):
        return (label,)
    return tuple((place, one) for place, one in enumerate(label) if one is not None)


def assign_grouped_folds(
    labels: Mapping[str, Stratum], groups: Mapping[str, str], folds: int, seed: int
) -> dict[str, int]:
    """Deals whole groups to folds, as evenly by class and in total as groups allow.

    Groups go, the largest first, to the fold that leaves the least sum of squares: of each class's
    shares of the folds, and of all patients'. Compare scikit-learn's StratifiedGroupKFold, which
    places by the spread of class shares alone. A fold is filled before another gets its second
    group, so none stays empty. Of several findings each is spread as a class is.

    Args:
      labels: patient id to class index, or to findings.
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
    sizes = Counter(mark for label in labels.values() for mark in _marks(label))
    # Whole numbers, so that equal folds are equal on every machine.
    scale = math.lcm(len(labels), *sizes.values())
    weights = {label: (scale // size) ** 2 for label, size in sizes.items()}
    in_all = (scale // len(labels)) ** 2
    filled = [Counter[Hashable]() for _ in range(folds)]
    totals = [0] * folds
    assignment: dict[str, int] = {}
    for group in sorted(members.values(), key=len, reverse=True):
        counts = Counter(mark for patient in group for mark in _marks(labels[patient]))

        def grown(fold: int, counts: Counter[Hashable] = counts, patients: int = len(group)) -> int:
            there = filled[fold]
            by_class = sum(weights[mark] * there[mark] * n for mark, n in counts.items())
            return by_class + in_all * totals[fold] * patients

        chosen = min(range(folds), key=grown)
        filled[chosen] += counts
        totals[chosen] += len(group)
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


# A shard is read in one go and written by one worker: large enough for fast reading, small enough
# that many workers have several each.
SHARD_BYTES = 128 << 20
_SHARDS_WANTED = 40


def patients_a_shard(patients: int, record_bytes: int) -> int:
    """How many patients to a shard, from the cohort alone: workers must not change the bytes.

    A large cohort gets shards of about `SHARD_BYTES`, a small one about 40 shards.
    """
    return max(1, min(-(-patients // _SHARDS_WANTED), SHARD_BYTES // max(record_bytes, 1)))
