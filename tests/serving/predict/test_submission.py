"""The submission table: ids, order, spelling, the prevalence for those without a prediction."""

from typing import Any

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from serving.predict.outputs import failures_csv
from serving.predict.submission import (
    Failure,
    compose,
    id_order,
    match_ids,
    read_ids,
)


def reject(
    patient: str, reason: str, *, scope: str = "patient", subject: str = ""
) -> dict[str, Any]:
    return {
        "scope": scope,
        "subject": subject or patient,
        "patient": patient,
        "modality": "",
        "reason": reason,
        "detail": f"about {subject or patient}",
    }


def test_ids_of_digits_sort_by_number_and_others_behind_by_text() -> None:
    assert sorted(["b", "10", "00009", "a1", "2"], key=id_order) == ["2", "00009", "10", "a1", "b"]


def test_ids_are_read_in_their_order_and_spelling() -> None:
    text = "\ufeffMGMT_value,BraTS21ID\r\n0.5,00010\r\n\r\n0.5,2\r\n"
    assert read_ids(text, "BraTS21ID", source="sample.csv") == ["00010", "2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column BraTS21ID; its header is empty"),
        ("id,value\n1,0.5\n", "no column BraTS21ID; its header is id, value"),
        ("BraTS21ID,MGMT_value\n", "has no ids"),
        ("BraTS21ID,MGMT_value\n1,0.5\n1,0.5\n", "ids twice: 1"),
        ("BraTS21ID,MGMT_value\n,0.5\n", "an empty id"),
        ("BraTS21ID,MGMT_value\n1\n", "line 2: 1 fields"),
    ],
)
def test_a_sample_that_cannot_be_answered_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_ids(text, "BraTS21ID", source="sample.csv")


def test_leading_zeros_do_not_tell_ids_apart() -> None:
    assert match_ids(["5", "00007", "x"], ["00005", "7", "y"]) == {"5": "00005", "00007": "7"}


def test_the_same_spelling_goes_before_leading_zeros() -> None:
    assert match_ids(["5", "005"], ["005", "5"]) == {"5": "5", "005": "005"}


def test_an_id_that_may_mean_two_patients_is_refused() -> None:
    with pytest.raises(ContractError, match="id 5 is ambiguous: it may mean 00005, 005"):
        match_ids(["5"], ["005", "00005"])


def test_two_ids_that_mean_one_patient_are_refused() -> None:
    with pytest.raises(ContractError, match="ids 5, 05 all mean patient 00005"):
        match_ids(["5", "05"], ["00005"])


def test_every_patient_seen_gets_one_row_and_rejected_ones_the_prevalence() -> None:
    submission = compose(
        predictions=[("10", (0.25,)), ("9", (0.75,))],
        rejects=[reject("3", "blank_series"), reject("9", "unused", scope="series")],
        prior=(0.5,),
    )
    assert submission.rows == (("3", (0.5,)), ("9", (0.75,)), ("10", (0.25,)))
    assert submission.failures == (
        Failure(patient_id="3", reason="blank_series", detail="about 3"),
    )
    assert submission.predicted == 2


def test_a_patients_own_verdict_goes_before_that_of_its_series() -> None:
    rejects = [
        reject("3", "uneven_gap", scope="series", subject="a"),
        reject("3", "missing_modality", scope="patient", subject="b"),
    ]
    submission = compose(predictions=[("1", (0.5,))], rejects=rejects, prior=(0.5,))
    assert [f.reason for f in submission.failures] == ["missing_modality"]


def test_requested_ids_are_answered_in_their_order_and_spelling_and_no_others() -> None:
    submission = compose(
        predictions=[("00001", (0.1,)), ("00002", (0.2,)), ("00003", (0.3,))],
        rejects=[reject("00004", "blank_series")],
        prior=(0.5,),
        requested=["4", "3", "00001", "77"],
    )
    assert submission.rows == (("4", (0.5,)), ("3", (0.3,)), ("00001", (0.1,)), ("77", (0.5,)))
    assert [(f.patient_id, f.reason) for f in submission.failures] == [
        ("4", "blank_series"),
        ("77", "not_in_input"),
    ]


def test_patients_of_a_damaged_shard_are_named_by_the_manifest() -> None:
    submission = compose(
        predictions=[("1", (0.1,))],
        rejects=[reject("", "corrupt_record", scope="record", subject="a.tfrecord")],
        prior=(0.5,),
        expected={"1": "a.tfrecord", "2": "a.tfrecord", "3": "b.tfrecord"},
    )
    assert [(f.patient_id, f.reason) for f in submission.failures] == [
        ("2", "corrupt_record"),
        ("3", "missing_record"),
    ]


def test_without_a_manifest_a_damaged_record_is_still_reported() -> None:
    submission = compose(
        predictions=[("1", (0.1,))],
        rejects=[reject("", "corrupt_record", scope="record", subject="a.tfrecord")],
        prior=(0.5,),
    )
    assert submission.rows == (("1", (0.1,)),)
    assert [(f.patient_id, f.reason) for f in submission.failures] == [("", "corrupt_record")]


def test_an_answer_that_is_not_finite_is_a_failure() -> None:
    submission = compose(
        predictions=[("1", (float("nan"),)), ("2", (0.5,))], rejects=[], prior=(0.25,)
    )
    assert submission.rows == (("1", (0.25,)), ("2", (0.5,)))
    assert submission.failures[0].reason == "not_finite"


def test_a_patient_with_two_predictions_is_refused() -> None:
    with pytest.raises(ContractError, match="more than one record: 1"):
        compose(predictions=[("1", (0.1,)), ("1", (0.1,))], rejects=[], prior=(0.5,))


def test_flags_tell_why_there_is_no_answer_and_what_the_answer_lacks() -> None:
    submission = compose(
        predictions=[("1", (0.1,)), ("2", (0.2,))],
        rejects=[
            reject("2", "truncated_pixels", scope="file"),
            reject("2", "blank_series", scope="series"),
            reject("3", "no_usable_series"),
        ],
        prior=(0.5,),
        requested=["3", "2", "1", "4"],
    )
    assert submission.patients == ("", "2", "1", "")
    assert submission.flags == (
        ("no_usable_series",),
        ("blank_series", "truncated_pixels"),
        (),
        ("not_in_input",),
    )


def test_failures_are_written_as_csv_whatever_their_text_holds() -> None:
    submission = compose(
        predictions=[("1", (0.5,))],
        rejects=[{**reject("2", "odd"), "detail": 'a "quoted", split'}],
        prior=(0.5,),
    )
    assert failures_csv(submission) == (b'patient_id,reason,detail\n2,odd,"a ""quoted"", split"\n')
