"""PyTorch's weights in our ResNets: the same features, from every format."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
from keras import layers

from beam_jobs.common.contract_json import ContractError
from tests.trainer.networks.weights import torch_format, torch_reference
from trainer.config.network import NetworkConfig
from trainer.networks.registry import build_model
from trainer.networks.weights.torch_names import resnet_arrays

WIDTH = 0.125
MIXED, EVEN = (12, 9, 7), (12, 10, 8)  # axes of both kinds at every halving
TOLERANCE = 1e-4  # of the largest feature
Arrays = dict[str, npt.NDArray[Any]]


def network(name: str, channels: int = 1, grid: tuple[int, int, int] = MIXED) -> keras.Model:
    """In PyTorch's layout, but for epsilon and shortcuts, which are ours."""
    return build_model(NetworkConfig(name=name, width=WIDTH, padding="symmetric"), grid, channels)


def before_the_logit(model: keras.Model) -> keras.Model:
    """What follows "standardise", up to the features."""
    return keras.Model(model.get_layer("standardise").output, model.get_layer("logit").input)


def require_same_features(
    found: keras.Model, name: str, arrays: Arrays, grid: tuple[int, int, int], channels: int
) -> None:
    x = np.random.default_rng(1).normal(size=(*grid, channels)).astype(np.float32)
    expected = torch_reference.features(name, arrays, np.moveaxis(x, -1, 0))
    answered = np.asarray(before_the_logit(found)(x[None]))[0]
    np.testing.assert_allclose(answered, expected, atol=TOLERANCE * np.abs(expected).max())


def test_resnet10_that_starts_from_a_file_answers_as_pytorch_does(tmp_path: Path) -> None:
    arrays = torch_reference.state_dict("resnet10", width=WIDTH, channels=2, shortcut="B")
    file = tmp_path / "net.pth"
    torch_format.write_torch(file, arrays, legacy=True)
    model = build_model(NetworkConfig(name="resnet10", width=WIDTH, weights=str(file)), MIXED, 2)
    require_same_features(model, "resnet10", arrays, MIXED, 2)


@pytest.mark.slow
@pytest.mark.parametrize("shortcut", ["A", "B", "B+bias"])
@pytest.mark.parametrize("name", torch_reference.BLOCKS)
def test_every_resnet_with_every_shortcut_answers_as_pytorch_does(
    tmp_path: Path, name: str, shortcut: str
) -> None:
    for channels, grid, file, write in (
        (1, EVEN, tmp_path / "net.pth", torch_format.write_torch),
        (3, MIXED, tmp_path / "net.safetensors", torch_format.write_safetensors),
    ):
        arrays = torch_reference.state_dict(
            name, width=WIDTH, channels=channels, shortcut=shortcut, classes=5
        )
        write(file, arrays)
        config = NetworkConfig(name=name, width=WIDTH, weights=str(file))
        require_same_features(build_model(config, grid, channels), name, arrays, grid, channels)


def test_shortcuts_without_weights_have_none_to_train(tmp_path: Path) -> None:
    """An identity with a BatchNormalization would be one no more in training."""
    arrays = torch_reference.state_dict("resnet10", width=WIDTH, channels=1, shortcut="A")
    torch_format.write_torch(tmp_path / "net.pth", arrays)
    config = NetworkConfig(name="resnet10", width=WIDTH, weights=str(tmp_path / "net.pth"))
    model = build_model(config, MIXED, 1)
    held = [name for name in arrays if not name.endswith("num_batches_tracked")]
    assert len(model.weights) == len(held) + len(model.get_layer("logit").weights)
    require_same_features(model, "resnet10", arrays, MIXED, 1)


@pytest.mark.slow
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_a_saved_network_of_such_a_start_starts_another_in_its_layout(
    tmp_path: Path, shortcut: str
) -> None:
    arrays = torch_reference.state_dict("resnet18", width=WIDTH, channels=1, shortcut=shortcut)
    torch_format.write_torch(tmp_path / "net.pth", arrays)
    for first, then in (("net.pth", "net.keras"), ("net.keras", "again.keras")):
        config = NetworkConfig(name="resnet18", width=WIDTH, weights=str(tmp_path / first))
        model = build_model(config, EVEN, 1)
        require_same_features(model, "resnet18", arrays, EVEN, 1)
        model.save(tmp_path / then)


