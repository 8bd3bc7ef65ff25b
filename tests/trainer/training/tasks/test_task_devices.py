"""Two devices of one process learn findings and values as one device does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[4]
# A binary's and a class's losses are summed as these are.
TASKS = ("multilabel", "regression")
STEPS = (
    f"TASKS = {TASKS!r}"
    + """
import json
import numpy as np
import tensorflow as tf
from tests.datasets import AGE_AND_SITE, TARGETS
from tests.trainer.training.tasks.test_task_steps import _batch, _trainee
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

def learnt(task, strategy):
    trainee = _trainee(
        TARGETS[task], AGE_AND_SITE, strategy=strategy,
        network={"name": "seed_cnn", "width": 0.125, "dropout": 0.0},
        optimizer={"learning_rate": 0.01, "schedule": "constant", "ema": 0.9, "clip_norm": 1.0},
    )
    batch = _batch(task)
    losses = [float(trainee.step(batch, number, 4)) for number in range(2)]
    answers = trainee.settle()([batch["volume"], batch["covariates"]], training=False)
    known = [v.numpy().tolist() for v in trainee.evaluated.get_layer("known").variables]
    return [losses, np.asarray(answers).tolist(), known]

print(json.dumps({t: [learnt(t, s) for s in (tf.distribute.get_strategy(), two)] for t in TASKS}))
"""
)


@pytest.mark.slow
def test_two_devices_learn_findings_and_values_as_one_does() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEPS], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert tuple(found) == TASKS
    for task, (one, two) in found.items():
        np.testing.assert_allclose(two[0], one[0], rtol=1e-2, atol=1e-3, err_msg=task)
        spread = max(1.0, float(np.std(one[1])))
        np.testing.assert_allclose(two[1], one[1], atol=0.02 * spread, err_msg=task)
        assert two[2] == one[2], task
