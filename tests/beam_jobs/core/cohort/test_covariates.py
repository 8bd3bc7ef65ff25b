"""What else is known of patients: read, told apart, and refused where nothing can be learnt."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.convert.planning import Planner, assign_patients
from beam_jobs.core.cohort.covariates import Covariate, GivenCovariates, read_covariates
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.core.cohort.labels import read_labels

CLINIC = "id,age,sex,site\n1,50.5,F,2\n02,,M,1\n3,70,NA,10\n"


def known_of(columns: str, text: str = CLINIC, **more: Any) -> GivenCovariates:
    return read_covariates(
        text, name="c.csv", id_columns=("id", "patient_id"), columns=[columns], **more
    )


def test_numbers_and_categories_are_told_apart_and_gaps_are_unknown() -> None:
    found = known_of("age,sex,site")
    assert found.covariates == (
        Covariate(name="age"),
        Covariate(name="sex", categories=("F", "M")),
        Covariate(name="site"),
    )
    assert found.by_spelling["1"] == (50.5, 0.0, 2.0)
    assert [math.isnan(one) for one in found.by_spelling["02"]] == [True, False, False]
    assert [math.isnan(one) for one in found.by_spelling["3"]] == [False, True, False]


def test_numbers_that_are_rounded_are_told() -> None:
    found = known_of("age,on", "id,age,on\n1,50.1,20191123\n2,60.7,20231123\n")
    assert dict(found.rounded) == {"on": "20191123 is stored as 20191124, a float32"}


def test_a_number_is_a_category_where_a_user_says_so() -> None:
    found = known_of("site:category")
    assert found.covariates == (Covariate(name="site", categories=("1", "10", "2")),)
    assert [row[0] for row in found.by_spelling.values()] == [2.0, 0.0, 1.0]


def test_known_covariates_come_in_their_order_and_strange_categories_are_told() -> None:
    known = (Covariate(name="site", categories=("1", "2")), Covariate(name="age"))
    found = read_covariates(CLINIC, name="c.csv", id_columns=("id",), covariates=known)
    assert found.covariates == known
    assert found.by_spelling["1"] == (1.0, 50.5)
    assert math.isnan(found.by_spelling["3"][0])
    assert found.strange == {"site": {"10": 1}}
    assert all(map(math.isnan, found.unknown))


@pytest.mark.parametrize(
    ("columns", "text", "message"),
    [
        ("weight", CLINIC, "c.csv: no column weight; its header is id, age, sex, site"),
        ("age:numeric", CLINIC, "column age:numeric: a kind is number or category"),
        ("age,age:number", CLINIC, "column age is named twice"),
        ("id", CLINIC, "column id is the one of ids"),
        (",", CLINIC, "1 to 1000 columns required, 0 named"),
        ("sex:number", CLINIC, "line 2: sex is 'F', no finite number; empty is unknown"),
        ("age", CLINIC.replace("70", "inf"), "line 4: age is 'inf', no finite number"),
        (
            "age",
            CLINIC.replace("70", "old"),
            r"column age: numbers \('50.5'\) and texts \('old' in",
        ),
        ("age", CLINIC.replace("70", '"70,5"'), "line 4: age is '70,5': decimals need a point"),
        ("on", "id,on\n1,20231101\n2,20231102\n3,20231103\n", "column on: a float32 keeps seven"),
        ("sex", CLINIC.replace("M", "F"), "column sex: 'F' of all patients: leave it out"),
        ("sex", CLINIC.replace("M", "f"), "column sex: categories 'F' and 'f' differ in case or"),
        ("x", "id,x\n1,\n2,\n", "column x: known of no patient: leave it out"),
        ("age", "id,age\n1,5\n01,6\n", "line 3: the patient of line 2 stands twice"),
        ("age", "id,age\n", "covariates c.csv hold no patient"),
        ("age", CLINIC.replace(",", ";"), "fields must be separated by commas, not ';'"),
        (
            "k",
            "id,k\n" + "".join(f"{n},k{n}\n" for n in range(60)),
            "column k: 60 categories, of at most 50 can be learnt: leave it out",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_one_line_that_says_what_to_do(
    columns: str, text: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        known_of(columns, text)


def test_what_is_only_predicted_may_be_the_same_of_all() -> None:
    text = "id,sex,age\n1,F,\n2,F,\n"
    found = known_of("sex,age", text, learnt=False)
    assert found.covariates == (Covariate(name="sex", categories=("F",)), Covariate(name="age"))


PLANNER = Planner(
    labels=read_labels("id,y\n1,0\n2,1\n3,1\n", name="l", id_column="id", label_column="y"),
    id_policy=IdPolicy(key=b"0123456789abcdef"),
    folds=2,
    seed=0,
    patients_per_shard=9,
    record_bytes=1,
    covariates=known_of("age,sex"),
)
FOUND = [(f"dir:a/{number:05d}", None) for number in (1, 2, 3, 4)]


def test_patients_get_them_under_any_spelling_of_the_id() -> None:
    found = assign_patients(FOUND, PLANNER).by_key
    assert found["dir:a/00001"].covariates == (50.5, 0.0)
    assert found["dir:a/00002"].covariates[1] == 1.0
    assert all(map(math.isnan, found["dir:a/00004"].covariates))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,age\n8,1\n9,2\n", "^none of covariates c.csv is of a patient found$"),
        ("id,age\n1,1\n9,2\n", "column age is the same in the patients found: leave it out"),
        ("id,age\n1,\n8,1\n9,2\n", "column age is known of none of the patients found"),
    ],
)
def test_covariates_of_others_are_one_line(text: str, message: str) -> None:
    planner = dataclasses.replace(PLANNER, covariates=known_of("age", text))
    with pytest.raises(UsageError, match=message):
        assign_patients(FOUND, planner)


def test_a_shards_digest_is_what_it_was_before_there_were_covariates() -> None:
    first, *_ = assign_patients(
        FOUND, dataclasses.replace(PLANNER, covariates=None)
    ).by_key.values()
    assert first.said == (first.patient_id, first.label, first.fold, first.shard)
    told, *_ = assign_patients(FOUND, PLANNER).by_key.values()
    assert told.said == (*first.said, ["50.5", "0.0"])
    assert set(PLANNER.identity) == {"covariates"}
    assert dataclasses.replace(PLANNER, covariates=None).identity == {}
