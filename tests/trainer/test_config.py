"""What a run may be asked for."""

from __future__ import annotations

import pytest

from beam_jobs.core.cli import UsageError
from trainer.config import OptimizerConfig, TrainConfig


def test_config_comes_back_from_its_json() -> None:
    config = TrainConfig(
        fold=2, modalities=("T2w", "FLAIR"), optimizer=OptimizerConfig(learning_rate=1e-3)
    )
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"batch_size": 0}, "--batch_size"),
        ({"patience": 0}, "--patience"),
        ({"fold": -1}, "--fold"),
        ({"seed": -1}, "--seed"),
        ({"precision": "half"}, "mixed_bfloat16"),
        ({"model": "resnet99"}, "seed_cnn"),
        ({"modalities": ("T1w", "T1w")}, "T1w"),
        ({"modalities": ()}, "--modalities"),
    ],
)
def test_an_impossible_value_is_refused_by_its_option(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        TrainConfig(**wrong)  # type: ignore[arg-type]


def test_a_learning_rate_must_be_a_positive_number() -> None:
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--learning_rate"):
            OptimizerConfig(learning_rate=rate)


def test_channels_default_to_all_and_keep_the_order_asked_for() -> None:
    available = ("FLAIR", "T1w", "T2w")
    assert TrainConfig().resolve(available).modalities == available
    chosen = TrainConfig(modalities=("T2w", "FLAIR")).resolve(available)
    assert chosen.modalities == ("T2w", "FLAIR")


def test_an_unknown_modality_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"PET.*FLAIR, T1w"):
        TrainConfig(modalities=("PET",)).resolve(("FLAIR", "T1w"))
