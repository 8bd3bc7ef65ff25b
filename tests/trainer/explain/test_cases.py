"""What is explained of classes, findings and values, and of whom; NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.core.cohort.target import PLAIN, Target
from tests.datasets import TARGETS
from trainer.explain.attribution import Attribution
from trainer.explain.cases import _in_text, _telling, logit_of, output_of
from trainer.metrics.predictions import Predictions
from trainer.metrics.tasks.answers_table import label_of_texts
from trainer.metrics.tasks.measure import softmax


def test_the_logit_of_a_class_is_that_of_its_probability_against_the_rest() -> None:
    answers = np.random.default_rng(0).normal(size=(5, 3)) * 4
    probability = softmax(answers)[:, 1]
    found = logit_of(TARGETS["multiclass"], answers, 1)
    np.testing.assert_allclose(found, np.log(probability) - np.log1p(-probability))
    np.testing.assert_array_equal(logit_of(TARGETS["multilabel"], answers, 1), answers[:, 1])
    np.testing.assert_array_equal(logit_of(PLAIN, answers[:, 0], 0), answers[:, 0])


@pytest.mark.parametrize(
    ("task", "asked", "said"),
    [
        ("multiclass", {"class": "5"}, "--class 5: one of 2, 3, 4 is needed"),
        ("multiclass", {"label": "3"}, r"--label 3: labels are multiclass \(--class chooses here"),
        ("multilabel", {"class": "edema"}, r"labels are multilabel \(--label chooses here\)"),
        ("multilabel", {"label": "x"}, "--label x: one of edema, necrosis is needed"),
        ("binary", {"class": "1"}, "--class 1: labels are binary: the map has both directions"),
        ("regression", {"label": "ml"}, "--label ml: labels are regression: the map has both"),
    ],
)
def test_a_class_that_labels_do_not_have_is_refused_in_a_line(task, asked, said) -> None:
    with pytest.raises(UsageError, match=said):
        output_of(TARGETS[task], {"class": None, "label": None, **asked})


def test_a_class_or_a_finding_is_chosen_by_its_name_and_else_the_predicted_one() -> None:
    assert output_of(TARGETS["multiclass"], {"class": "4", "label": None}) == 2
    assert output_of(TARGETS["multilabel"], {"class": None, "label": "necrosis"}) == 1
    assert output_of(TARGETS["multiclass"], {"class": None, "label": None}) is None


def test_labels_are_passed_on_so_that_they_are_read_as_what_they_are() -> None:
    """Of two classes that are called by numbers, the names are not the indices."""
    sides = Target(task="binary", labels=("side",), classes=("1", "0"))
    labels: dict[str, tuple[Target, list[Any]]] = {
        **{task: (TARGETS[task], []) for task in TARGETS},
        "named": (sides, [0, 1]),
    }
    labels["binary"][1].extend([0, 1])
    labels["multiclass"][1].extend([0, 2])
    labels["multilabel"][1].extend([(0, None), (None, 1)])
    labels["regression"][1].extend([12.5, -3.0])
    for target, every in labels.values():
        for label in every:
            text = _in_text(target, label)
            texts = (text,) if isinstance(text, str) else text
            assert label_of_texts(target, texts) == label


def _predictions(task: str, truth: Any, scores: Any) -> Predictions:
    return Predictions(
        name="run",
        keys=tuple("abcdefgh"[: len(truth)]),
        labels=np.array(truth),
        scores=np.array(scores, float),
        target=TARGETS[task],
    )


def test_of_each_class_the_surest_right_and_wrong_are_taken() -> None:
    scores = [[9, 0, 0], [3, 0, 0], [0, 9, 0], [0, 5, 0], [0, 0, 1], [8, 0, 0]]
    found = _predictions("multiclass", [0, 0, 1, 0, 2, 2], scores)
    # Right of classes 2, 1, 0; then wrong of 2 (f: 0 for sure) and of 0 (d).
    assert list(_telling(found, TARGETS["multiclass"], None)) == ["e", "c", "a", "f", "d"]


def test_of_each_finding_those_who_have_it_are_taken_and_explained_by_it() -> None:
    truth = [[1, 0], [1, np.nan], [0, 1], [1, 1], [0, 0]]
    scores = [[4, -1], [-3, 0], [9, 2], [1, -2], [5, 5]]
    found = _predictions("multilabel", truth, scores)
    expected = {"a": 0, "c": 1, "b": 0, "d": 1}
    assert _telling(found, TARGETS["multilabel"], None) == expected
    # One that was chosen: also those who do not have it.
    assert _telling(found, TARGETS["multilabel"], 0) == {"a": 0, "b": 0, "c": 0}


def test_of_both_halves_of_the_values_the_best_met_and_the_most_missed_are_taken() -> None:
    truth, values = [1.0, 2.0, 3.0, 10.0, 11.0, 12.0], [1.1, 2.0, 9.0, 10.5, 4.0, 12.1]
    found = _telling(_predictions("regression", truth, values), TARGETS["regression"], None)
    assert list(found) == ["f", "b", "e", "c"]


def test_grad_cam_of_a_chosen_class_shows_what_speaks_for_it_though_another_is_predicted() -> None:
    values = np.array([1.0, -2.0]).reshape(1, 1, 1, 2)
    of_two = Attribution(values=values, logit=-3.0)
    of_several = Attribution(values=values, logit=-3.0, one_sided=True)
    assert of_two.strength("gradcam").ravel().tolist() == [0, 2]
    assert of_several.strength("gradcam").ravel().tolist() == [1, 0]