@pytest.mark.slow
def test_another_epsilon_is_taken_up_by_gamma() -> None:
    arrays = torch_reference.state_dict("resnet18", width=WIDTH, channels=1, shortcut="B")
    model = network("resnet18", 1, EVEN)
    assert {
        layer.epsilon for layer in model.layers if isinstance(layer, layers.BatchNormalization)
    } == {1e-3}
    for variable, _, value in resnet_arrays(model, arrays).arrays:
        variable.assign(value)
    require_same_features(model, "resnet18", arrays, EVEN, 1)


@pytest.mark.slow
def test_late_fusion_shows_each_modality_to_the_network_of_the_file(tmp_path: Path) -> None:
    arrays = torch_reference.state_dict("resnet10", width=WIDTH, channels=1, shortcut="A")
    file = tmp_path / "net.pth"
    torch_format.write_torch(file, arrays)
    config = NetworkConfig(name="resnet10", width=WIDTH, weights=str(file), fusion="late")
    model = before_the_logit(build_model(config, MIXED, 2))
    x = np.random.default_rng(1).normal(size=(*MIXED, 2)).astype(np.float32)
    expected = [torch_reference.features("resnet10", arrays, x[None, ..., i]) for i in range(2)]
    np.testing.assert_allclose(np.asarray(model(x[None]))[0], np.ravel(expected), atol=TOLERANCE)


@pytest.mark.slow
def test_a_pooling_with_weights_of_its_own_keeps_them(tmp_path: Path) -> None:
    arrays = torch_reference.state_dict("resnet10", width=WIDTH, channels=1, shortcut="B")
    file = tmp_path / "net.pth"
    torch_format.write_torch(file, arrays)
    config = NetworkConfig(name="resnet10", width=WIDTH, weights=str(file), pooling="attention")
    model = build_model(config, MIXED, 1)
    kernel = np.moveaxis(arrays["conv1.weight"], (0, 1), (4, 3))
    np.testing.assert_array_equal(model.layers[2].get_weights()[0], kernel)


@pytest.fixture(scope="module")
def resnet10() -> keras.Model:
    return network("resnet10")


@pytest.fixture(scope="module")
def arrays10() -> Arrays:
    return torch_reference.state_dict("resnet10", width=WIDTH, channels=1, shortcut="B", classes=2)


def test_every_weight_before_the_logit_is_given_and_the_head_is_named(
    resnet10: keras.Model, arrays10: Arrays
) -> None:
    mapped = resnet_arrays(resnet10, arrays10)
    assert mapped.ignored == ("fc.weight", "fc.bias")
    given = {id(variable) for variable, _, _ in mapped.arrays}
    assert len(given) == len(mapped.arrays)
    left = [weight.path for weight in resnet10.weights if id(weight) not in given]
    assert left == ["logit/kernel", "logit/bias"]
    for variable, _, value in mapped.arrays:
        assert tuple(variable.shape) == value.shape


def test_what_all_names_begin_with_may_stand(resnet10: keras.Model, arrays10: Arrays) -> None:
    wrapped = {f"module.net.{name}": value for name, value in arrays10.items()}
    names = [name for _, name, _ in resnet_arrays(resnet10, wrapped).arrays]
    assert names == [name for _, name, _ in resnet_arrays(resnet10, arrays10).arrays]


@pytest.mark.parametrize(
    ("gone", "more", "message"),
    [
        (["layer3.0.conv2.weight"], {}, r"^lacks 'layer3.0.conv2.weight' of resnet10$"),
        (["bn1.weight", "bn1.bias"], {}, r"lacks 'bn1.weight' and 1 more of resnet10"),
        (["conv1.weight"], {"stem.weight": 0}, r"lacks 'conv1.weight'.*; has 'stem.weight', for"),
        ([], {"layer1.2.conv1.weight": 0}, r"has 'layer1.2.conv1.weight', for which resnet10"),
        (["layer2.0.downsample.0.weight"], {}, r"^lacks 'layer2.0.downsample.0.weight' of"),
        ([], {"conv1.weight": np.full((8, 1, 7, 7, 7), np.nan)}, "conv1.weight holds numbers that"),
        ([], {"bn1.running_var": np.full(8, -1.0)}, "bn1.running_var holds variances below 0"),
        ([], {"conv1.weight": np.ones((8, 1, 7, 7, 7), np.int8)}, "conv1.weight holds int8, not"),
    ],
)
def test_a_state_dict_of_another_network_is_refused_by_the_names_that_differ(
    resnet10: keras.Model, arrays10: Arrays, gone: list[str], more: Arrays, message: str
) -> None:
    tensors = {name: value for name, value in arrays10.items() if name not in gone} | more
    with pytest.raises(ContractError, match=message):
        resnet_arrays(resnet10, {name: np.asarray(value) for name, value in tensors.items()})


