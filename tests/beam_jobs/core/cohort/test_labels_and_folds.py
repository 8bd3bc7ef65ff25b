"""Ids, labels, folds and shards: grouped, stratified, seeded, independent of order."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_jobs.common.cli import UsageError
from beam_jobs.convert.planning import Planner, assign_patients
from beam_jobs.core.cohort.folds import assign_folds, assign_shards, patients_a_shard
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.core.cohort.labels import read_labels
from beam_jobs.core.reasons import SENTENCES, Reason


def labels_of(text: str):
    return read_labels(text, name="l.csv", id_column="id", label_column="y")


NOTHING = (Reason.NO_USABLE_SERIES, "nothing")
PLAIN = Planner(
    labels=None, id_policy=IdPolicy(), folds=3, seed=0, patients_per_shard=2, record_bytes=1
)


@given(
    st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 1), min_size=1, max_size=80),
    st.integers(2, 7),
    st.integers(0, 3),
)
def test_folds_are_stratified_and_independent_of_order(labels, folds, seed):
    assignment = assign_folds(labels, folds, seed)
    backwards = assign_folds(dict(reversed(list(labels.items()))), folds, seed)
    assert assignment == backwards
    assert set(assignment) == set(labels)
    for group in (labels, *({p for p in labels if labels[p] == y} for y in (0, 1))):
        sizes = Counter(assignment[patient] for patient in group)
        counts = [sizes[fold] for fold in range(folds)]
        assert max(counts) - min(counts) <= 1


def test_seed_changes_folds():
    labels = {str(n): n % 2 for n in range(40)}
    assert assign_folds(labels, 5, 0) != assign_folds(labels, 5, 1)


def test_shards_hold_at_most_what_was_asked_and_one_fold_each():
    patients = {str(n): (None if n > 20 else n % 3) for n in range(30)}
    names = assign_shards(patients, 4, seed=0)
    assert max(Counter(names.values()).values()) <= 4
    for name in set(names.values()):
        assert len({patients[p] for p in names if names[p] == name}) == 1


def test_labels_spelling_is_found_across_leading_zeros():
    labels = labels_of("id,y\n5,1\n00012,0\nP-03,1\n")
    assert labels.spelling_of("00005") == "5"
    assert labels.spelling_of("12") == "00012"
    assert labels.spelling_of("P-03") == "P-03"
    assert labels.spelling_of("P-3") is None


def test_ambiguous_spelling_is_an_error_unless_one_is_exact():
    labels = labels_of("id,y\n5,1\n005,0\n")
    assert labels.spelling_of("005") == "005"
    with pytest.raises(UsageError, match="ambiguous"):
        labels.spelling_of("00005")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,z\n5,1\n", "no column y"),
        ("id,y\n5,1\n5,0\n", "line 3: the patient of line 2 stands twice"),
        ("id,y\n,1\n", "line 2: the patient id is empty"),
        ("id,y\n5,1,0\n", "line 2: 3 fields, the header has 2"),
        ("id,y\n5,2\n", "all labels are .2.: nothing can be learnt of one class"),
        ("id,y\n5,\n", "no labelled patient"),
        ("id;y\n5;1\n", "separated by commas, not .;."),
        ("", "its header is empty"),
    ],
)
def test_bad_labels_are_one_clear_line(text, message):
    with pytest.raises(UsageError, match=message):
        labels_of(text)


def test_unknown_label_is_no_label():
    assert labels_of("id,y\n5,1\n6,\n").by_spelling == {"5": 1}


def test_hmac_gives_one_id_for_every_spelling_and_hides_it():
    policy = IdPolicy(key=b"0123456789abcdef")
    assert policy.apply("00005") == policy.apply("5")
    assert policy.apply("5") != IdPolicy(key=b"another-key-16by").apply("5")
    assert "5" not in {policy.apply("5")}
    assert len(policy.apply("5")) == 32


def test_two_directories_of_one_id_are_both_refused():
    found = [("dir:x/train/00005", None), ("dir:x/test/5", None), ("dir:x/train/7", None)]
    assignments = assign_patients(found, PLAIN)
    assert set(assignments.by_key) == {"dir:x/train/7"}
    reasons = {refusal and refusal[0] for refusal in assignments.refused.values()}
    assert reasons == {Reason.AMBIGUOUS_PATIENT}


def test_labels_and_patients_that_do_not_meet_are_reported():
    planner = Planner(
        labels=labels_of("id,y\n5,1\n6,0\n"),
        id_policy=IdPolicy(), folds=2, seed=0, patients_per_shard=9, record_bytes=1,
    )  # fmt: skip
    assignments = assign_patients(
        [("dir:a/00005", None), ("id:00009", None), ("dir:a/3", NOTHING)], planner
    )
    assert assignments.by_key["dir:a/00005"].patient_id == "5"
    assert assignments.by_key["dir:a/00005"].label == 1
    assert assignments.by_key["id:00009"].label is None
    assert assignments.by_key["id:00009"].fold is None
    assert assignments.labels_without_patient == ("6",)
    assert assignments.patients_without_label == ("00009",)
    refusal = assignments.refused["dir:a/3"]
    assert refusal is not None
    assert refusal[0] is Reason.NO_USABLE_SERIES


def test_every_reason_has_its_sentence():
    assert set(SENTENCES) == set(Reason)


@pytest.mark.parametrize(
    ("patients", "megabytes", "expected"), [(8, 2, 1), (100, 2, 3), (585, 2, 15), (10_000, 2, 64)]
)
def test_shards_are_about_forty_until_they_reach_their_size(patients, megabytes, expected):
    assert patients_a_shard(patients, megabytes << 20) == expected


def test_stray_files_of_a_patient_found_elsewhere_refuse_nobody():
    assignments = assign_patients([("dir:a/00005", None), ("id:5", NOTHING)], PLAIN)
    assert set(assignments.by_key) == {"dir:a/00005"}
    assert assignments.refused == {"id:5": None}


def test_labels_of_nobody_are_an_error_that_shows_both_sides():
    planner = dataclasses.replace(PLAIN, labels=labels_of("id,y\n5.0,1\n"))
    with pytest.raises(UsageError, match=r"none of the labels .*'5\.0', the input '00005'"):
        assign_patients([("dir:a/00005", None)], planner)
