"""What every network must pass: `trainer.testing`'s checks, and that of its smallest grid.

`check` runs them: those of a small network in this process, those of any other in one of its own,
`python -m tests.trainer.networks.network_battery CASE`. TensorFlow and its kernels keep memory for
every graph they have seen; one after the other in one process the networks need 13 GB.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from serving.model.graph import in_float32
from trainer.config.network import HEADS, MODELS, NetworkConfig
from trainer.networks.registry import _NETWORKS, build_model
from trainer.testing import NETWORK_CHECKS, NetworkUnderTest, exports, logits

GRID = (12, 12, 10)
# Where a network halves five times: on less, its last maps are one voxel of eight patients, whose
# statistics magnify every rounding (EfficientNet B0's logits in bfloat16: 0.8 off, here 0.05).
DEEP_GRID = (32, 32, 24)
DEEP = ("resnet34", "resnet50", "se_resnet", "densenet", "efficientnet", "slice_efficientnet")
# More layers, and so more to magnify: B1's logits in bfloat16 were 0.5 off on DEEP_GRID, here 0.08.
DEEPER_GRID = (48, 48, 32)
DEEPER = tuple(f"efficientnet_b{size}" for size in range(1, 8))
# Trained with a rate that falls to zero, so that BatchNormalization's averages catch up with the
# weights: at a constant rate B4's logits in bfloat16 were 0.22 off, here 0.14.
SETTLED = DEEPER[3:]
CHANNELS = 2

SMALL = ("seed_cnn", "resnet10-narrow", "slice_cnn-transformer")
CASES = {
    **{name: NetworkConfig(name=name) for name in MODELS},
    **{f"slice_cnn-{head}": NetworkConfig(name="slice_cnn", head=head) for head in HEADS[1:]},
    "resnet10-narrow": NetworkConfig(name="resnet10", width=0.25),
    "resnet10-symmetric": NetworkConfig(name="resnet10", padding="symmetric", width=0.25),
    "resnet10-max": NetworkConfig(name="resnet10", pooling="max"),
    "resnet10-attention": NetworkConfig(name="resnet10", pooling="attention"),
    "resnet10-late": NetworkConfig(name="resnet10", fusion="late", width=0.5, depth=1.5),
    "efficientnet_b0-late": NetworkConfig(name="efficientnet_b0", fusion="late", width=0.5),
    "slice_cnn-late": NetworkConfig(name="slice_cnn", fusion="late", head="lstm", width=0.5),
    "slice_efficientnet_b0-late": NetworkConfig(
        name="slice_efficientnet_b0", fusion="late", head="transformer"
    ),
}


def grid_of(case: str) -> tuple[int, int, int]:
    """Voxels along (row, column, slice) of the volumes that a case is trained on.

    Attention over one voxel has nothing to choose, and no gradient.
    """
    if CASES[case].name in DEEPER:
        return DEEPER_GRID
    deep = CASES[case].name.startswith(DEEP) or CASES[case].pooling == "attention"
    return DEEP_GRID if deep else GRID


@functools.lru_cache(maxsize=1)
def tried(case: str) -> NetworkUnderTest:
    """The network of a case; the last one alone is kept."""
    return NetworkUnderTest(
        config=CASES[case],
        shape=grid_of(case),
        channels=CHANNELS,
        step_shape=grid_of(case) if CASES[case].pooling == "attention" else GRID,
        settles=case in SETTLED,
    )


def smallest_grid_is_answered(network: NetworkUnderTest) -> None:
    """And one voxel less is refused."""
    config = network.config
    smallest = _NETWORKS[config.name].smallest
    model = build_model(config, smallest, 2)
    volumes = np.random.default_rng(0).integers(0, 255, (2, *smallest, 2)).astype(np.uint8)
    assert np.isfinite(logits(model, volumes)).all()
    for axis in range(3):
        rows, columns, slices = (n - (axis == place) for place, n in enumerate(smallest))
        less = rf"{config.name} needs .*grid is {rows}x{columns}x"
        with pytest.raises(UsageError, match=less):
            build_model(config, (rows, columns, slices), 2)


def exports_as_serving_widens(network: NetworkUnderTest) -> None:
    """A mixed member becomes float32 by the very function of the export."""
    exports(network, widened=lambda _, member: in_float32(member, "mixed_bfloat16"))


CHECKS: dict[str, Callable[[NetworkUnderTest], None]] = {
    "smallest grid": smallest_grid_is_answered,
    **NETWORK_CHECKS,
    "exports": exports_as_serving_widens,
}


def check(case: str, name: str) -> None:
    """Runs one of `CHECKS`, or finds out how it went in the case's own process."""
    if case in SMALL:
        CHECKS[name](tried(case))
    elif failure := _failures(case).get(name):
        pytest.fail(failure, pytrace=False)


@functools.lru_cache(maxsize=1)
def _failures(case: str) -> dict[str, str]:
    """Check → how it failed, of those that did."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.networks.network_battery", case],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return dict.fromkeys(CHECKS, f"exit code {done.returncode}: {done.stderr[-3000:]}")
    failures: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return failures


def main(case: str) -> None:
    """All checks of a case; prints the failures as JSON."""
    failures = {}
    for name, one in CHECKS.items():
        try:
            one(tried(case))
        except Exception:
            failures[name] = traceback.format_exc()
    print(json.dumps(failures))


if __name__ == "__main__":
    main(sys.argv[1])
