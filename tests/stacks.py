"""Two environments side by side, a process of each that runs commands: for `test_stacks.py`.

    python -m tests.stacks pixels DICOM OUT.json      what the decoders of this environment give
    python -m tests.stacks model MODEL OUT.json       what a model answers there
    python -m tests.stacks search ARGV.json OUT.json  a search, whose trials train nothing
    python -m tests.stacks half TABLE ""              a prediction that is killed half-way

are what tests ask of one environment that no command tells.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.hostile.zygote import ROOT, Outcome, Zygote

OTHER = "VOXELBEAM_OTHER_PYTHON"
_MOST_BYTES = 4 << 30
_Made = TypeVar("_Made")


class Stack:
    """An environment: its TensorFlow, and a process there that has imported what commands need.

    Args:
      python: of the environment.
      root: existing directory of its HOME, TMPDIR and caught streams.

    Attributes:
      name: TensorFlow's version.
      root: as given.
    """

    def __init__(self, python: str, root: Path) -> None:
        code = "import importlib.metadata as m; print(m.version('tensorflow'))"
        told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        self.name, self.root = told.stdout.strip(), root
        self._zygote = Zygote("tensorflow", python=python)
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "TMPDIR": str(root / "tmp"),
            "PYTHONPATH": str(ROOT),  # what commands start finds this very code too
            "LANG": "C.UTF-8",
            "COLUMNS": "100",
            "CUDA_VISIBLE_DEVICES": "",
        }
        (root / "tmp").mkdir()

    def outcome(self, module: str, *argv: object) -> Outcome:
        """How a command ends there."""
        streams = Path(tempfile.mkdtemp(dir=self.root))
        return self._zygote.run(
            module,
            argv,
            cwd=self.root,
            env=self._environment,
            streams=streams,
            timeout=240,
            memory=_MOST_BYTES,
        )

    def run(self, module: str, *argv: object) -> str:
        """What a command that must succeed prints."""
        ended = self.outcome(module, *argv)
        assert ended.code == 0, f"{self.name}: {module} {argv}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    def asked(self, verb: str, place: Path) -> Any:
        """What `python -m tests.stacks` says of a place there."""
        answer = Path(tempfile.mkdtemp(dir=self.root), "answer.json")
        self.run("tests.stacks", verb, place, answer)
        return json.loads(answer.read_text())

    def close(self) -> None:
        """Ends the process."""
        self._zygote.close()


Pair = tuple[Stack, Stack]


def on_both(pair: Pair, work: Callable[[Stack, Stack], _Made]) -> tuple[_Made, _Made]:
    """The same work in each at once; it gets the stack that it is for, and the other."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(work, *pair)
        second = pool.submit(work, *reversed(pair))
        return first.result(), second.result()


def copied(source: Path, root: Path) -> Path:
    """A copy of a directory that may be changed."""
    place = Path(tempfile.mkdtemp(dir=root), source.name)
    shutil.copytree(source, place)
    return place


def _pixels(place: Path) -> dict[str, str]:
    """Name of a series' directory → shape, kind and sha256 of its volume."""
    from beam_jobs.core.volume import load_volume
    from tests.dicom_files import read_stacks

    found = {}
    for folder in sorted({path.parent for path in place.rglob("*.dcm")}):
        (series,) = read_stacks(sorted(folder.iterdir()))
        array = load_volume(series).array
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        found[str(folder.relative_to(place))] = f"{array.shape} {array.dtype} {digest}"
    return found


def _model(place: Path) -> dict[str, Any]:
    """What a model answers to volumes of noise, and to its warm-up requests by signature."""
    import numpy as np
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    from serving.model.loaded_model import load_model
    from tests.serving.model.test_export_calibrated import warmups

    model = load_model(place)
    schema, random = model.contract.schema, np.random.default_rng(5)
    volumes = random.integers(0, 256, (4, *schema.volume_shape), np.uint8)
    known = random.integers(0, 2, (4, len(model.contract.covariates))).astype(np.float32)
    answers = {"volumes": [answer.tolist() for answer in model.predict_volumes(volumes, known)]}
    for request in warmups(place):
        inputs = {
            key: tf.constant(
                tf.make_ndarray(tensor_pb2.TensorProto.FromString(value.SerializeToString()))
            )
            for key, value in request.inputs.items()
        }
        outputs = model._model.signatures[request.model_spec.signature_name](**inputs)
        found = [outputs[name].numpy().tolist() for name in sorted(outputs) if "id" not in name]
        answers[f"warm-up of {request.model_spec.signature_name}"] = found
    return answers


def _search(file: Path) -> int:
    """A search by the command line in a JSON file, whose trials train nothing."""
    from tests.trainer.search.searches import FAKE
    from trainer import tune

    return tune.main(json.loads(file.read_text()), command=FAKE)


def _half(output: Path) -> None:
    """A prediction that is killed when it has written a part's rows."""
    from serving.model.answers import Prediction
    from serving.predict.spool import rows_beside

    with rows_beside(str(output)) as rows:
        rows.write(
            "half", [Prediction(patient_id="00001", values={"probability": 1.0}, missing=())]
        )
        os.kill(os.getpid(), signal.SIGKILL)


def main(argv: Sequence[str]) -> None:
    """Answers one question about a place."""
    verb, place, answer = argv
    verbs: dict[str, Callable[[Path], Any]] = {
        "pixels": _pixels, "model": _model, "search": _search, "half": _half,
    }  # fmt: skip
    Path(answer).write_text(json.dumps(verbs[verb](Path(place))))


if __name__ == "__main__":
    main(sys.argv[1:])
