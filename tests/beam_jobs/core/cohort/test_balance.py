"""Folds and counts of classes, findings and values."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs.common.cli import UsageError
from beam_jobs.convert.planning import Planner, assign_patients
from beam_jobs.core.cohort.balance import counts_of, lacking, quartiles, strata_of, too_few
from beam_jobs.core.cohort.folds import assign_folds, assign_grouped_folds
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.core.cohort.labels import Labels, read_folds
from beam_jobs.core.cohort.target import Label, Target

GRADES = Target(task="multiclass", labels=("grade",), classes=("2", "3", "4"))
FINDINGS = Target(task="multilabel", labels=("edema", "necrosis"))
VOLUME = Target(task="regression", labels=("volume",), unit="ml")


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(*[st.sampled_from([0, 1, None])] * 3).filter(any), min_size=2, max_size=80),
    st.integers(2, 6),
)
def test_sets_of_findings_are_dealt_evenly_and_no_fold_stays_behind(
    rows: list[tuple[int | None, ...]], folds: int
) -> None:
    labels = {str(number): row for number, row in enumerate(rows)}
    found = assign_folds(labels, folds, seed=1)
    assert found == assign_folds(dict(reversed(labels.items())), folds, seed=1)
    assert set(found) == set(labels)
    for one in set(rows):
        sizes = Counter(fold for name, fold in found.items() if labels[name] == one)
        counts = [sizes[fold] for fold in range(folds)]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("grouped", [False, True])
def test_each_finding_is_spread_over_the_folds(grouped: bool) -> None:
    rng = np.random.default_rng(3)
    labels = {
        str(number): tuple(map(int, rng.random(5) < (0.1, 0.2, 0.3, 0.5, 0.8)))
        for number in range(120)
    }
    groups = {name: name for name in labels}
    found = assign_grouped_folds(labels, groups, 5, 0) if grouped else assign_folds(labels, 5, 0)
    assert max(Counter(found.values()).values()) <= 26
    for place in range(5):
        positives = Counter(fold for name, fold in found.items() if labels[name][place])
        assert max(positives.values()) - min(positives.values()) <= 2


def test_single_sets_leave_no_fold_without_a_finding() -> None:
    """Dealt one after the other, the second finding would stand in one fold alone."""
    labels = {"a": (0, 0), "b": (0, 1), "c": (1, 0), "d": (1, 1)}
    found = assign_folds(labels, 2, seed=0)
    folds = [[labels[name] for name in labels if found[name] == fold] for fold in (0, 1)]
    assert lacking(FINDINGS, folds) == ""


@pytest.mark.parametrize("size", [6, 23, 400])
def test_values_are_dealt_by_quantile(size: int) -> None:
    values = np.random.default_rng(size).lognormal(size=size)
    labels: dict[str, Label] = {str(number): float(one) for number, one in enumerate(values)}
    strata = strata_of(VOLUME, labels, 2)
    assert len(set(strata.values())) == min(10, size // 2)
    found = assign_folds(strata, 2, seed=0)
    ranks = values.argsort().argsort()
    means = [ranks[[found[str(n)] == fold for n in range(size)]].mean() for fold in (0, 1)]
    assert abs(means[0] - means[1]) <= max(1, size * 0.1)


@pytest.mark.parametrize(
    ("target", "labels", "folds", "message"),
    [
        (GRADES, [0, 0, 0, 1, 1, 1, 2, 2], 2, ""),
        (GRADES, [0, 0, 0, 1, 1, 1, 2, 2], 3, "class 4 has 2 patients, fewer than the 3 folds: --"),
        (GRADES, [0, 0, 0, 1, 1, 1, 2], 2, "class 4 has 1 patient, fewer than the 2 folds: bring"),
        (GRADES, [0, 1, 2, 2], 2, "3 classes in 4 patients: a class is of several patients, and"),
        (FINDINGS, [(1, 0), (0, 1), (0, 1)], 2, "1 patient with edema, fewer than the 2 folds: l"),
        (FINDINGS, [(1, 1), (0, 1), (0, 0), (1, 1)], 2, "1 patient without necrosis, fewer than"),
        (VOLUME, [1.0, 2.0, 3.0, 4.0, 5.0], 2, "5 patients for 2 folds, at least 3 in each are "),
        (VOLUME, [1.0, 2.0] * 9, 3, "2 different values for 3 folds: --task binary takes them"),
        (Target(), [0, 1], 5, ""),
    ],
)
def test_what_has_too_few_patients_for_its_folds_is_told(
    target: Target, labels: list[Label], folds: int, message: str
) -> None:
    found = too_few(target, labels, folds)
    assert found.startswith(message)
    assert bool(found) == bool(message)


def test_balance_tells_classes_findings_and_quartiles_in_their_order() -> None:
    assert counts_of(GRADES, [2, 0, 2, None]) == {"2": 1, "4": 2, "none": 1}
    assert counts_of(FINDINGS, [(1, 1), (0, 1), (0, None)]) == {"edema": 1, "necrosis": 2}
    values = [1.0, 2.0, 3.0, 4.0, 5.5, 6.0, 7.0, 8.25]
    assert quartiles([*values, None]) == (1.0, 2.0, 4.0, 6.0, 8.25)
    assert counts_of(VOLUME, [*values, None], quartiles(values)) == {
        "1 to 2 ml": 2, "2 to 4 ml": 2, "4 to 6 ml": 2, "6 to 8.25 ml": 2, "none": 1,
    }  # fmt: skip
    assert counts_of(VOLUME, [3.0, 3.0], quartiles([3.0, 3.0])) == {"3 ml": 2}


def test_a_class_called_none_is_not_taken_for_no_label() -> None:
    target = Target(task="multiclass", labels=("stenosis",), classes=("none", "mild", "severe"))
    assert counts_of(target, [0, 0, None]) == {"none": 2, "not known": 1}


def test_given_folds_that_lack_a_class_are_one_line() -> None:
    planner = Planner(
        labels=Labels(by_spelling={str(n): n % 3 for n in range(6)}, target=GRADES),
        id_policy=IdPolicy(),
        folds=2,
        seed=0,
        patients_per_shard=9,
        record_bytes=1,
        given=read_folds(
            "id,fold\n0,0\n1,0\n2,0\n3,1\n4,1\n5,test\n", name="f.csv", id_columns=("id",)
        ),
    )
    with pytest.raises(
        UsageError, match=r"^folds f\.csv: fold 1 has no class 4, and could not be sco"
    ):
        assign_patients([(f"id:{n}", None) for n in range(6)], planner)


def test_a_finding_that_is_not_known_is_not_said_to_be_absent() -> None:
    target = Target(task="multilabel", labels=("edema", "necrosis"))
    assert [target.text(label) for label in ((0, 0), (0, None), (1, None))] == [
        *("none of them", "none known", "edema")
    ]
