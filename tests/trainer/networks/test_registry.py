"""Networks: their size, their input's standardisation, their output's type."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from trainer.config.network import NetworkConfig
from trainer.networks.registry import Standardise, build_model


@pytest.fixture
def _bfloat16() -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


def test_seed_cnn_has_the_published_number_of_parameters() -> None:
    model = build_model("seed_cnn", (128, 128, 32), 1)
    assert model.count_params() == 1_253_825
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == 1_252_801


@pytest.mark.parametrize("shape", [(48, 48, 32), (64, 64, 16), (10, 10, 10)])
def test_seed_cnn_builds_on_small_grids_with_the_same_parameters(
    shape: tuple[int, int, int],
) -> None:
    assert build_model("seed_cnn", shape, 1).count_params() == 1_253_825


def test_too_small_a_grid_is_refused_with_the_least_size() -> None:
    with pytest.raises(UsageError, match=r"at least 10 voxels.*64x64x8"):
        build_model("seed_cnn", (64, 64, 8), 1)


def test_another_order_of_axes_than_keras_default_is_refused() -> None:
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(UsageError, match="image_data_format is channels_first, of a module"):
            build_model("seed_cnn", (16, 16, 16), 1)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"resnet99.*seed_cnn"):
        build_model("resnet99", (32, 32, 32), 1)


@pytest.mark.usefixtures("_bfloat16")
def test_logit_and_standardised_volume_are_float32_under_a_mixed_policy() -> None:
    model = build_model("seed_cnn", (10, 10, 10), 2)
    assert model.inputs[0].dtype == "uint8"
    assert model.get_layer("standardise").output.dtype == "float32"
    assert (model.output.shape, model.output.dtype) == ((None, 1), "float32")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16"])
def test_each_channel_gets_zero_mean_and_unit_deviation_over_its_foreground(dtype: str) -> None:
    rng = np.random.default_rng(0)
    volume = np.zeros((2, 6, 5, 4, 2), dtype)
    volume[:, 1:5, 1:4, :, 0] = rng.integers(1, 200, (2, 4, 3, 4))
    volume[:, 2:4, :, 1:, 1] = rng.integers(50, 255, (2, 2, 5, 3))
    out = keras.ops.convert_to_numpy(Standardise()(volume))
    assert out.dtype == np.float32
    for case, channel in np.ndindex(2, 2):
        foreground = volume[case, ..., channel] > 0
        values = volume[case, ..., channel][foreground].astype(np.float64)
        expected = (values - values.mean()) / values.std()
        np.testing.assert_allclose(out[case, ..., channel][foreground], expected, atol=1e-5)
        assert not out[case, ..., channel][~foreground].any()


def test_moments_stay_exact_over_a_million_voxels() -> None:
    volume = np.random.default_rng(0).integers(1, 256, (1, 128, 128, 64, 1)).astype(np.uint8)
    out = keras.ops.convert_to_numpy(Standardise()(volume)).astype(np.float64)
    assert abs(out.mean()) < 1e-5
    assert abs(out.std() - 1) < 1e-5


def test_absent_and_constant_channels_give_zeros() -> None:
    volume = np.zeros((1, 64, 64, 32, 2), np.uint8)
    volume[..., 1] = 255
    out = keras.ops.convert_to_numpy(Standardise()(volume))
    assert not out[..., 0].any()
    assert np.abs(out[..., 1]).max() < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet99"}, "unknown model 'resnet99'; known: seed_cnn"),
        ({"width": 0.0}, "--width must be a positive number: 0"),
        ({"name": "resnet10", "depth": float("nan")}, "--depth must be a positive number: nan"),
        ({"dropout": 1.0}, r"--dropout must lie in \[0, 1\): 1.0"),
        ({"pooling": "sum"}, "--pooling must be one of avg, max, attention: 'sum'"),
        ({"fusion": "middle"}, "--fusion must be one of early, late: 'middle'"),
        ({"name": "slice_cnn", "head": "gru"}, "--head must be one of mean, .*: 'gru'"),
        ({"name": "slice_cnn", "encoder_weights": "x.pth"}, "--encoder_weights must name .*x.pth"),
        ({"name": "resnet10", "head": "lstm"}, "--head lstm: resnet10 has no use for it"),
        ({"encoder_weights": "x.h5"}, "--encoder_weights x.h5: seed_cnn has no use for it"),
        ({"depth": 2.0}, "--depth 2.0: seed_cnn has no use for it"),
        ({"padding": "symmetric"}, "--padding symmetric: seed_cnn has no use for it"),
        ({"name": "densenet121", "padding": "same"}, "--padding same: densenet121 has no use"),
        ({"name": "slice_cnn", "pooling": "max"}, "--pooling max: slice_cnn has no use for it"),
    ],
)
def test_an_impossible_or_useless_option_is_refused_by_its_flag(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        NetworkConfig(**options)


def test_a_search_can_choose_to_start_from_no_weights() -> None:
    assert NetworkConfig(weights="none") == NetworkConfig()


def test_a_network_config_survives_json() -> None:
    config = NetworkConfig(
        name="slice_cnn", width=0.5, dropout=0.1, fusion="late", head="lstm", encoder_weights="x.h5"
    )
    assert NetworkConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_networks_and_their_config_are_pure_keras() -> None:
    root = Path(__file__).resolve().parents[3] / "trainer"
    files = sorted((root / "networks").rglob("*.py"))
    assert len(files) > 7
    for file in files:
        assert "tensorflow" not in re.findall(r"^\s*(?:import|from) (\w+)", file.read_text(), re.M)
    config = (root / "config" / "network.py").read_text()
    assert "keras" not in re.findall(r"^\s*(?:import|from) (\w+)", config, re.M)
