"""What TensorFlow makes of this machine, and a convolution tried: run apart (`apart.tried`).

Which precision and whether XLA is what `trainer.training.devices` says. The convolution is Keras's
layer under its policy, forward and gradient, held against numpy in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
# Of what is compared, against the largest number in it: some units in the last place, of 24 bits in
# float32, 11 in float16 and in TF32, as which GPUs multiply float32, and 8 in bfloat16.
_MOST_ERROR = {"float32": 1e-5, "mixed_float16": 4e-3, "mixed_bfloat16": 3e-2}
_SIDE, _IN, _OUT = 12, 8, 16  # voxels, and channels as tensor cores want them


def facts() -> dict[str, Any]:
    """What TensorFlow and Keras are, and what they see.

    Returns:
      version: TensorFlow's; backend: Keras's; build: of `tf.sysconfig.get_build_info`;
      gpus: name and compute capability of each; precision and xla: what "auto" means here.
    """
    import keras
    import tensorflow as tf

    from trainer.training.devices import resolve_precision, uses_xla

    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    build = tf.sysconfig.get_build_info()
    return {
        "version": tf.__version__,
        "backend": keras.backend.backend(),
        "build": {
            name: build[name]
            for name in (
                "is_cuda_build",
                "cuda_version",
                "cudnn_version",
                "cuda_compute_capabilities",
            )
            if name in build
        },
        "gpus": [
            {"name": one.get("device_name", ""), "capability": one.get("compute_capability")}
            for one in details
        ],
        "precision": resolve_precision("auto"),
        "xla": uses_xla("auto", max(1, len(gpus))),
    }


def convolution(device: str, precision: str, xla: bool) -> float:
    """One 3D convolution, its forward pass and its gradients.

    Args:
      device: "CPU:0", "GPU:1".
      precision: a policy of Keras's.
      xla: compile it.

    Returns:
      The largest error of outputs and gradients, over the largest number among them.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    random = np.random.default_rng(1)
    images = random.standard_normal((2, _SIDE, _SIDE, _SIDE, _IN)).astype(np.float32)
    kernel = random.standard_normal((3, 3, 3, _IN, _OUT)).astype(np.float32)
    weights = random.standard_normal((2, _SIDE - 2, _SIDE - 2, _SIDE - 2, _OUT)).astype(np.float32)
    with tf.device(f"/{device}"):
        layer = keras.layers.Conv3D(_OUT, 3, use_bias=False, dtype=keras.DTypePolicy(precision))
        layer.build(images.shape)
        layer.set_weights([kernel])

        @tf.function(jit_compile=xla)  # type: ignore[untyped-decorator]
        def step(x: Any, w: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.cast(layer(x), tf.float32)
                loss = tf.reduce_sum(y * w)
            return y, *tape.gradient(loss, [x, layer.kernel.value])

        found = [one.numpy() for one in step(tf.constant(images), tf.constant(weights))]
    return max(
        float(np.abs(one - right).max() / np.abs(right).max())
        for one, right in zip(found, _expected(images, kernel, weights), strict=True)
    )


def most_error(device: str, precision: str) -> float:
    """How large `convolution`'s error may be where all is well."""
    tf32 = precision == "float32" and not device.startswith("CPU")
    return _MOST_ERROR["mixed_float16" if tf32 else precision]


def _expected(
    images: npt.NDArray[np.float32],
    kernel: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
) -> list[npt.NDArray[np.float64]]:
    """Outputs, and the gradients by images and kernel of their sum weighted by `weights`."""
    import numpy as np

    x, k, w = (one.astype(np.float64) for one in (images, kernel, weights))
    outputs, by_images, by_kernel = np.zeros(w.shape), np.zeros(x.shape), np.zeros(k.shape)
    side = w.shape[1]
    for at in np.ndindex(k.shape[:3]):
        part = (slice(None), *(slice(start, start + side) for start in at))
        outputs += x[part] @ k[at]
        by_images[part] += w @ k[at].T
        by_kernel[at] = np.tensordot(x[part], w, axes=((0, 1, 2, 3), (0, 1, 2, 3)))
    return [outputs, by_images, by_kernel]
