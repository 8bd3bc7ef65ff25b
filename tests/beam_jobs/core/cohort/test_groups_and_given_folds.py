"""Folds as a study needs them: whole groups, or as a file gives them; never against the labels."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from beam_jobs.common.cli import UsageError
from beam_jobs.convert.planning import Assignments, Planner, assign_patients
from beam_jobs.core.cohort.folds import assign_folds, assign_grouped_folds
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.core.cohort.labels import Labels, read_folds, read_groups

KEY = IdPolicy(key=b"0123456789abcdef")


def planner_of(
    *, groups: str = "", folds: str = "", count: int = 2, id_policy: IdPolicy = KEY
) -> Planner:
    """Six patients, 1 to 6, labels 1 where odd, with groups or given folds from a CSV's rows."""
    columns = ("id", "patient_id")
    return Planner(
        labels=Labels(by_spelling={str(number): number % 2 for number in range(1, 7)}),
        id_policy=id_policy,
        folds=count,
        seed=0,
        patients_per_shard=2,
        record_bytes=1,
        groups=read_groups(groups, name="g.csv", id_columns=columns, group_column="site")
        if groups
        else None,
        given=read_folds(folds, name="f.csv", id_columns=columns) if folds else None,
    )


def assigned(planner: Planner, patients: str = "1 2 3 4 5 6") -> Assignments:
    return assign_patients([(f"id:{name}", None) for name in patients.split()], planner)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[dict[str, int], dict[str, str], int]:
    folds = draw(st.integers(2, 5))
    size = draw(st.integers(folds, 60))
    labels = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    sites = draw(st.lists(st.integers(0, 20), min_size=size, max_size=size))
    groups = {f"p{n}": f"s{n if n < folds else site}" for n, site in enumerate(sites)}
    return {f"p{n}": label for n, label in enumerate(labels)}, groups, folds


@settings(deadline=None)
@given(cohorts(), st.integers(0, 3))
def test_no_group_is_in_two_folds_and_no_fold_is_empty_whatever_the_order(
    cohort: tuple[dict[str, int], dict[str, str], int], seed: int
) -> None:
    labels, groups, folds = cohort
    found = assign_grouped_folds(labels, groups, folds, seed)
    backwards = dict(reversed(list(labels.items())))
    assert found == assign_grouped_folds(backwards, groups, folds, seed)
    assert set(found) == set(labels)
    assert set(found.values()) == set(range(folds))
    places = defaultdict(set)
    for patient, fold in found.items():
        places[groups[patient]].add(fold)
    assert {len(where) for where in places.values()} == {1}


@settings(deadline=None)
@given(st.integers(10, 90), st.integers(2, 7), st.floats(0.1, 0.9), st.integers(0, 3))
def test_patients_who_stand_alone_are_dealt_as_evenly_as_without_groups(
    size: int, folds: int, share: float, seed: int
) -> None:
    labels = {str(n): int(n < share * size) for n in range(size)}
    grouped = assign_grouped_folds(labels, {name: name for name in labels}, folds, seed)
    plain = assign_folds(labels, folds, seed)
    for label in (0, 1):
        counts = [
            sorted(Counter(fold for name, fold in found.items() if labels[name] == label).values())
            for found in (grouped, plain)
        ]
        assert counts[0] == counts[1]


def spread(labels: NDArray[np.int_], fold_of: NDArray[np.int_], folds: int) -> float:
    """The standard deviation over folds of each class's shares and of all patients', summed."""
    shares = [
        np.bincount(fold_of[wanted], minlength=folds) / wanted.sum()
        for wanted in (labels == 0, labels == 1, labels >= 0)
    ]
    return float(np.std(shares, axis=1).sum())


