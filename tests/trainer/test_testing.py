"""The checks that authors of networks run: what passes them, and how what does not is told."""

from __future__ import annotations

import pytest

from tests.datasets import TARGETS
from tests.trainer.networks.own_networks import HERE
from trainer.config.network import NetworkConfig
from trainer.testing import NETWORK_CHECKS, check_network

SHAPE = (12, 12, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["feature_map", "Subclassed", "in_turn"])
def test_a_network_of_each_form_passes(name: str) -> None:
    learnt = {"growth": 16} if name == "feature_map" else {}
    config = NetworkConfig(name=f"{HERE}:{name}", options=learnt)
    slow = [check for check in NETWORK_CHECKS if check != "learns" or learnt]
    check_network(config, shape=SHAPE, checks=slow)


@pytest.mark.slow
def test_a_built_in_network_passes_by_its_name() -> None:
    check_network("seed_cnn", shape=SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("name", ["seed_cnn", f"{HERE}:labelled"])
def test_a_network_of_every_task_passes(name: str, task: str) -> None:
    # A linear map of pooled features learns no order of values in 40 steps; seed_cnn does.
    slow = [check for check in NETWORK_CHECKS if check != "learns" or name == "seed_cnn"]
    check_network(name, shape=SHAPE, checks=slow, target=TARGETS[task])


def test_every_check_that_fails_has_a_line() -> None:
    checks = ["builds the same twice", "step in float32", "step in mixed_bfloat16"]
    with pytest.raises(AssertionError) as raised:
        check_network(f"{HERE}:rounded", shape=SHAPE, checks=checks)
    heading, *lines = str(raised.value).splitlines()
    assert heading == f"{HERE}:rounded does not pass"
    assert [line.partition(": ")[0] for line in lines] == checks[1:]
    assert lines[0].endswith("a gradient reaches 50% of the weights")


def test_no_such_check_is_an_error() -> None:
    with pytest.raises(KeyError, match="learnt"):
        check_network("seed_cnn", shape=SHAPE, checks=["learnt"])
