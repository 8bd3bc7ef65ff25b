"""Sound inputs, made once by the commands themselves when a case first asks for them."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from pathlib import Path

from tests.hostile.names import spoil
from tests.hostile.zygote import ROOT, Zygotes

SHAPE = ("--shape", "16,16,10", "--folds", "2")
SMALL = ("--model", "seed_cnn", "--width", "0.1", "--epochs", "1")
_SPACES = {
    "space.json": {"network": "slice_cnn", "precision": "float32"},
    # Whose trials take as long as an import: one small network, one batch.
    "small_space.json": {
        "network": "slice_cnn", "precision": "float32", "width": 0.25, "depth": 1, "head": "mean",
        "fusion": "early", "augment": "none", "batch_size": 8, "schedule": "exponential",
    },
}  # fmt: skip
# Name → what it is made of, the command, and its arguments, run beside them.
_RECIPES: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "cohort": (
        (),
        "beam_jobs.phantoms",
        ("--output", "cohort", "--patients", "8", "--test_patients", "2", "--matrix", "16,16",
         "--slices", "8,8", "--workers", "1"),
    ),
    "dataset": (
        ("cohort",),
        "beam_jobs.dicom_to_tfrecord",
        ("--input", "cohort/train", "--labels", "cohort/train_labels.csv", "--output", "dataset",
         "--patients_per_shard", "2", *SHAPE),
    ),
    "run": (
        ("dataset",),
        "trainer.task",
        ("--data", "dataset", "--output_dir", "run", "--cross_validate", *SMALL),
    ),
    "forest": (
        ("dataset",),
        "trainer.baseline",
        ("--data", "dataset", "--output_dir", "forest", "--trees", "5"),
    ),
    "study": (
        ("dataset", "space.json"),
        "trainer.tune",
        ("--data", "dataset", "--output_dir", "study", "--max_trials", "1", "--epochs", "1",
         "--tuner", "random", "--folds", "1", "--space", "space.json"),
    ),
    "model": (
        ("run", "dataset"),
        "serving.export",
        ("--runs", "run", "--data", "dataset", "--output", "model"),
    ),
    "submission.csv": (
        ("model", "cohort"),
        "serving.batch_predict",
        ("--model", "model", "--input", "cohort/test", "--ids", "cohort/sample_submission.csv",
         "--output", "submission.csv"),
    ),
}  # fmt: skip
# The same of a cohort whose names are attacks.
_ODD = {
    f"odd_{name}": (
        tuple(f"odd_{each}" for each in needed),
        module,
        tuple(
            re.sub(r"^(cohort|dataset|run|model|submission|forest)\b", r"odd_\1", word)
            if not word.startswith("--")
            else word
            for word in arguments
        ),
    )
    for name, (needed, module, arguments) in _RECIPES.items()
    if name not in ("cohort", "study")
}
NAMES = (*_RECIPES, "odd_cohort", *_ODD, *_SPACES)


class Made:
    """Makes sound inputs in a directory, each when it is first asked for.

    Args:
      directory: an existing directory.
      zygotes: which run the commands.
    """

    def __init__(self, directory: Path, zygotes: Zygotes) -> None:
        self._directory, self._zygotes = directory, zygotes
        self._lock = threading.RLock()
        for name in ("tmp", "home", "streams"):
            (directory / name).mkdir()
        for name, space in _SPACES.items():
            (directory / name).write_text(json.dumps(space))

    def get(self, name: str) -> Path:
        """The path of one of `NAMES`; not to be changed, only copied.

        Raises:
          RuntimeError: it could not be made.
        """
        path = self._directory / name
        with self._lock:
            if not path.exists():
                if name == "odd_cohort":
                    shutil.copytree(self.get("cohort"), path)
                    spoil(path)
                    return path
                needed, module, arguments = (_RECIPES | _ODD)[name]
                for each in needed:
                    self.get(each)
                outcome = self._zygotes.of(module).run(
                    module,
                    arguments,
                    cwd=self._directory,
                    env={
                        "PATH": os.environ["PATH"],
                        "HOME": str(self._directory / "home"),
                        "TMPDIR": str(self._directory / "tmp"),
                        "PYTHONPATH": str(ROOT),
                    },
                    streams=self._directory / "streams",
                    timeout=300,
                )
                if outcome.code != 0:
                    raise RuntimeError(f"{name} could not be made: {outcome}")
        return path
