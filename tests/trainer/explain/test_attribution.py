"""Attributions on networks whose answer is known, and on those of the registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
from keras import layers

from trainer.config.network import NetworkConfig
from trainer.explain.attribution import Attribution, mean_of, rank_correlation
from trainer.explain.explainer import Explainer, explainable, randomised
from trainer.networks.registry import Standardise, build_model

SHAPE = (12, 11, 10)


def _volume(channels: int = 2, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Noise in a box, background around it."""
    volume = np.zeros((*SHAPE, channels), np.uint8)
    rng = np.random.default_rng(seed)
    volume[2:10, 1:9, 1:9] = rng.integers(20, 220, (8, 8, 8, channels))
    return volume


def _network(
    inner: Callable[[Any], Any], *, shape: tuple[int, int, int] = SHAPE, channels: int = 1
) -> keras.Model:
    volume = keras.Input((*shape, channels), dtype="uint8", name="volume")
    return keras.Model(volume, inner(Standardise(name="standardise")(volume)))


def _standardised(volume: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Each channel over its own foreground, as numpy does it."""
    result = np.zeros(volume.shape)
    for channel in range(volume.shape[-1]):
        values = volume[..., channel].astype(np.float64)
        inside = values > 0
        result[inside, channel] = (values[inside] - values[inside].mean()) / values[inside].std()
    return result


def test_of_a_linear_network_each_voxel_gets_its_weight_times_its_value() -> None:
    model = _network(lambda x: layers.Dense(1)(layers.Flatten()(x)), channels=2)
    weights = np.random.default_rng(1).normal(size=(np.prod(SHAPE) * 2, 1))
    model.layers[-1].set_weights([weights, np.array([0.7])])
    volume = _volume()
    found = Explainer(model, "integrated_gradients")(volume)
    expected = weights.reshape(volume.shape) * _standardised(volume)
    np.testing.assert_allclose(found.values, expected, atol=1e-4)
    assert found.baseline == pytest.approx(0.7)


@pytest.mark.parametrize("name", ["seed_cnn", "resnet10", "slice_cnn"])
def test_integrated_gradients_sum_to_the_logits_difference_from_the_baseline(name: str) -> None:
    keras.utils.set_random_seed(3)
    model = build_model(NetworkConfig(name=name, width=0.25), SHAPE, 2)
    kernel = model.get_layer("logit").kernel
    kernel.assign(kernel * 200)  # an untrained network hardly answers
    volume = _volume()
    found = Explainer(model, "integrated_gradients")(volume)
    nothing = float(model(np.zeros_like(volume)[None], training=False)[0, 0])
    given = float(model(volume[None], training=False)[0, 0])
    assert abs(given - nothing) > 0.5
    difference = abs(found.values.sum() - (given - nothing))
    assert difference <= 0.05 * abs(given - nothing)
    assert found.complete
    assert (found.values[volume == 0] == 0).all()
    assert (found.values[volume > 0] != 0).mean() > 0.9


def test_a_step_in_the_gradient_takes_more_steps_not_a_wrong_sum() -> None:
    def inner(x: Any) -> Any:
        x = layers.Dense(1, activation="relu")(layers.Flatten()(x))
        return layers.Dense(1)(x)

    model = _network(inner)
    volume = _volume(1)
    weights = np.sign(_standardised(volume)).reshape(-1, 1)
    size = np.abs(_standardised(volume)).sum()
    # The logit leaves 0 only at 97.5 % of the way.
    model.layers[-2].set_weights([weights, np.array([-0.975 * size])])
    model.layers[-1].set_weights([np.ones((1, 1)), np.zeros(1)])
    found = Explainer(model, "integrated_gradients")(volume)
    assert found.steps > 16
    assert found.complete
    assert found.logit == pytest.approx(0.025 * size, rel=1e-3)


def test_attributions_that_do_not_add_up_are_reported() -> None:
    values = np.full((*SHAPE, 1), 1.0 / np.prod(SHAPE))
    assert Attribution(values=values, logit=3.0, baseline=2.0).complete
    assert not Attribution(values=values, logit=3.1, baseline=2.0).complete


def _delta() -> npt.NDArray[np.float32]:
    """A 3x3x3 kernel that passes its middle on."""
    kernel = np.zeros((3, 3, 3, 1, 1), np.float32)
    kernel[1, 1, 1] = 1
    return kernel


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_grad_cam_peaks_at_the_voxel_that_the_feature_map_answers_to(padding: str) -> None:
    """A map of valid convolutions, stretched over the whole grid, would be voxels off."""

    def inner(x: Any) -> Any:
        x = layers.Conv3D(1, 3, padding=padding, activation="relu")(x)
        x = layers.AveragePooling3D(2, padding=padding)(x)
        x = layers.Conv3D(1, 3, padding=padding, activation="relu")(x)
        return layers.Dense(1)(layers.GlobalAveragePooling3D()(x))

    model = _network(inner, shape=(24, 22, 20))
    for layer in model.layers:
        if isinstance(layer, layers.Conv3D):
            layer.set_weights([_delta(), np.zeros(1)])
    model.layers[-1].set_weights([np.ones((1, 1)), np.zeros(1)])
    volume = np.full((24, 22, 20, 1), 100, np.uint8)
    volume[7:9, 13:15, 5:7] = 200
    cam = Explainer(model, "gradcam")(volume).values[..., 0]
    peak = np.unravel_index(cam.argmax(), cam.shape)
    assert np.abs(np.array(peak) - [7.5, 13.5, 5.5]).max() <= 1.0


@pytest.mark.parametrize(
    ("network", "maps"),
    [
        (NetworkConfig(width=0.25), 1),
        (NetworkConfig(width=0.25, fusion="late"), 2),
        (NetworkConfig(name="resnet10", width=0.25), 1),
        (NetworkConfig(name="slice_cnn", width=0.25), 1),
        (NetworkConfig(name="slice_cnn", width=0.25, fusion="late"), 2),
    ],
)
def test_grad_cam_has_a_map_for_each_modality_only_where_they_stay_apart(
    network: NetworkConfig, maps: int
) -> None:
    shape = (32, 24, 20)
    model = build_model(network, shape, 2)
    rng = np.random.default_rng(0)
    cam = Explainer(model, "gradcam")(rng.integers(0, 255, (*shape, 2)).astype(np.uint8))
    assert cam.values.shape == (*shape, maps)
    assert np.ptp(cam.values) > 0


def test_grad_cam_of_a_slice_network_keeps_slices_and_modalities_in_their_places() -> None:
    keras.utils.set_random_seed(0)
    shape = (32, 32, 6)
    model = build_model(NetworkConfig(name="slice_cnn", width=0.25, fusion="late"), shape, 2)
    volume = np.zeros((*shape, 2), np.uint8)
    volume[:, :16, 4, 1] = np.random.default_rng(0).integers(50, 250, (32, 16))
    cam = Explainer(model, "gradcam")(volume).values
    varies = np.ptp(cam, axis=(0, 1)) > 2 * np.ptp(cam[..., 0, 0])
    assert np.argwhere(varies).tolist() == [[4, 1]]


def test_grad_cams_strength_is_what_speaks_for_the_predicted_class() -> None:
    values = np.array([2.0, -3.0]).reshape(1, 1, 2, 1)
    assert Attribution(values=values, logit=1.0).strength("gradcam").ravel().tolist() == [2, 0]
    assert Attribution(values=values, logit=-1.0).strength("gradcam").ravel().tolist() == [0, 3]


def test_random_weights_are_others_and_the_same_for_the_same_seed() -> None:
    model = build_model(NetworkConfig(width=0.25), SHAPE, 1)
    for variable in model.variables:
        if "float" in variable.dtype:
            variable.assign(variable + 0.1)  # trained a little, batch statistics too
    before = model.get_weights()
    first, again, other = (randomised(model, seed).get_weights() for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, before, strict=True) if a.size > 2)
    kernels = [(a, b) for a, b in zip(first, other, strict=True) if a.ndim > 1]
    assert len(kernels) == 6
    assert not any(np.array_equal(a, b) for a, b in kernels)


def test_a_network_of_half_precision_is_explained_in_float32() -> None:
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build_model(NetworkConfig(width=0.25), SHAPE, 1)
    finally:
        keras.config.set_dtype_policy("float32")
    kernel = model.get_layer("logit").kernel
    kernel.assign(kernel * 200)
    wide = explainable(model)
    assert {layer.compute_dtype for layer in wide.layers[1:]} == {"float32"}
    volume = _volume(1)
    found = Explainer(wide, "integrated_gradients")(volume)
    logit = float(model(volume[None], training=False)[0, 0])
    assert abs(logit) > 0.1
    assert found.logit == pytest.approx(logit, rel=0.02)
    assert explainable(wide) is wide


def test_rank_correlation_is_scipys_over_the_voxels_asked_for() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 40)).round(1)  # with ties
    second = second + 0.5 * first
    within = np.arange(40) < 25
    expected = scipy.stats.spearmanr(first[:25], second[:25]).statistic
    assert rank_correlation(first, second, within=within) == pytest.approx(expected)
    assert rank_correlation(first, np.ones(40), within=within) is None
    assert rank_correlation(first, second, within=np.zeros(40, bool)) is None


def test_the_mean_of_members_adds_up_to_their_mean_logit() -> None:
    keras.utils.set_random_seed(5)
    volume = _volume(1)
    each = [
        Explainer(build_model(NetworkConfig(width=0.25), SHAPE, 1), "integrated_gradients")(volume)
        for _ in range(2)
    ]
    both = mean_of(each)
    assert both.logit == pytest.approx((each[0].logit + each[1].logit) / 2)
    np.testing.assert_allclose(both.values, (each[0].values + each[1].values) / 2)
    assert both.complete
