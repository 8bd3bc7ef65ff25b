"""What the card says of classes, findings, values and covariates, from the contract alone."""

import pytest

from beam_jobs.core.cohort.target import Target
from serving.model.card import model_card
from serving.model.task_card import score_title
from serving.model.temperatures import Interval, Temperatures
from tests.datasets import TARGETS
from tests.serving.models import task_contract
from trainer.metrics.tasks.measure import measure_of

SCORES = {"before": {"log_loss": 0.9, "brier": 0.5}, "after": {"log_loss": 0.75, "brier": 0.25}}
SEX = Target(task="binary", labels=("sex",), classes=("f", "m"))


@pytest.mark.parametrize(
    ("target", "cohort", "words"),
    [
        (
            TARGETS["multiclass"],
            {"patients": 40, "classes": {"2": 20, "3": 12, "4": 8}},
            ("the probabilities of 2, 3 and 4 (grade)", "40 patients: 2: 20, 3: 12, 4: 8.",
             "| macro AUC of that fold |", "these were the shares: 2: 25.0%, 3: 25.0%, 4: 25.0%"),
        ),
        (
            TARGETS["multilabel"],
            {"patients": 40, "labels": {"edema": 9, "necrosis": 8}, "known": {"edema": 40,
                                                                              "necrosis": 30}},
            ("a probability of each of edema and necrosis", "9 of 40 with edema, 8 of 30 with nec",
             "| mean AUC of that fold |"),
        ),
        (
            TARGETS["regression"],
            {"patients": 40, "mean": 20.5, "sd": 4.25},
            ("the volume in ml of one patient, and an interval", "40 patients: 20.5 ± 4.25 ml",
             "## Interval\nA value's interval is ± 2.5 ml", "hold 90% of the values",
             "90.0% lay inside", "the mean was 0.25 ml", "A mean of the values of 2 networks"),
        ),
        (
            SEX,
            {"patients": 40, "positive": 22},
            ("the probability of m against f (sex)", "40 patients: 22 m, 18 f.",
             "In the training data 25.0% were m"),
        ),
    ],
)  # fmt: skip
def test_the_card_speaks_of_what_is_predicted(
    target: Target, cohort: dict[str, object], words: tuple[str, ...]
) -> None:
    card = model_card(task_contract(target, cohort=cohort), None)
    for word in (*words, "takes site (one of A and B) and age of the patient"):
        assert word in card
    assert "positive" not in card


def test_the_card_tells_temperatures_and_what_they_did() -> None:
    measured = {"n": 40, "positive": {"edema": 9, "necrosis": 8}, **SCORES}
    for temperatures, words in (
        ((1.5, 0.75), "a temperature of its own: 1.5 (edema), 0.75 (necrosis)."),
        ((1.25,), "The logits are divided by the temperature 1.25."),
    ):
        calibration = Temperatures(
            method="temperature", temperatures=temperatures, measured=measured
        )
        card = model_card(task_contract(TARGETS["multilabel"], calibration=calibration), None)
        assert words in card
        assert "On 40 patients out of fold (edema: 9, necrosis: 8), each tenth" in card
        assert "| log loss (nats) | 0.9000 | 0.7500 |" in card


def test_a_model_of_values_without_an_interval_says_why() -> None:
    few = Interval(level=0.9, half_width=None, n=5, why="intervals of 90 % need 9 patients")
    card = model_card(task_contract(TARGETS["regression"], interval=few), None)
    assert "## Interval\nNone. (Intervals of 90 % need 9 patients.)" in card


@pytest.mark.parametrize("task", sorted(TARGETS))
def test_a_score_is_called_as_the_trainer_calls_it(task: str) -> None:
    """Serving imports nothing of the trainer, and so has the titles again."""
    target = TARGETS[task]
    assert score_title(task_contract(target)) == measure_of(target).title
