"""Temperatures of classes and findings, and the tables that they are fitted on."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit, softmax

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.cohort.target import Target
from serving.model.out_of_fold import OutOfFold, combine, out_of_fold, pooled
from serving.model.temperatures import Fitted, Interval, Temperatures, fit_temperatures, unfitted
from tests.datasets import TARGETS

CLASSES, FINDINGS, VALUES = (TARGETS[task] for task in ("multiclass", "multilabel", "regression"))
MEMBERS = {(0, 7), (1, 7)}


def evidence(target: Target, labels: npt.NDArray[Any], logits: npt.NDArray[Any]) -> OutOfFold:
    patients = tuple(f"{number:05d}" for number in range(len(labels)))
    single = tuple(row[np.newaxis] for row in logits)
    return OutOfFold(patients=patients, labels=labels, logits=single, target=target)


def classes(count: int, sharpness: float, seed: int = 0) -> OutOfFold:
    """Classes drawn from true logits, and logits that are too sharp by a factor."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0.0, 1.5, (count, 3))
    labels = np.array([rng.choice(3, p=row) for row in softmax(true, axis=1)])
    return evidence(CLASSES, labels, sharpness * true)


def findings(count: int, sharpness: tuple[float, float], seed: int = 0) -> OutOfFold:
    """Findings, each with its own sharpness; a fifth of the second is not known."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0.0, 1.5, (count, 2))
    labels = (rng.uniform(size=true.shape) < expit(true)).astype(np.float64)
    labels[rng.uniform(size=count) < 0.2, 1] = np.nan
    return evidence(FINDINGS, labels, true * sharpness)


def test_the_temperature_of_two_classes_is_that_of_their_difference() -> None:
    """Against the binary fit: softmax of (0, z, far below) is the sigmoid of z."""
    from serving.model.calibration import fit_temperature

    data = classes(400, 1.0)
    chosen = data.labels < 2
    pair = np.stack(data.logits)[chosen, 0]
    pair[:, 2] = -1e6
    labels = data.labels[chosen]
    from serving.model.temperatures import _sharpness

    found = _sharpness(CLASSES, labels, pair)
    expected = fit_temperature(labels, pair[:, 1] - pair[:, 0]).temperature
    assert found is not None
    assert 1 / found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sharpness", [0.4, 3.0])
def test_one_temperature_of_classes_lowers_the_loss_of_patients_it_never_saw(
    sharpness: float,
) -> None:
    fitted = fit_temperatures(classes(400, sharpness), "logits", None)
    assert list(fitted.temperatures) == pytest.approx([sharpness], rel=0.25)
    assert fitted.measured["after"]["log_loss"] < fitted.measured["before"]["log_loss"]
    assert fitted.measured["n"] == sum(fitted.measured["positive"].values()) == 400
    held = classes(2000, sharpness, seed=9)
    logits, rows = np.stack(held.logits)[:, 0], np.arange(2000)

    def loss(values: npt.NDArray[Any]) -> float:
        return float(-np.log(softmax(values, axis=1)[rows, held.labels]).mean())

    assert loss(fitted.apply(logits)) < loss(logits) - 0.02


def test_findings_get_a_temperature_each_where_they_differ_and_one_where_not() -> None:
    own = fit_temperatures(findings(600, (4.0, 0.5)), "logits", None)
    assert list(own.temperatures) == pytest.approx([4.0, 0.5], rel=0.3)
    alike = fit_temperatures(findings(120, (3.0, 3.0)), "logits", None)
    assert list(alike.temperatures) == pytest.approx([3.0], rel=0.35)
    assert alike.apply(np.array([3.0, -6.0])) == pytest.approx(
        np.array([3.0, -6.0]) / alike.temperatures[0]
    )


def test_a_rare_finding_shares_the_temperature_of_the_others() -> None:
    data = findings(300, (4.0, 1.0))
    data.labels[:, 1] = np.where(np.arange(300) < 5, 1.0, 0.0)
    assert len(fit_temperatures(data, "logits", "temperature").temperatures) == 1


def test_what_cannot_be_fitted_is_left_alone_unless_requested() -> None:
    few = classes(40, 2.0)
    few.labels[:] = np.arange(40) % 2
    left = fit_temperatures(few, "logits", None)
    assert (left.method, left.temperatures) == ("none", ())
    assert "40 patients out of fold: 10 of each class" in left.why
    with pytest.raises(UsageError, match="--calibration temperature: 40 patients out of fold"):
        fit_temperatures(few, "logits", "temperature")
    with pytest.raises(UsageError, match="isotonic is for binary labels"):
        fit_temperatures(few, "logits", "isotonic")
    helped = fit_temperatures(classes(300, 1.0, seed=5), "logits", "temperature")
    assert helped.method == "temperature"
    faultless = evidence(CLASSES, np.arange(60) % 3, 9.0 * np.eye(3)[np.arange(60) % 3])
    assert "no answer out of fold is wrong" in fit_temperatures(faultless, "logits", None).why


def test_a_temperature_that_helps_nobody_is_left_out() -> None:
    data = classes(200, 1.0, seed=4)
    best = fit_temperatures(data, "logits", "temperature").apply(np.stack(data.logits)[:, 0])
    left = fit_temperatures(evidence(CLASSES, data.labels, best), "logits", None)
    assert left.method == "none"
    assert "would not lower the log loss" in left.why


def test_members_are_combined_as_probabilities_or_logits() -> None:
    members = np.array([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]])
    logits = combine(members, "logits", CLASSES)
    assert logits.tolist() == members.mean(axis=0).tolist()
    shares = softmax(members, axis=1).mean(axis=0)
    np.testing.assert_allclose(np.exp(combine(members, "probabilities", CLASSES)), shares)
    each = expit(combine(members[:, :2], "probabilities", FINDINGS))
    np.testing.assert_allclose(each, expit(members[:, :2]).mean(axis=0))
    assert combine(np.array([20.0, 23.0]), "probabilities", VALUES) == 21.5


def rows(target: Target, *lines: str) -> OutOfFold:
    headers = {
        "multiclass": "label,logit_2,logit_3,logit_4",
        "multilabel": "label_edema,label_necrosis,logit_edema,logit_necrosis",
        "regression": "label,value",
    }
    text = f"patient_id,fold,seed,{headers[target.task]}\n" + "".join(f"{one}\n" for one in lines)
    return pooled([out_of_fold(text, MEMBERS, source="oof.csv", target=target)], target)


def test_tables_of_every_task_are_read() -> None:
    found = rows(CLASSES, "a,0,7,4,0.5,-1,2", "b,1,7,2,3,0,-2")
    assert found.labels.tolist() == [2, 0]
    assert found.ensembled("logits").tolist() == [[0.5, -1.0, 2.0], [3.0, 0.0, -2.0]]
    found = rows(FINDINGS, "a,0,7,1,,0.5,-1", "b,1,7,0,1,3,0")
    assert found.labels[1].tolist() == [0, 1]
    assert np.isnan(found.labels[0, 1])
    found = rows(VALUES, "b,1,7,12.5,11", "a,0,7,-1.5,2e1")
    assert found.labels.tolist() == [-1.5, 12.5]
    assert found.ensembled("logits").tolist() == [20.0, 11.0]
    assert found.folds is not None
    assert found.folds.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("target", "line", "message"),
    [
        (CLASSES, "a,0,7,5,1,2,3", "line 2: label '5': one of 2, 3, 4 required"),
        (CLASSES, "a,2,7,3,1,2,3", "not out of fold"),
        (FINDINGS, "a,0,7,2,0,1,1", "label 2: 0 or 1 required"),
        (FINDINGS, "a,0,7,1,0,1,inf", "'inf' found, a finite"),
        (VALUES, "a,0,7,,1", "'' found, a finite"),
    ],
)
def test_a_row_that_is_none_of_the_task_is_refused(target: Target, line: str, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        rows(target, line)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "isotonic"},
        {"method": "temperature"},
        {"temperatures": (1.0,)},
        {"method": "temperature", "temperatures": (-1.0,)},
    ],
)
def test_temperatures_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ContractError):
        Temperatures(**wrong)


def test_the_terminal_tells_calibration_and_interval() -> None:
    fitted = Fitted(fit_temperatures(findings(600, (4.0, 0.5)), "logits", None))
    name, line = fitted.summary(FINDINGS)
    assert name == "calibration"
    assert line.startswith("temperature 4.")
    assert "edema" in line
    interval = Interval(level=0.9, half_width=2.5, n=40, coverage=0.925)
    assert Fitted(Temperatures(), interval).summary(VALUES) == (
        "interval",
        "± 2.5 ml for 90% of patients (n = 40 out of fold, 92.5% inside)",
    )
    assert unfitted("regression", "no table").summary(VALUES) == ("interval", "none (no table)")
