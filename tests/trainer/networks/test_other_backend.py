"""Networks are `keras` and `keras.ops` alone: under JAX they answer as under TensorFlow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.networks.networks_tried import ENVIRONMENT
from tests.trainer.networks.other_backend import CASES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

# Of an answer, relative where it is above 1.
ANSWERS = 1e-5
# Of the norm of all gradients. Mostly 1e-7; where rounding decides which of two voxels is a
# pooling's greater one, another voxel gets the whole gradient (resnet10: 1e-4).
GRADIENT = 5e-3
MOST_GB = 4.0


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """Case → how far it is off. One process a backend, for all."""
    place = tmp_path_factory.mktemp("networks")

    def run(backend: str, what: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.trainer.networks.other_backend",
                what,
                str(place),
                *CASES,
            ],
            cwd=Path(__file__).resolve().parents[3],
            env={**os.environ, **ENVIRONMENT, "KERAS_BACKEND": backend},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]

    assert {one["backend"] for one in run("tensorflow", "write")} == {"tensorflow"}
    found = run("jax", "compare")
    assert {one["backend"] for one in found} == {"jax"}
    yield {one["case"]: one for one in found}
    for file in place.iterdir():
        file.unlink()


@pytest.mark.parametrize("case", CASES)
def test_a_network_answers_under_jax_as_under_tensorflow(
    case: str, compared: dict[str, dict[str, Any]]
) -> None:
    found = compared[case]
    assert found["largest"] > 0.01, "not of nothing"
    assert found["answers"] < ANSWERS
    assert found["gradient"] < GRADIENT


def test_all_networks_fit_in_one_process(compared: dict[str, dict[str, Any]]) -> None:
    assert max(one["peak_gb"] for one in compared.values()) < MOST_GB
