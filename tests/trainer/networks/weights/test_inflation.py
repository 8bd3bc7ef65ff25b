"""Weights of 2D networks in 3D: a volume that is one image in all slices is that image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

from beam_jobs.common.cli import UsageError
from tests.trainer.networks.weights import torch_format, torch_reference
from trainer.config.network import NetworkConfig
from trainer.networks.blocks import Layout, Parts
from trainer.networks.layers import DepthwiseConv3D
from trainer.networks.registry import build_model
from trainer.networks.weights.inflation import inflated

h5py = pytest.importorskip("h5py")


@pytest.mark.parametrize(
    ("padding", "length", "size", "stride"),
    [("same", 8, 3, 2), ("same", 9, 5, 1), ("symmetric", 8, 7, 2), ("symmetric", 9, 3, 2)],
)
def test_an_inflated_kernel_answers_a_constant_volume_as_the_image(
    padding: str, length: int, size: int, stride: int
) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(size, size, 2, 3)).astype(np.float32)
    image = rng.normal(size=(1, length, 10, 2)).astype(np.float32)
    volume = np.repeat(image[:, :, :, None], length - 2, axis=3)
    parts = Parts(config=NetworkConfig(), layout=Layout(padding=padding, edge=True))
    x = keras.Input(volume.shape[1:])
    network = keras.Model(x, parts.conv(x, 3, size, stride))
    network.set_weights([inflated(kernel, size)])
    x = keras.Input(image.shape[1:])
    flat = keras.Model(x, parts.conv(x, 3, size, stride))
    flat.set_weights([kernel])
    found, expected = np.asarray(network(volume)), np.asarray(flat(image))
    np.testing.assert_allclose(
        found, np.repeat(expected[:, :, :, None], found.shape[3], 3), atol=1e-4
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("length", [8, 9, 11])
def test_a_depthwise_convolution_without_padding_is_the_middle_of_one_with(
    length: int, stride: int
) -> None:
    size = 3
    x = np.random.default_rng(0).normal(size=(2, length, 7, 8, 3)).astype(np.float32)
    valid = DepthwiseConv3D(size, stride, "valid")
    found = np.asarray(valid(x))
    same = DepthwiseConv3D(size, 1)
    same.build(x.shape)
    same.set_weights(valid.get_weights())
    expected = np.asarray(same(x))[:, 1:-1, 1:-1, 1:-1][:, ::stride, ::stride, ::stride]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert valid.compute_output_shape(x.shape) == found.shape
    again = DepthwiseConv3D.from_config(valid.get_config())
    assert again.padding == "valid"
    assert "padding" not in same.get_config()  # as in the files of earlier versions


def _randomised(network: keras.Model) -> keras.Model:
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            layer.set_weights(
                [
                    rng.uniform(0.5, 1.5, size),
                    *(rng.normal(0, 0.3, size) for _ in range(2)),
                    rng.uniform(0.3, 2, size),
                ]
            )
        elif isinstance(layer, keras.layers.Conv2D) and layer.use_bias:
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, rng.normal(0, 0.3, bias.shape)])
    return network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "file", "top", "grid", "channels"),
    [
        ("efficientnet_b0", "EfficientNetB0", "net.keras", True, (33, 40, 9), 2),
        ("efficientnet_b0", "EfficientNetB0", "legacy.h5", False, (32, 37, 10), 1),
        ("efficientnet_b1", "EfficientNetB1", "net.weights.h5", False, (45, 32, 9), 3),
        ("resnet50", "ResNet50", "net.h5", True, (33, 40, 9), 2),
        ("resnet50", "ResNet50", "legacy.h5", False, (38, 35, 8), 4),
        ("resnet50", "ResNet50", "net.weights.h5", False, (32, 33, 8), 1),
        ("resnet50", "ResNet50", "nested.keras", False, (37, 32, 12), 3),
    ],
)
def test_a_volume_of_one_image_gives_the_2d_networks_pooled_features(
    name: str,
    kind: str,
    file: str,
    top: bool,
    grid: tuple[int, int, int],
    channels: int,
    tmp_path: Path,
) -> None:
    make = getattr(keras.applications, kind)
    # Seven classes: a file says itself what it holds, it need not be ImageNet's thousand.
    shape = (224, 224, 3) if top else (64, 64, 3)
    donor = _randomised(make(weights=None, include_top=top, input_shape=shape, classes=7))
    path = tmp_path / file
    if file == "legacy.h5":  # the older layout, in which keras.applications' own files are
        with h5py.File(path, "w") as group:
            legacy_h5_format.save_weights_to_hdf5_group(group, donor)
    elif file == "nested.keras":
        x = keras.Input(shape)
        pooled = keras.layers.GlobalAveragePooling2D()(donor(x))
        keras.Model(x, keras.layers.Dense(2, activation="softmax")(pooled)).save(path)
    else:
        (donor.save_weights if ".weights." in file else donor.save)(path)

    rows, columns, slices = grid
    bare = make(weights=None, include_top=False, input_shape=(rows, columns, 3), pooling="avg")
    bare.set_weights(donor.get_weights()[: len(bare.weights)])
    begins = next(layer for layer in bare.layers if layer.name in ("stem_conv_pad", "conv1_pad"))
    image = np.random.default_rng(1).normal(size=(2, rows, columns, 1)).astype(np.float32)
    expected = _answer(keras.Model(begins.input, bare.output), np.repeat(image, 3, axis=-1))

    config = NetworkConfig(name=name, weights=str(path), dropout=0.0)
    model = build_model(config, grid, channels)
    features = keras.Model(model.get_layer("standardise").output, model.get_layer("logit").input)
    volume = np.repeat(image[:, :, :, None], slices, axis=3)
    found = _answer(features, np.repeat(volume, channels, axis=-1))
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())
    assert expected.std() > 0.1
    assert "inflated from 2D" in model.started_from
    assert "new: logit" in model.started_from


def _answer(network: keras.Model, x: Any) -> Any:
    return np.asarray(network(x))


def _torchvisions(name: str, file: Path) -> dict[str, Any]:
    """A state dict with torchvision's names, shapes and head, in a file."""
    arrays = torch_reference.state_dict(name, width=0.125, channels=3, shortcut="B", classes=10)
    for key, array in arrays.items():
        if array.ndim == 5:
            arrays[key] = array.mean(axis=-1)
        elif key.endswith("running_var"):
            arrays[key] = array**0.2  # 0.1 to 1: the features of 50 layers stay in float32
    write = torch_format.write_safetensors if file.suffix == ".safetensors" else None
    (write or torch_format.write_torch)(file, arrays)
    return arrays


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("grid", [(33, 38, 8), (36, 35, 9)], ids=["odd", "even"])
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_a_volume_of_one_image_gives_torchvisions_pooled_features(
    name: str, grid: tuple[int, int, int], suffix: str, tmp_path: Path
) -> None:
    arrays = _torchvisions(name, tmp_path / f"net{suffix}")
    image = np.random.default_rng(1).normal(size=grid[:2]).astype(np.float32)
    expected = torch_reference.features_of_image(name, arrays, np.stack([image] * 3))
    for channels in (1, 4):
        file = str(tmp_path / f"net{suffix}")
        config = NetworkConfig(name=name, width=0.125, weights=file)
        model = build_model(config, grid, channels)
        features = keras.Model(
            model.get_layer("standardise").output, model.get_layer("logit").input
        )
        volume = np.broadcast_to(image[None, :, :, None, None], (1, *grid, channels))
        found = _answer(features, volume)[0]
        np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())
        assert model.started_from.endswith("new: logit; not used: fc.weight, fc.bias")


@pytest.mark.slow
def test_weights_of_images_start_their_3d_twins_alone(tmp_path: Path) -> None:
    file = tmp_path / "net.weights.h5"
    keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=(32, 32, 3)
    ).save_weights(file)
    for name, said in (
        ("densenet121", "weights of images, from which .* start .*, not densenet121"),
        ("resnet18", "weights of images, from which .* start .*, not resnet18"),
        ("resnet50", "layers/.*conv2d.* is .*resnet50's"),
        ("efficientnet_b1", "net.weights.h5: layers/.*"),
    ):
        with pytest.raises(UsageError, match=rf"^--weights: .*{said}"):
            build_model(NetworkConfig(name=name, weights=str(file)), (32, 32, 32), 1)
