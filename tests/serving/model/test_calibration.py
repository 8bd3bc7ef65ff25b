"""Calibration: fitted on proven out-of-fold rows alone, and held to other people's arithmetic."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit, logit

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from serving.model.calibration import (
    LEAST_FOR_ISOTONIC,
    Calibration,
    fit,
    fit_isotonic,
    fit_temperature,
)
from serving.model.out_of_fold import OutOfFold, combine, out_of_fold, pooled

HEADER = "patient_id,label,fold,seed,logit,probability\n"
MEMBERS = {(0, 7), (1, 7)}


def table(*rows: str) -> str:
    return HEADER + "".join(f"{row}\n" for row in rows)


def drawn(count: int, sharpness: float, seed: int = 0) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Labels drawn from true logits, and logits that are too sharp by a factor."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0.0, 1.5, count)
    return (rng.uniform(size=count) < expit(true)).astype(np.int64), sharpness * true


def evidence(labels: npt.NDArray[Any], logits: npt.NDArray[Any]) -> OutOfFold:
    return OutOfFold(
        patients=tuple(f"{number:05d}" for number in range(len(labels))),
        labels=labels,
        logits=tuple(np.array([value]) for value in logits),
    )


def log_loss(labels: npt.NDArray[Any], logits: npt.NDArray[Any]) -> float:
    return float(np.mean(np.logaddexp(0, np.where(labels == 1, -logits, logits))))


def test_the_temperature_is_that_of_a_logistic_regression_without_intercept() -> None:
    from sklearn.linear_model import LogisticRegression

    labels, logits = drawn(400, 3.0)
    model = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10).fit(logits[:, None], labels)
    fitted = fit_temperature(labels, logits)
    assert fitted.temperature == pytest.approx(1 / model.coef_[0, 0], rel=1e-4)
    assert fitted.temperature == pytest.approx(3.0, rel=0.25)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_a_temperature_lowers_the_loss_of_patients_it_never_saw(sharpness: float) -> None:
    losses = []
    for seed in range(20):
        labels, logits = drawn(4000, sharpness, seed)
        fitted = fit_temperature(labels[:400], logits[:400])
        held = labels[400:], logits[400:]
        losses.append(log_loss(held[0], fitted.apply(held[1])) - log_loss(*held))
    if sharpness == 1.0:  # nothing to gain; a parameter fitted on n patients costs 1 / 2n nats
        assert np.mean(losses) < 2 / (2 * 400)
    else:
        assert np.mean(losses) < -0.05


def test_order_stays() -> None:
    labels, logits = drawn(1500, 2.0)
    for method in ("temperature", "isotonic", "none"):
        after = fit(evidence(labels, logits), "logits", method).apply(logits)
        np.testing.assert_array_equal(np.argsort(after), np.argsort(logits))


def test_the_isotonic_line_goes_through_the_blocks_of_scikit_learn() -> None:
    from sklearn.isotonic import IsotonicRegression

    labels, logits = drawn(1200, 2.0)
    logits = np.round(logits, 1)  # ties
    levels = IsotonicRegression(out_of_bounds="clip").fit(logits, labels).predict(logits)
    fitted = fit_isotonic(labels, logits)
    centres = [logits[levels == level].mean() for level in np.unique(levels)]
    np.testing.assert_allclose([x for x, _ in fitted.knots], centres)
    inside = (levels > 0) & (levels < 1)
    assert inside.mean() > 0.5
    found = [expit(y) for _, y in fitted.knots]
    np.testing.assert_allclose(found, np.clip(np.unique(levels), 0.5 / 1200, 1 - 0.5 / 1200))
    assert fitted.apply(logits).shape == logits.shape


def test_isotonic_is_refused_below_the_number_it_names() -> None:
    labels, logits = drawn(LEAST_FOR_ISOTONIC - 1, 2.0)
    with pytest.raises(UsageError, match="at least 1000 patients out of fold, 999 found: on fewer"):
        fit(evidence(labels, logits), "logits", "isotonic")


def test_too_few_of_a_class_leave_the_logits_alone_unless_requested() -> None:
    labels, logits = drawn(60, 2.0)
    labels[:] = np.arange(60) < 9
    fitted = fit(evidence(labels, logits), "logits", None)
    assert (fitted.method, fitted.temperature) == ("none", 1.0)
    assert "60 patients out of fold (9 positive): 10 of each class" in fitted.why
    with pytest.raises(UsageError, match="10 of each class"):
        fit(evidence(labels, logits), "logits", "temperature")


def test_logits_that_tell_nothing_are_flattened_and_faultless_ones_left_alone() -> None:
    labels = np.arange(40) % 2
    faultless = np.where(labels == 1, 3.0, -3.0)
    assert fit_temperature(labels, -faultless).temperature == 100
    left = fit_temperature(labels, faultless)
    assert (left.method, left.temperature) == ("none", 1.0)
    assert "no answer out of fold is wrong" in left.why


def test_a_temperature_that_helps_nobody_is_left_out_unless_requested() -> None:
    labels, logits = drawn(200, 1.0, seed=4)
    logits = fit_temperature(labels, logits).apply(logits)  # as good as it gets
    left = fit(evidence(labels, logits), "logits", None)
    assert (left.method, left.temperature) == ("none", 1.0)
    assert "does not lower the log loss of patients it was not fitted on" in left.why
    assert left.measured["after"]["log_loss"] >= left.measured["before"]["log_loss"]
    assert fit(evidence(labels, logits), "logits", "temperature").method == "temperature"
    assert fit(evidence(labels, 4 * logits), "logits", None).method == "temperature"


def test_what_is_measured_after_is_cross_fitted() -> None:
    labels, logits = drawn(300, 4.0)
    fitted = fit(evidence(labels, logits), "logits", "temperature")
    measured = fitted.measured
    assert measured["before"]["log_loss"] == pytest.approx(log_loss(labels, logits))
    in_sample = log_loss(labels, fitted.apply(logits))
    assert in_sample < measured["after"]["log_loss"] < measured["before"]["log_loss"]
    assert measured["n"], measured["positive"] == (300, labels.sum())


def test_members_are_combined_as_the_ensemble_says() -> None:
    logits = np.array([-2.0, 0.5, 4.0])
    assert combine(logits, "logits") == pytest.approx(2.5 / 3)
    assert combine(logits, "probabilities") == pytest.approx(logit(expit(logits).mean()))
    assert np.isfinite(combine(np.array([900.0, 800.0]), "probabilities"))


def test_rows_are_gathered_by_patient_over_seeds_and_runs() -> None:
    members = {(0, 7), (1, 7), (0, 8)}
    one = table("a,1,0,7,1.5,.", "a,1,0,8,2.5,.", "b,0,1,7,-1,.")
    first = out_of_fold(one, members, source="one")
    second = out_of_fold(table("b,0,0,7,-3,."), MEMBERS, source="two")
    data = pooled([first, second])
    assert data.patients == ("a", "b")
    assert data.labels.tolist() == [1, 0]
    assert data.ensembled("logits").tolist() == [2.0, -2.0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,1,2,7,0.5,."], "patient a is of fold 2, seed 7, but no member .* not out of fold"),
        (["a,1,0,8,0.5,."], "no member of the run held out that fold with that seed"),
        (["a,1,0,7,0.5,.", "a,1,1,7,0.5,."], "fold 1 and of fold 0: one of the two members has"),
        (["a,1,0,7,0.5,.", "a,1,0,7,0.5,."], "patient a stands twice"),
        (["a,1,1,7,0.5,."], "patient a is of fold 1, the dataset says 0: not out of fold"),
        (["c,1,1,7,0.5,."], "the dataset says nothing of such a patient"),
        (["a,2,0,7,0.5,."], "label 2"),
        (["a,1,0,7,nan,."], "line 2: .nan. found"),
        (["a,1,0,7,x,."], "line 2: .x. found, a finite"),
        (["a,1,0,7"], "line 2: 4 fields"),
    ],
)
def test_a_row_that_is_not_out_of_fold_is_refused(rows: list[str], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        out_of_fold(table(*rows), MEMBERS, source="oof.csv", folds={"a": 0, "b": 1})


def test_runs_that_disagree_on_a_label_are_refused() -> None:
    tables = [out_of_fold(table(f"a,{n},0,7,0.5,."), MEMBERS, source="f") for n in (0, 1)]
    with pytest.raises(ContractError, match="disagree on the label of patient a"):
        pooled(tables)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "votes"},
        {"temperature": 2.0},
        {"method": "isotonic"},
        {"method": "isotonic", "knots": ((0, 0), (1, 0))},
        {"method": "temperature", "temperature": float("nan")},
    ],
)
def test_a_calibration_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ContractError):
        Calibration(**wrong)
