"""Predictions files of every task: what is written is read back, and joined with labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.cohort.target import Target
from tests.datasets import TARGETS
from tests.trainer.metrics.tasks.test_estimate import TASKS, cohort
from trainer.metrics.comparisons import comparisons_of
from trainer.metrics.predictions import read_predictions
from trainer.metrics.run_facts import headline_of, read_null
from trainer.metrics.tasks.labels_file import read_labels
from trainer.metrics.tasks.measure import softmax
from trainer.metrics.tasks.oof_table import oof_columns, oof_rows
from trainer.metrics.wording import comparison_line


def oof_lines(task: str, *, seeds: int = 1, n: int = 60, no_claim: str = "") -> list[str]:
    """A table of a toy cohort in five folds."""
    target = TARGETS[task]
    truth, answers = cohort(task, 0, n=n, unknown=True)
    lines = [",".join(oof_columns(target))]
    for seed in range(seeds):
        for fold in range(5):
            rows = np.flatnonzero(np.arange(n) % 5 == fold)
            table = oof_rows(
                target,
                patient_ids=[f"{row:05d}" for row in rows],
                truth=truth[rows],
                answers=answers[rows] + 0.5 * seed * answers[rows] ** 2,
                fold=fold,
                seed=seed,
                chosen=(3, "last", no_claim),
            )
            lines += [",".join(map(str, row)) for row in table]
    return lines


def write(file: Path, lines: list[str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("task", TASKS)
def test_an_out_of_fold_table_is_read_back(task: str, tmp_path: Path) -> None:
    found = read_predictions(write(tmp_path / "run" / "oof_predictions.csv", oof_lines(task)))
    truth, answers = cohort(task, 0, unknown=True)
    known = ~np.isnan(truth.reshape(60, -1)).all(axis=1)  # of whom something is known
    assert known.all() == (task != "multilabel")
    order = np.array(sorted(np.flatnonzero(known), key=str))
    assert found.keys == tuple(map(str, order))
    np.testing.assert_array_equal(found.labels, truth[order])
    np.testing.assert_allclose(found.scores, answers[order])
    assert (found.target.task, found.target.names) == (task, TARGETS[task].names)
    assert found.repeats.shape == (1, *answers[order].shape)
    if task == "multiclass":
        assert found.probabilities is not None
        np.testing.assert_allclose(found.probabilities, softmax(answers[order]))
    assert (found.probabilities is None) == (task == "regression")


@pytest.mark.parametrize("task", TASKS)
def test_a_submission_is_joined_with_labels_and_probabilities_rank_as_logits(
    task: str, tmp_path: Path
) -> None:
    target = TARGETS[task]
    truth, answers = cohort(task, 0)
    names = {"multiclass": ("grade",), "multilabel": target.names, "regression": ("volume",)}[task]
    if task == "regression":
        header, rows = "value,low,high", [f"{one},{one - 1},{one + 1}" for one in answers]
        rows[0] = f"{answers[0]},,"
        texts = [f"{one}" for one in truth]
    else:
        kinds = ",".join(f"probability_{name}" for name in target.names)
        header = f"class,{kinds}" if task == "multiclass" else kinds
        shares = softmax(answers) if task == "multiclass" else 1 / (1 + np.exp(-answers))
        rows = [",".join(map(str, row)) for row in shares]
        if task == "multiclass":
            likeliest = [target.names[place] for place in shares.argmax(axis=1)]
            rows = [f"{name},{row}" for name, row in zip(likeliest, rows, strict=True)]
            texts = [f"{target.names[one]}.0" for one in truth]  # as a spreadsheet writes it
        else:
            texts = [",".join(str(int(one)) for one in row) for row in truth]
    predictions = write(
        tmp_path / "submission.csv",
        [f"patient_id,{header}", *(f"{place:05d},{row}" for place, row in enumerate(rows))],
    )
    labels = write(
        tmp_path / "labels.csv",
        [f"patient_id,{','.join(names)}", *(f"{place},{text}" for place, text in enumerate(texts))],
    )
    read = read_labels(
        labels,
        None if task == "multilabel" else names,
        id_columns=("patient_id",),
        predictions=predictions,
        score_columns=("MGMT_value", "logit", "probability"),
    )
    found = read_predictions(predictions, read, id_columns=("patient_id",))
    order = np.argsort([str(number) for number in range(60)])
    np.testing.assert_allclose(found.labels, truth[order])
    expected = headline_of(
        read_predictions(write(tmp_path / "oof.csv", oof_lines(task)))
    ).predictions
    if task != "multilabel":  # there the table has unknown ones
        np.testing.assert_array_equal(found.labels, expected.labels)
    estimate = headline_of(found).estimate
    assert estimate["estimator"] == "all pairs"
    if task == "regression":
        assert found.low is not None
        assert found.high is not None
        assert np.isnan(found.low).tolist() == np.isnan(found.high).tolist()
        assert int(np.isnan(found.low).sum()) == 1
    else:
        assert found.probabilities is not None
        np.testing.assert_allclose(found.probabilities, shares[order], atol=1e-12)


def test_seeds_are_repeats_and_a_covariate_stands_beside_its_patient(tmp_path: Path) -> None:
    lines = oof_lines("multiclass", seeds=2)
    lines = [
        f"{lines[0]},covariate_site",
        *(f"{line},{'AB'[i % 2]}" for i, line in enumerate(lines[1:])),
    ]
    found = read_predictions(write(tmp_path / "oof.csv", lines))
    assert found.repeats.shape == (2, 60, 3)
    assert headline_of(found).estimate["repeats"] == 2
    assert set(found.covariates) == {"site"}
    assert len(found.covariates["site"]) == 60


@pytest.mark.parametrize("task", TASKS)
def test_a_runs_retrainings_decide_where_there_are_enough(task: str, tmp_path: Path) -> None:
    write(tmp_path / "oof_predictions.csv", oof_lines(task))
    low = "-0.3" if task == "regression" else "0.3"
    write(
        tmp_path / "permutations.csv",
        ["permutation,seed,score", *(f"{place},{place},{low}" for place in range(1, 40))],
    )
    target = Target(
        task=task, labels=TARGETS[task].labels, classes=TARGETS[task].classes,
        unit="ml" if task == "regression" else "",
    )  # fmt: skip
    write(
        tmp_path / "run.json",
        [json.dumps({"config": {}, "epoch_choice": "last", "no_claim": [],
                     "schema": {"target": target.to_json()}})],
    )  # fmt: skip
    found = read_predictions(tmp_path / "oof_predictions.csv", target=target)
    headline = headline_of(found, tmp_path)
    assert headline.estimate["decided_by"] == "permutations"
    assert headline.estimate["permutations"]["as_high"] == 0
    assert headline.predictions.target == target
    assert read_null(tmp_path, target) == [float(low)] * 39
    write(tmp_path / "permutations.csv", ["permutation,seed,score", "1,1,1.5"])
    with pytest.raises(ContractError, match=r"score '1\.5': a number in"):
        read_null(tmp_path, target)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_run_whose_seed_lacks_patients_is_judged_without_a_warning(
    task: str, tmp_path: Path
) -> None:
    if task == "binary":
        rows = [f"{i},{i % 2},{i // 12},{seed},{i * seed % 7 - 3},0.5,3,last," for seed in (1, 2)
                for i in range(60)]  # fmt: skip
        lines = [",".join(oof_columns(TARGETS[task])), *rows]
    else:
        lines = oof_lines(task, seeds=2)
    file = write(tmp_path / "oof_predictions.csv", lines[:-5])
    write(tmp_path / "run.json", ['{"config": {}, "epoch_choice": "last"}'])
    assert headline_of(read_predictions(file), tmp_path).estimate["repeats"] == 2


@pytest.mark.parametrize("task", TASKS)
def test_two_models_are_compared_and_other_questions_are_not(task: str, tmp_path: Path) -> None:
    one = read_predictions(write(tmp_path / "a.csv", oof_lines(task)))
    two = read_predictions(write(tmp_path / "b.csv", oof_lines(task, seeds=2)))
    (found,) = comparisons_of(one, [two])
    assert found["difference"] == pytest.approx(found["score"] - found["other_score"])
    low, high = found["difference_interval"]
    assert low <= found["difference"] <= high
    assert "difference" in comparison_line(found)
    silent = read_predictions(write(tmp_path / "c.csv", oof_lines(task, no_claim="searched")))
    (marked,) = comparisons_of(one, [silent])
    assert marked["p_value"] is None
    assert "searched" in marked["no_test"]
    other = TASKS[TASKS.index(task) - 1]
    third = read_predictions(write(tmp_path / "d.csv", oof_lines(other)))
    with pytest.raises(ContractError, match="different questions"):
        comparisons_of(one, [third])


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("label,logit_2,logit_3,logit_4", "5,1,2,3", "one of 2, 3, 4 required, 5 found"),
        ("label,logit_2,logit_3", "2,1,2", "2 classes of a multiclass target"),
        ("label,logit_2,logit_3,logit_4", "2,1,x,3", "logit_3 of 1: 'x' is no finite number"),
        ("label,probability_a,probability_b,probability_c", "a,0.5,0.5,1.5", "0 to 1 required"),
        ("label_a,label_b,logit_a,logit_b", "2,1,1,2", "label of 1: 0 or 1 required, 2 found"),
        ("label_a,label_b,logit_a", "1,1,1", "1 labels of a multilabel target"),
        ("label,value", "inf,1", "label of 1: 'inf' is no finite number"),
        ("label,value", "1,", "value of 1: '' is no finite number"),
        ("label,value,low,high", "1,1,x,2", "low of 1: 'x' is no finite number"),
    ],
)
def test_tables_that_say_no_task_are_refused_in_a_line(
    header: str, row: str, said: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "oof.csv", [f"patient_id,{header}", f"1,{row}"])
    with pytest.raises(ContractError, match=said):
        read_predictions(file)


def test_a_binary_table_with_further_columns_stays_binary(tmp_path: Path) -> None:
    header = "patient_id,label,logit,probability,probability_sd,value"
    file = write(tmp_path / "p.csv", [header, "1,0,-1,0.3,0.1,7", "2,1,1,0.7,0.1,7"])
    found = read_predictions(file)
    assert found.target.is_plain
    assert found.scores.tolist() == [-1.0, 1.0]


def test_labels_by_name_need_a_run_that_says_which_is_which(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", ["patient_id,MGMT_value", "1,0.2", "2,0.8"])
    labels: Any = {"1": "no", "2": "yes"}
    named = Target(labels=("MGMT",), classes=("no", "yes"))
    found = read_predictions(file, labels, target=named)
    assert (found.target, found.labels.tolist()) == (named, [0, 1])
    with pytest.raises(ContractError, match=r"'no' is no finite number; of two .* --run RUN"):
        read_predictions(file, labels)


@pytest.mark.parametrize("classes", [("1", "2"), ("1", "0"), ("no", "yes")])
def test_classes_called_by_numbers_are_not_taken_for_their_places(
    classes: tuple[str, str], tmp_path: Path
) -> None:
    """Beside the answers a binary's label is a class's place, in a CSV of labels its name."""
    target, file = Target(labels=("y",), classes=classes), tmp_path / "oof.csv"
    rows = (f"p{n},{n % 2},{n // 2},0,{n % 2}.5,0.5,1,last," for n in range(4))
    file.write_text("\n".join([",".join(oof_columns(target)), *rows]) + "\n")
    assert read_predictions(file, target=target).labels.tolist() == [0, 1, 0, 1]
    for end in ("", ".0") if classes[0] == "1" else ("",):
        labels = {f"p{n}": f"{classes[n % 2]}{end}" for n in range(4)}
        found = read_predictions(file, labels, target=target)
        assert (found.labels.tolist(), found.relabelled) == ([0, 1, 0, 1], ())
    other = read_predictions(file, {**labels, "p1": classes[0]}, target=target)
    assert other.relabelled == ("p1",)
    if classes == ("1", "2"):
        with pytest.raises(ContractError, match="label of p0: one of 1, 2 required, 0 found"):
            read_predictions(file, {"p0": "0"}, target=target)


def test_labels_of_findings_need_a_column_each(tmp_path: Path) -> None:
    predictions = write(tmp_path / "p.csv", ["patient_id,probability_a,probability_b", "1,0.1,0.2"])
    labels = write(tmp_path / "l.csv", ["patient_id,first,b", "1,1,", "2,NA,0"])

    def read(*columns: str) -> Any:
        return read_labels(
            labels,
            columns or None,
            id_columns=("patient_id",),
            predictions=predictions,
            score_columns=("logit",),
        )

    assert read("first", "b") == {"1": ("1", ""), "2": ("", "0")}
    with pytest.raises(UsageError, match="no column a; it has patient_id, first, b"):
        read()
    with pytest.raises(UsageError, match="3 columns, one for each of a, b required"):
        read("first", "b", "b")


def test_columns_of_findings_are_taken_by_name(tmp_path: Path) -> None:
    """Named in another order than the predictions', they are not read as each other."""
    predictions = write(tmp_path / "p.csv", ["id,probability_a,probability_b", "1,0.1,0.2"])
    labels = write(tmp_path / "l.csv", ["id,a,b,c", "1,1,0,1"])
    rest: Any = {"id_columns": ("id",), "predictions": predictions, "score_columns": ("logit",)}
    for wanted in (("b", "a"), ("b,a",), ("a, b",)):
        assert read_labels(labels, wanted, **rest) == {"1": ("1", "0")}
    with pytest.raises(UsageError, match=r"--label_column: b stands where .* has a: .* a, b re"):
        read_labels(labels, ("b", "c"), **rest)
    of_run = Target(task="multilabel", labels=("a", "b"))
    with pytest.raises(UsageError, match="1 columns, one for each of a, b required"):
        read_labels(labels, ("a",), target=of_run, **rest)