def test_balance_is_not_behind_scikit_learns() -> None:
    """On average, over cohorts of few large sites and of many small families."""
    rng = np.random.default_rng(5)
    ours, theirs = [], []
    for number in range(40):
        size, folds = int(rng.integers(40, 200)), 5
        labels = (rng.random(size) < rng.choice([0.3, 0.5])).astype(int)
        sites = rng.integers(12 if number % 2 else size // 2, size=size)
        names = [str(n) for n in range(size)]
        found = assign_grouped_folds(
            dict(zip(names, labels.tolist(), strict=True)),
            dict(zip(names, map(str, sites), strict=True)),
            folds,
            number,
        )
        ours.append(spread(labels, np.array([found[name] for name in names]), folds))
        split = StratifiedGroupKFold(folds, shuffle=True, random_state=number)
        fold_of = np.zeros(size, int)
        for fold, (_, held_out) in enumerate(split.split(names, labels, sites)):
            fold_of[held_out] = fold
        theirs.append(spread(labels, fold_of, folds))
    assert np.mean(ours) <= np.mean(theirs)
    assert np.mean(np.array(ours) <= np.array(theirs) + 1e-9) > 0.7


@pytest.mark.parametrize("id_policy", [KEY, IdPolicy()], ids=["hmac", "keep"])
def test_groups_are_found_under_any_spelling_and_an_empty_cell_stands_alone(
    id_policy: IdPolicy,
) -> None:
    csv = "patient_id,site\n001,a\n002,a\n3,b\n4,b\n5,\n6,\n00099,c\n"
    found = assigned(planner_of(groups=csv, count=3, id_policy=id_policy))
    fold = {key: one.fold for key, one in found.by_key.items()}
    assert fold["id:1"] == fold["id:2"]
    assert fold["id:3"] == fold["id:4"]
    assert Counter(fold.values()) == {0: 2, 1: 2, 2: 2}
    assert len(set(found.groups.values())) == 4
    assert found.listed_without_patient == 1


def test_given_folds_are_taken_as_they_are_and_test_patients_stand_in_none() -> None:
    csv = "id,fold\n1,0\n2,0.0\n3,1\n04,1\n5,test\n6,test\n7,test\n8,1\n9,0\n"
    found = assigned(planner_of(folds=csv), "1 2 3 4 5 6 7 8").by_key
    assert [found[f"id:{n}"].fold for n in range(1, 9)] == [0, 0, 1, 1, None, None, None, None]
    assert [found[f"id:{n}"].label for n in range(1, 9)] == [1, 0, 1, 0, 1, 0, None, None]
    stems = [found[f"id:{n}"].shard.split("-000")[0] for n in range(1, 9)]
    assert stems == ["fold-0", "fold-0", "fold-1", "fold-1", *["test"] * 3, "unlabelled"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"groups": "id,site\n1,a\n2,b\n"}, "groups g.csv do not list 4 of 6 labelled patients"),
        (
            {"groups": "id,site\n1,a\n2,a\n3,a\n4,b\n5,b\n6,b\n", "count": 3},
            "groups g.csv: 2 groups for 3 folds",
        ),
        ({"groups": "id,plant\n1,a\n"}, "no column site; its header is id, plant"),
        ({"groups": "name,site\n1,a\n"}, "no column id; its header is name, site"),
        ({"groups": "id,site\n1,a\n1,a\n"}, "line 3: the patient of line 2 stands twice"),
        ({"groups": "id,site\n"}, "groups g.csv hold no patient"),
        ({"folds": "id,fold\n1,0\n2,1\n"}, "folds f.csv do not list 4 of 6 labelled patients"),
        ({"folds": "id,fold\n1,0\n2,x\n"}, "line 3: the fold is 'x', neither 0, 1, ... nor test"),
        ({"folds": "id,fold\n1,0\n2,-1\n"}, "the fold is '-1'"),
        ({"folds": "id,fold\n1,0\n2,test\n"}, "1 folds named, at least 2 required"),
        ({"folds": "id,fold\n1,0\n2,2\n"}, "fold 1 has no patient, fold 2 has"),
        (
            {"folds": "id,fold\n1,0\n2,0\n3,0\n4,0\n5,0\n6,0\n77,1\n"},
            "no labelled patient found is of fold 1",
        ),
    ],
)
def test_what_does_not_fit_is_one_clear_line(given: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        assigned(planner_of(**given))  # type: ignore[arg-type]


def test_missing_patients_are_named_only_where_ids_are_kept() -> None:
    csv = "id,fold\n1,0\n2,1\n"
    with pytest.raises(UsageError) as error:
        assigned(planner_of(folds=csv))
    assert "(" not in str(error.value)
    with pytest.raises(UsageError, match=r"\(3, 4, 5, 6\)"):
        assigned(dataclasses.replace(planner_of(folds=csv), id_policy=IdPolicy()))


@pytest.mark.parametrize("given", [{"groups": "id,site\n"}, {"folds": "id,fold\n"}])
def test_a_patient_under_several_spellings_is_ambiguous(given: dict[str, str]) -> None:
    """Even where one is the input's: else `4` of the test set would be trained on as `00004`."""
    (name, header), *_ = given.items()
    said = f"{name} {name[0]}.csv line 6: the patient of line 5 stands twice"
    with pytest.raises(UsageError, match=said):
        planner_of(**{name: f"{header}1,0\n2,1\n3,0\n4,test\n00004,1\n"})  # type: ignore[arg-type]
