"""Tables, checks, covariates and skew of classes, findings and values."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.core.cohort.target import PLAIN, Target
from beam_jobs.core.example import encode_case
from serving.model.answers import Prediction, number_columns
from serving.model.calibration import Calibration
from serving.model.cohort_statistics import cuts_of, of_labels
from serving.model.contract import Contract
from serving.model.temperatures import Interval
from serving.predict.check import problems
from serving.predict.covariates import (
    NOTHING,
    of_records,
    of_table,
    require_table,
    unknown_categories,
)
from serving.predict.outputs import failures_csv, formulas, requested_columns, table, write
from serving.predict.skew import report
from serving.predict.sources import schema_of_record
from serving.predict.submission import compose
from tests.datasets import AGE_AND_SITE, TARGETS, make_cases
from tests.serving.models import schema_of, spec_of, task_contract

CLASSES, FINDINGS, VALUES = (TARGETS[task] for task in ("multiclass", "multilabel", "regression"))
AGE, SITE = AGE_AND_SITE
NAN = float("nan")


@pytest.mark.parametrize("target", [CLASSES, FINDINGS, VALUES])
def test_a_contract_of_any_target_comes_back_from_its_text(target: Target) -> None:
    contract = task_contract(target)
    data = json.loads(contract.dumps())
    assert Contract.from_json(data) == contract
    assert "prevalence" not in data
    assert ("interval" in data) == (target is VALUES)
    assert data["covariates"] == ["site", "age"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior": (0.5,)}, "prior: 1 found, 3 required"),
        ({"prior": (0.5, 0.5, 2.0)}, "prior must be between 0 and 1"),
        ({"covariates": ("weight",)}, "covariates"),
        ({"interval": Interval(level=0.9, half_width=1.0, n=9)}, "of a multiclass none"),
    ],
)
def test_contracts_that_no_such_model_can_have_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        task_contract(CLASSES, **changes)


def test_damaged_contracts_of_other_labels_are_refused_by_field() -> None:
    data = json.loads(task_contract(VALUES).dumps())
    for changes, message in (
        ({"interval": None}, "interval"),
        ({"interval": {**data["interval"], "half_width": "x"}}, "interval.half_width"),
        ({"prior": [NAN]}, "prior"),
        ({"calibration": {**data["calibration"], "temperatures": [1.0, 1.0]}}, "temperatures"),
        ({"covariates": [1]}, "covariates"),
        ({"cohort": {"patients": 4, "mean": "x"}}, "cohort.mean"),
    ):
        with pytest.raises(ContractError, match=message):
            Contract.from_json({**data, **changes})


def test_records_of_another_target_are_let_through_and_of_other_volumes_not() -> None:
    contract = task_contract(CLASSES)
    contract.require(schema_of(spec_of(), target=VALUES), model="m", records="d")
    other = schema_of(spec_of(dtype="uint16"), target=CLASSES, covariates=AGE_AND_SITE)
    with pytest.raises(ContractError, match="dtype"):
        contract.require(other, model="m", records="d")


def predicted(target: Target, *answers: tuple[float, ...]) -> dict[str, Prediction]:
    names = number_columns(target)
    return {
        str(number): Prediction(str(number), dict(zip(names, row, strict=True)), ())
        for number, row in enumerate(answers)
    }


def made(
    path: Path,
    target: Target,
    prior: tuple[float, ...],
    predictions: dict[str, Prediction],
    columns: str | None = None,
) -> list[str]:
    """The lines of a table with a patient more, of whom there is no prediction."""
    submission = compose(
        predictions=[(name, one.answer(target)) for name, one in predictions.items()],
        rejects=[],
        prior=prior,
        expected={"9": "fold-0"},
    )
    given = requested_columns(target, columns, id_column="id", value_column=None)
    write(table(submission, predictions, given), [str(path / "a.csv")])
    return (path / "a.csv").read_text().splitlines()


def test_classes_have_a_column_each_and_the_most_probable_by_name(tmp_path: Path) -> None:
    rows = predicted(CLASSES, (0.25, 0.25, 0.5, 1.0, 2.0, 3.0, 0.0, 0.125, 0.25))
    assert made(tmp_path, CLASSES, (0.5, 0.25, 0.25), rows) == [
        "id,class,probability_2,probability_3,probability_4",
        "0,4,0.25,0.25,0.5",
        "9,2,0.5,0.25,0.25",
    ]
    assert made(tmp_path, CLASSES, (0.5, 0.25, 0.25), rows, "spread,flags,class") == [
        "id,spread_2,spread_3,spread_4,flags,class",
        "0,0,0.125,0.25,,4",
        "9,,,,missing_record,2",
    ]


def test_names_that_a_spreadsheet_would_run_are_told() -> None:
    target = Target(task="multiclass", labels=("grade",), classes=("=A1", "-", "+"))
    rejects = [{"scope": "patient", "subject": "=1", "patient": "=1", "reason": "r", "detail": ""}]
    submission = compose(predictions=[], rejects=rejects, prior=(0.5, 0.25, 0.25))

    def told(columns: str) -> str:
        given = requested_columns(target, columns, id_column="id", value_column=None)
        return formulas(submission, given)

    assert told("class,probability") == "1 ids and 3 names of classes"
    assert told("probability") == "1 ids"


def test_findings_and_values_have_their_columns(tmp_path: Path) -> None:
    rows = predicted(FINDINGS, (0.25, 0.75, 1.0, 2.0, 0.0, 0.125))
    assert made(tmp_path, FINDINGS, (0.5, 0.125), rows) == [
        "id,probability_edema,probability_necrosis",
        "0,0.25,0.75",
        "9,0.5,0.125",
    ]
    rows = predicted(VALUES, (20.5, 18.0, 23.0, 0.5), (-1.0, NAN, NAN, 0.0))
    assert made(tmp_path, VALUES, (12.25,), rows) == [
        "id,value,low,high",
        "0,20.5,18,23",
        "1,-1,,",
        "9,12.25,,",
    ]


def test_what_a_model_does_not_answer_is_refused_in_a_line() -> None:
    for target, columns, value, message in (
        (VALUES, "probability", None, "probability is none of value, low, high, spread, flags"),
        (CLASSES, None, "p", "--value_column is for a binary model; this one answers a multiclass"),
        (PLAIN, "class", None, "class is none of probability, logit, spread, flags"),
    ):
        with pytest.raises(UsageError, match=message):
            requested_columns(target, columns, id_column="id", value_column=value)


def test_an_answer_that_is_not_finite_in_one_class_is_none() -> None:
    submission = compose(predictions=[("1", (0.5, NAN, 0.25))], rejects=[], prior=(0.5, 0.25, 0.25))
    assert submission.rows == (("1", (0.5, 0.25, 0.25)),)
    assert submission.failures[0].detail == "the model answered 0.5, nan, 0.25"


def test_who_lacks_a_covariate_is_predicted_and_listed() -> None:
    submission = compose(
        predictions=[("00001", (0.5,)), ("00002", (0.25,))],
        rejects=[],
        prior=(0.5,),
        requested=["2", "1", "3"],
        unknown={"00001": [], "00002": ["age", "site"]},
    )
    assert submission.predicted == 2
    assert [(f.patient_id, f.reason) for f in submission.lacking] == [("2", "missing_covariate")]
    assert failures_csv(submission).decode().splitlines()[1:] == [
        "3,not_in_input,no such patient in the input",
        '2,missing_covariate,"age, site: not known; predicted without"',
    ]


CHECKED = [
    ("id,class,probability_a,probability_b\n1,a,0.75,0.25\n2,b,0.5,0.5\n", "", ""),
    ("id,probability_a,probability_b\n1,0.75,0.75\n2,0,1\n", "", ""),
    ("id,value\n1,-5\n2,1e3\n", "id,value", ""),
    ("id,value,low,high\n1,5,4,6\n2,5,,\n", "id,value", ""),
    ("id,value,low,high\n1,5,4,6\n2,5,6,7\n", "", "1 values are not inside their interval: 2"),
    ("id,value,weight\n1,5,4\n2,5,6\n", "", "header is id,value,weight, required id,value"),
    ("id,value\n1,5\n2,\n", "", "1 values are not finite numbers: 2, value = empty"),
    (
        "id,class,probability_a,probability_b\n1,a,0.5,0.25\n2,b,0,1\n",
        "",
        "1 rows have prob.*= 0.75",
    ),
    (
        "id,class,probability_a,probability_b\n1,a,0.5,0.5\n2,c,0,1\n",
        "",
        "1 classes have no .*2 = c",
    ),
    ("id,probability_a,probability_b\n1,0.5,1.5\n2,0,1\n", "", "1, probability_b = 1.5"),
    ("id,probability_b,probability_a\n1,0,1\n2,0,1\n", "id,probability_a,probability_b", ""),
    ("probability_a,probability_b,id\n0,1,1\n0,1,2\n", "", "header is probability_a"),
    ("id,probability_a\n1,0\n2,0\n", "id,probability_a,probability_b", "no column probability_b"),
    ("id,value\n1,0\n2,0\n", "id,MGMT_value", "no column MGMT_value"),
    ("id,MGMT_value\n1,0\n2,0\n", "id,value", "no column value"),
]


@pytest.mark.parametrize(("text", "header", "message"), CHECKED)
def test_a_submission_is_checked_by_what_its_columns_say(
    text: str, header: str, message: str
) -> None:
    names = {"id_column": "id", "value_column": "MGMT_value"}
    found = problems(text, ["1", "2"], header=header.split(","), **names)
    assert len(found) == bool(message), found
    assert not message or re.search(message, found[0]), found


def test_covariates_are_matched_by_name_and_categories_too() -> None:
    """The records know other sites in another order, and more covariates."""
    contract = task_contract(CLASSES)
    theirs = (Covariate(name="sex", categories=("f", "m")),
              Covariate(name="site", categories=("C", "B", "A")), AGE)  # fmt: skip
    schema = schema_of(spec_of(), target=VALUES, covariates=theirs)
    taken = of_records(contract, schema, model="m", records="dataset d")
    case = make_cases(schema, patients=1)[0]
    for given, expected in (
        ((0.0, 1.0, 40.0), (1.0, 40.0)),
        ((1.0, 2.0, NAN), (0.0, NAN)),
        ((1.0, 0.0, 40.0), (NAN, 40.0)),  # C is no site of the model's
        ((1.0, NAN, 40.0), (NAN, 40.0)),
    ):
        found = taken.of(dataclasses.replace(case, covariates=given)).covariates
        assert [*map(str, found)] == [*map(str, expected)]
    assert unknown_categories(contract, schema) == [
        "site C: the model does not know it, so it is not known of them"
    ]


def test_records_that_cannot_tell_what_the_model_takes_are_refused() -> None:
    contract = task_contract(CLASSES)
    schema = schema_of(spec_of(), covariates=(SITE,))
    with pytest.raises(ContractError, match=r"takes the covariate age .* dataset d does not hold"):
        of_records(contract, schema, model="m", records="dataset d")
    numbers = (AGE, Covariate(name="site"))
    schema = schema_of(spec_of(), covariates=numbers)
    with pytest.raises(ContractError, match="site: a category in model m, a number in dataset d"):
        of_records(contract, schema, model="m", records="dataset d")
    none = task_contract(CLASSES, covariates=())
    assert of_records(none, schema_of(spec_of()), model="m", records="d").places == ()
    case = make_cases(schema, patients=1)[0]
    assert NOTHING.of(case).covariates == ()


def test_a_table_gives_covariates_under_any_spelling_of_an_id() -> None:
    contract = task_contract(CLASSES)
    text = "patient_id,age,site\n5,40.5,B\n00007,,Z\n"
    case = make_cases(schema_of(spec_of()), patients=8)
    taken, lines = of_table(
        contract, text, source="c.csv", id_column="BraTS21ID", id_policy=IdPolicy()
    )
    assert taken.of(case[5]).covariates == (1.0, 40.5)
    for number in (7, 3):  # neither known, and not listed
        assert all(math.isnan(value) for value in taken.of(case[number]).covariates)
    assert lines == ["site Z of 1 patient: the model does not know it, so it is not known of them"]
    assert taken.unlisted(["3", "00005"], source="c.csv") == []
    (line,) = taken.unlisted(["3"], source="c.csv")
    assert line.startswith("c.csv lists none of these patients")
    policy = IdPolicy(key=b"0123456789abcdef")
    hashed, _ = of_table(contract, text, source="c.csv", id_column="id", id_policy=policy)
    named = dataclasses.replace(case[5], patient_id=policy.apply("00005"))
    assert hashed.of(named).covariates == (1.0, 40.5)
    with pytest.raises(UsageError, match="site"):
        of_table(contract, "patient_id,age\n5,1\n", source="c.csv", id_column="id",
                 id_policy=IdPolicy())  # fmt: skip
    with pytest.raises(UsageError, match=r"takes site, age of each patient, .* --covariates CSV"):
        require_table(contract, model="m")


def test_a_record_says_of_which_version_it_is() -> None:
    contract = task_contract(CLASSES)
    plain = schema_of(spec_of())
    record = encode_case(make_cases(plain, patients=1)[0], plain)
    assert schema_of_record(record, contract) == plain
    rich = encode_case(make_cases(contract.schema, patients=1)[0], contract.schema)
    assert schema_of_record(rich, contract) == contract.schema
    binary = {"calibration": Calibration(), "prior": (0.5,)}
    alone = task_contract(PLAIN, schema=plain, covariates=(), **binary)
    with pytest.raises(ContractError, match=r"version 2 is told by its dataset's manifest\.json"):
        schema_of_record(rich, alone)


@pytest.mark.parametrize(
    ("target", "ours", "theirs", "words"),
    [
        (CLASSES, [0, 1, 2] * 60, [2] * 90, "labels grade: 4 100% (training 33%)"),
        (FINDINGS, [(1, 0), (0, 0)] * 60, [(1, 0)] * 90, "labels edema: 100% (training 50%)"),
        (
            VALUES,
            [float(n) for n in range(120)],
            [float(n) for n in range(80, 120)] * 3,
            "labels volume: 100% above 59.5 (training 50%)",
        ),
    ],
)
def test_a_mix_of_labels_that_differs_stands_out(
    target: Target, ours: list[Any], theirs: list[Any], words: str
) -> None:
    training = of_labels(target, ours)
    found = of_labels(target, theirs, cuts=cuts_of(target, training))
    text, lines = report(training, found, (), target)
    assert f"  {words}" in lines
    data = json.loads(text)
    assert data["drifted"] == [f"labels {target.labels[0]}"]
    alike, lines = report(training, training, (), target)
    assert json.loads(alike)["drifted"] == []
    unlabelled = json.loads(report(training, of_labels(target, []), (), target)[0])
    assert unlabelled["not_compared"] == [f"labels {name}" for name in target.labels]


def test_labels_of_0_and_1_are_not_counted() -> None:
    assert of_labels(PLAIN, [0, 1, 1]).counts == {}
