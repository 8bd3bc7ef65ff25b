"""How labels are spread: counts for people, strata to deal by, and what a fold would lack."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from beam_jobs.common.printable import counted
from beam_jobs.core.cohort.target import Label, Target

BINS_MOST = 10  # quantiles that values are dealt by
VALUES_A_FOLD = 3  # a rank correlation of fewer patients says nothing


def quartiles(labels: Iterable[Label | None]) -> tuple[float, ...]:
    """Least, quartiles and greatest of the values, each one that is there; repeated ones once."""
    values = sorted(float(one) for one in labels if isinstance(one, int | float))
    if not values:
        return ()
    places = np.quantile(values, (0, 0.25, 0.5, 0.75, 1), method="inverted_cdf")
    return tuple(dict.fromkeys(places.tolist()))


def counts_of(
    target: Target, labels: Collection[Label | None], edges: Sequence[float] = ()
) -> dict[str, int]:
    """Patients of each class, with each finding, or with values between `edges`; then those of
    whom nothing is known, "none". What no patient has is left out.

    Args:
      target: what the labels say.
      labels: the patients'.
      edges: `quartiles` of all, of values.
    """
    found: Counter[str] = Counter()
    for label in labels:
        if isinstance(label, tuple):
            found.update(name for name, one in zip(target.labels, label, strict=True) if one)
        elif label is not None and target.task == "regression":
            found[_between(float(label), edges, target.unit)] += 1
        else:
            found[target.text(label)] += 1
    if target.task == "regression":
        order = [_between(edge, edges, target.unit) for edge in edges]
    else:
        order = list(target.names)
    unknown = target.text(None)
    return {name: found[name] for name in dict.fromkeys([*order, unknown]) if found[name]}


def _between(value: float, edges: Sequence[float], unit: str) -> str:
    """The part that a value lies in: "10 to 12.5 ml", its upper edge among it."""
    if len(edges) < 2:
        return f"{value:.9g} {unit}".rstrip()
    above = min(max(bisect.bisect_left(edges, value), 1), len(edges) - 1)
    return f"{edges[above - 1]:.9g} to {edges[above]:.9g} {unit}".rstrip()


def strata_of(
    target: Target, labels: Mapping[str, Label], folds: int
) -> Mapping[str, int | tuple[int | None, ...]]:
    """What patients are dealt to folds by: their class, their findings, or a quantile of values.

    Args:
      target: what the labels say.
      labels: patient id to label.
      folds: number of folds; there are no more quantiles than leave one of each for every fold.
    """
    if target.task != "regression":
        return {name: label for name, label in labels.items() if not isinstance(label, float)}
    values = np.array([float(label) for label in labels.values() if not isinstance(label, tuple)])
    bins = max(1, min(BINS_MOST, len(values) // folds))
    inner = np.quantile(values, np.arange(1, bins) / bins) if len(values) else np.array([])
    places = np.searchsorted(inner, values, side="left")
    return dict(zip(labels, places.tolist(), strict=True))


def too_few(target: Target, labels: Collection[Label], folds: int) -> str:
    """Why so many folds cannot be made of these patients, and what to do; "" where they can.

    Of labels 0 and 1 nothing is said: such a dataset converts, and the trainer refuses it.
    """
    if target.is_plain:
        return ""
    if target.task == "regression":
        different = len(set(labels))
        if different < folds:
            return (
                f"{different} different values for {folds} folds: --task "
                f"{'binary' if different == 2 else 'multiclass'} takes them as classes"
            )
        least, of = len(labels) // VALUES_A_FOLD, counted(len(labels), "patient")
        what = f"{of} for {folds} folds, at least {VALUES_A_FOLD} in each are needed"
    else:
        least, what = _smallest(target, labels)
        what = f"{what}, fewer than the {folds} folds"
        if least < folds and len(target.classes) > max(2, len(labels) / 2):
            return (
                f"{len(target.classes)} classes in {counted(len(labels), 'patient')}: a class is "
                "of several patients, and values are numbers without a unit"
            )
    if least >= folds:
        return ""
    instead = f"--folds {least}, or " if least > 1 else ""
    aside = {
        "multilabel": "leave its column out",
        "regression": "more patients",
    }.get(target.task, "bring classes together, or leave its rows out")
    return f"{what}: {instead}{aside}"


def _smallest(target: Target, labels: Collection[Label]) -> tuple[int, str]:
    """Size and words of the smallest class; of findings, of those with it or those without."""
    if target.task != "multilabel":
        sizes = Counter(labels)
        least, index = min((sizes[index], index) for index in range(len(target.names)))
        return least, f"class {target.names[index]} has {counted(least, 'patient')}"
    found: list[tuple[int, str]] = []
    for place, name in enumerate(target.labels):
        for value, word in ((1, "with"), (0, "without")):
            size = sum(isinstance(label, tuple) and label[place] == value for label in labels)
            found.append((size, f"{counted(size, 'patient')} {word} {name}"))
    return min(found)


def lacking(target: Target, folds: Sequence[Collection[Label]]) -> str:
    """What a fold has no patient of, so that it cannot be scored: "fold 1 has no class 3"; or "".

    Args:
      target: what the labels say.
      folds: labels of the patients of each fold.
    """
    for fold, labels in enumerate(folds):
        if target.task == "regression":
            if len(labels) < VALUES_A_FOLD or len(set(labels)) < 2:
                return f"fold {fold} has no {VALUES_A_FOLD} patients of different values"
            continue
        least, _ = _smallest(target, labels)
        if least:
            continue
        if target.task != "multilabel":
            index = next(n for n in range(len(target.names)) if n not in labels)
            what = "label" if target.is_plain else "class"
            return f"fold {fold} has no {what} {target.names[index]}"
        return f"fold {fold} has {_smallest(target, labels)[1].replace('0 patients', 'no patient')}"
    return ""
