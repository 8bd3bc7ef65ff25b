"""What may be requested of a run."""

from __future__ import annotations

import json

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.core.cohort.covariates import Covariate
from trainer.config.augment import AugmentConfig
from trainer.config.network import NetworkConfig
from trainer.config.run import OptimizerConfig, TrainConfig, merged


def test_config_comes_back_from_its_json() -> None:
    config = TrainConfig(
        fold=2,
        repeats=3,
        network=NetworkConfig(name="resnet10", width=0.5),
        modalities=("T2w", "FLAIR"),
        augment=AugmentConfig.named("strong"),
        optimizer=OptimizerConfig(learning_rate=1e-3, ema=0.99),
    )
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_settings_in_parts_keep_the_defaults_of_the_rest() -> None:
    found = TrainConfig.from_json(
        {"network": "resnet18", "augment": "light", "optimizer": {"schedule": "cosine"}}
    )
    assert found.network == NetworkConfig(name="resnet18")
    assert found.augment == AugmentConfig.named("light")
    assert found.optimizer == OptimizerConfig(schedule="cosine")
    assert found.epochs == TrainConfig().epochs
    partly = TrainConfig.from_json({"augment": {"noise": 0.1}})
    assert partly.augment == AugmentConfig(noise=0.1)


@pytest.mark.parametrize(
    "settings",
    [{"learning_rate": 1}, {"optimizer": {"rate": 1}}, {"optimizer": 3}, {"network": 5}],
)
def test_a_setting_that_does_not_exist_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="setting"):
        TrainConfig.from_json(settings)


def test_merging_keeps_what_is_not_named() -> None:
    base = {"epochs": 3, "optimizer": {"learning_rate": 1.0, "ema": 0.5}}
    over = {"optimizer": {"ema": None}, "seed": 4}
    assert merged(base, over) == {
        "epochs": 3,
        "optimizer": {"learning_rate": 1.0, "ema": None},
        "seed": 4,
    }
    assert base["optimizer"] == {"learning_rate": 1.0, "ema": 0.5}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"batch_size": 0}, "--batch_size"),
        ({"epoch_choice": "best"}, "--epoch_choice must be one of last, crossfit"),
        ({"epoch_choice": "crossfit", "fold": 2}, "not with --fold 2"),
        ({"fold": -1}, "--fold"),
        ({"seed": -1}, "--seed"),
        ({"precision": "half"}, "mixed_bfloat16"),
        ({"xla": "maybe"}, "--xla"),
        ({"repeats": 0}, "--repeats"),
        ({"seed": 2**31 - 1, "repeats": 2}, "--seed"),
        ({"label_smoothing": 1.0}, "--label_smoothing"),
        ({"class_weights": "equal"}, "none, balanced"),
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


def test_covariates_stand_in_a_config_only_where_the_dataset_has_them() -> None:
    known = ("age", "site")
    assert "covariates" not in TrainConfig().to_json()
    assert "covariates" not in TrainConfig(covariates=()).resolve(("T1w",)).to_json()
    every = TrainConfig().resolve(("T1w",), known)
    assert every.to_json()["covariates"] == ["age", "site"]
    none = TrainConfig(covariates=()).resolve(("T1w",), known)
    assert none.to_json()["covariates"] == []
    for config in (every, none):
        assert TrainConfig.from_json(config.to_json()) == config
    covariates = tuple(Covariate(name=name) for name in known)
    chosen = TrainConfig(covariates=("site",)).resolve(("T1w",), known)
    assert chosen.chosen(covariates) == covariates[1:]
    assert TrainConfig(covariates=("site", "age")).resolve(("T1w",), known) == every
    dose = TrainConfig(covariates=("dose, mg", "site,age")).resolve(("T1w",), (*known, "dose, mg"))
    assert dose.covariates == ("age", "site", "dose, mg")


@pytest.mark.parametrize(
    ("covariates", "known", "message"),
    [
        (("sex",), ("age",), "unknown covariate 'sex'; the dataset has age"),
        (("sex",), (), "unknown covariate 'sex': the dataset has none"),
        (("age", "age"), ("age",), "--covariates must be distinct"),
    ],
)
def test_covariates_that_cannot_be_are_refused(
    covariates: tuple[str, ...], known: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(covariates=covariates).resolve(("T1w",), known)
