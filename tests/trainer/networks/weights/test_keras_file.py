"""What Keras' files hold, by the paths that Keras 3 gives it."""

from __future__ import annotations

from pathlib import Path

import h5py
import keras
import numpy as np

from trainer.networks.weights.keras_file import read_keras

# Of keras.applications, as TensorFlow's Keras has written them: names in order, then the arrays'.
LAYERS: dict[str, dict[str, tuple[int, ...]]] = {
    "input_1": {},
    "normalization": {"mean:0": (3,), "variance:0": (3,), "count:0": ()},
    "stem_conv": {"stem_conv/kernel:0": (3, 3, 3, 4)},
    "stem_bn": {
        f"stem_bn/{name}:0": (4,) for name in ("gamma", "beta", "moving_mean", "moving_variance")
    },
    "block1a_dwconv": {"block1a_dwconv/depthwise_kernel:0": (3, 3, 4, 1)},
    "block1a_se_reduce": {
        "block1a_se_reduce/kernel:0": (1, 1, 4, 1),
        "block1a_se_reduce/bias:0": (1,),
    },
    "predictions": {"predictions/kernel:0": (4, 10), "predictions/bias:0": (10,)},
}


def test_a_file_of_keras_2_is_read_as_one_of_keras_3(tmp_path: Path) -> None:
    file = tmp_path / "net.h5"
    with h5py.File(file, "w") as opened:
        names = [name.encode() for name in LAYERS]
        # A long list of names is dealt out to several attributes.
        opened.attrs["layer_names0"], opened.attrs["layer_names1"] = names[:3], names[3:]
        for layer, arrays in LAYERS.items():
            group = opened.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in arrays]
            for name, shape in arrays.items():
                kind = np.int64 if name == "count:0" else np.float32
                group[name] = np.zeros(shape, kind)
    found = {path: array.shape for path, array in read_keras(file, archive=False).arrays.items()}
    assert found == {
        **{f"layers/normalization/vars/{place}": (3,) for place in range(2)},
        "layers/conv2d/vars/0": (3, 3, 3, 4),
        **{f"layers/batch_normalization/vars/{place}": (4,) for place in range(4)},
        "layers/depthwise_conv2d/vars/0": (3, 3, 4, 1),
        "layers/conv2d_1/vars/0": (1, 1, 4, 1),
        "layers/conv2d_1/vars/1": (1,),
        "layers/dense/vars/0": (4, 10),
        "layers/dense/vars/1": (10,),
    }


def test_an_optimizers_arrays_and_seeds_are_no_networks(tmp_path: Path) -> None:
    file = tmp_path / "net.weights.h5"
    with h5py.File(file, "w") as opened:
        for path in ("layers/dense/vars/0", "optimizer/vars/1", "metrics/mean/vars/0"):
            opened[path] = np.ones(3, np.float32)
        opened["layers/dropout/seed_generator/vars/0"] = np.ones(2, np.uint32)
        opened["layers/dense/vars/1"] = np.ones(3, np.float16)
    arrays = read_keras(file, archive=False).arrays
    assert set(arrays) == {"layers/dense/vars/0", "layers/dense/vars/1"}
    assert all(array.dtype == np.float32 for array in arrays.values())


def test_a_network_within_one_of_keras_2s_files_is_taken_apart(tmp_path: Path) -> None:
    """It is one layer there, and what is trained stands before all that is not."""
    inner = keras.Sequential([keras.Input((6, 6, 2)), keras.layers.Conv2D(3, 3)])
    inner.add(keras.layers.BatchNormalization())
    inner.add(keras.layers.DepthwiseConv2D(2, use_bias=False))
    inner.add(keras.layers.BatchNormalization(moving_mean_initializer="ones"))
    whole = keras.Sequential([keras.Input((6, 6, 2)), inner, keras.layers.Dense(1)])
    whole.save(tmp_path / "net.h5")
    inner.save_weights(tmp_path / "inner.weights.h5")
    found = read_keras(tmp_path / "net.h5", archive=False).arrays
    expected = read_keras(tmp_path / "inner.weights.h5", archive=False).arrays
    assert set(found) == {*expected, "layers/dense/vars/0", "layers/dense/vars/1"}
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array)
