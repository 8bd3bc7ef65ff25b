"""Stands for a trial of the search in tests: no TensorFlow, no training.

`python fake_trial.py REQUEST`: the objective follows from the hyperparameters alone, so that a test
knows which trial is the best. What else it does environment variables say:

    FAKE_SECONDS   a trial takes so long
    FAKE_FITS      a batch above it raises TensorFlow's error of a full memory
    FAKE_KILLED    a batch above it is killed, as the kernel does for its memory
    FAKE_DIVERGES  trials of this learning rate end with a loss that is no number
    FAKE_PACE      an epoch would take so many seconds, which whoever asks is told
    FAKE_STARTS    a file that gets a line for each start: trial, batch size, process
"""

import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any


def objective(values: dict[str, Any]) -> float:
    """Best at a learning rate of 0.001 and a width of 1."""
    rate = float(values.get("learning_rate", 3e-3))
    listed = {3e-05: 0.5, 0.0001: 0.6, 0.0003: 0.7, 0.001: 0.8, 0.003: 0.55}
    off = 0.8 - 0.15 * abs(math.log10(rate / 0.001))  # of a range
    return listed.get(rate, max(0.0, off)) + 0.05 * float(values.get("width", 1.0))


def main() -> int:
    file = Path(sys.argv[1])
    request = json.loads(file.read_text())
    # As the real one: it ends with the process that started it.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    batch, values = request["config"]["batch_size"], request["values"]
    if starts := os.environ.get("FAKE_STARTS"):
        with open(starts, "a") as stream:
            stream.write(f"{request['trial']} {batch} {os.getpid()}\n")
    if (pace := os.environ.get("FAKE_PACE")) and (told := os.environ["VOXELBEAM_PACE"]):
        members, epochs = len(request["folds"]), request["config"]["epochs"]
        each = {"epoch_seconds": float(pace), "end_seconds": 0.0}
        Path(told).write_text(json.dumps({**each, "members": members, "epochs": epochs}))
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    if batch > int(os.environ.get("FAKE_FITS", "1000")):
        print("Traceback (most recent call last):", file=sys.stderr)
        print(
            "tensorflow.python.framework.errors_impl.ResourceExhaustedError: Graph execution "
            "error: OOM when allocating tensor with shape[8,64,126,126,30]",
            file=sys.stderr,
        )
        return 1
    if batch > int(os.environ.get("FAKE_KILLED", "1000")):
        os.kill(os.getpid(), signal.SIGKILL)
    if str(values.get("learning_rate")) == os.environ.get("FAKE_DIVERGES"):
        attempt = {"kind": "diverged", "reason": "fold-0, epoch 1: the loss is nan"}
        (file.parent / "attempt.json").write_text(json.dumps(attempt))
        return 0
    value = objective(values)
    result = {
        "status": "completed",
        "objective": value,
        "epochs": request["config"]["epochs"],
        "batch_size": batch,
        "seconds": 0.1,
        "parameters": 1000,
    }
    temporary = file.parent / ".result.json"
    temporary.write_text(json.dumps(result))
    temporary.replace(file.parent / "result.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