def test_a_network_that_pytorch_has_under_other_names_is_refused(arrays10: Arrays) -> None:
    with pytest.raises(ContractError, match=r"from which resnet10, .* start, not seed_cnn"):
        resnet_arrays(build_model("seed_cnn", (10, 10, 10), 1), arrays10)


# PyTorch itself, in whatever interpreter has it.

DUMP = """
import sys, numpy as np, torch
from monai.networks import nets
torch.manual_seed(0)
directory, name, shortcut, bias, channels = sys.argv[1:]
channels = int(channels)
net = getattr(nets, name)(n_input_channels=channels, num_classes=2, widen_factor=0.125,
                          shortcut_type=shortcut, bias_downsample=bias == "bias").eval()
for key, value in net.state_dict().items():
    if key.endswith("running_var"):
        value.uniform_(0.2, 2.0)
    elif key.endswith(("running_mean", "bias")):
        value.normal_(0.0, 0.2)
torch.save(net.state_dict(), f"{directory}/new.pth")
torch.save({"state_dict": torch.nn.DataParallel(net).state_dict()}, f"{directory}/old.pth",
           _use_new_zipfile_serialization=False)
try:
    from safetensors.torch import save_file
    save_file(net.state_dict(), f"{directory}/net.safetensors")
except ImportError:
    pass
net.fc = torch.nn.Identity()
for kind, grid in (("odd", (17, 13, 9)), ("even", (16, 12, 10))):
    x = np.random.default_rng(0).normal(size=(2, *grid, channels)).astype(np.float32)
    with torch.no_grad():
        y = net(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).numpy()
    np.savez(f"{directory}/{kind}.npz", x=x, y=y)
"""


@pytest.fixture(scope="module")
def torch_python() -> str:
    """An interpreter with PyTorch and MONAI: VOXELBEAM_TEST_TORCH_PYTHON, or the tests' own."""
    python = os.environ.get("VOXELBEAM_TEST_TORCH_PYTHON") or shutil.which("python") or "python"
    asked = subprocess.run([python, "-c", "import torch, monai"], capture_output=True)
    if asked.returncode:
        pytest.skip(
            f"{python} has no torch and monai; VOXELBEAM_TEST_TORCH_PYTHON may name one that has"
        )
    return python


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shortcut", "bias", "channels"),
    [
        ("resnet10", "B", "none", 1),
        ("resnet10", "B", "bias", 3),
        ("resnet18", "A", "none", 1),
        ("resnet18", "B", "bias", 4),
        ("resnet34", "A", "none", 2),
        ("resnet50", "B", "none", 1),
        ("resnet50", "A", "none", 1),
        ("resnet50", "B", "bias", 2),
    ],
)
def test_features_are_those_of_pytorch_and_monai(
    tmp_path: Path, torch_python: str, name: str, shortcut: str, bias: str, channels: int
) -> None:
    given = [str(tmp_path), name, shortcut, bias, str(channels)]
    subprocess.run([torch_python, "-c", DUMP, *given], check=True, capture_output=True)
    for kind in ("odd", "even"):
        with np.load(tmp_path / f"{kind}.npz", allow_pickle=False) as stored:
            x, expected = stored["x"], stored["y"]
        files = sorted((*tmp_path.glob("*.pth"), *tmp_path.glob("*.safetensors")))
        assert len(files) >= 2
        for file in files:
            config = NetworkConfig(name=name, width=WIDTH, weights=str(file))
            model = before_the_logit(build_model(config, x.shape[1:4], channels))
            found = np.asarray(model(x, training=False))
            np.testing.assert_allclose(
                found, expected, atol=TOLERANCE * max(1.0, np.abs(expected).max())
            )
