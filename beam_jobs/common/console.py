"""The command `voxelbeam VERB ...`: every command of the three packages under one name.

`voxelbeam convert ...` is `python -m beam_jobs.dicom_to_tfrecord ...`: the same parser, output and
exit code. A command's module is imported by its name when its verb is given, and no sooner, so that
`voxelbeam --help` costs no library.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from beam_jobs.common import cli, interrupts
from beam_jobs.common.version import __version__

PROG = "voxelbeam"

# Verb → module, and what it is for.
VERBS: dict[str, tuple[str, str]] = {
    "convert": ("beam_jobs.dicom_to_tfrecord", "DICOM series to sharded 3D TFRecords"),
    "survey": ("beam_jobs.survey", "a directory's series and their verdicts, unconverted"),
    "verify": ("beam_jobs.verify", "a dataset checked against its manifest"),
    "report": ("beam_jobs.report", "a dataset as one page to look at"),
    "phantoms": ("beam_jobs.phantoms", "a synthetic MR cohort with its truth"),
    "train": ("trainer.task", "a network on a dataset's folds"),
    "tune": ("trainer.tune", "a search for hyperparameters"),
    "evaluate": ("trainer.evaluate", "what predictions are worth, and how sure one can be"),
    "baseline": ("trainer.baseline", "a random forest on the same folds, to be beaten"),
    "saliency": ("trainer.saliency", "which voxels moved the logit"),
    "export": ("serving.export", "training runs to one SavedModel"),
    "predict": ("serving.batch_predict", "every patient of a dataset or of DICOM files"),
    "check": ("serving.check_submission", "a submission against its sample"),
    "doctor": ("trainer.doctor", "what this machine has, tried, and what to mend"),
}


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {purpose}" for verb, (_, purpose) in VERBS.items()]
    return "\n".join(
        [
            f"usage: {PROG} VERB ...",
            "",
            "DICOM series to TFRecords, training, and batch prediction.",
            "",
            "verbs:",
            *lines,
            "",
            f"`{PROG} VERB --help` explains each, with examples; `{PROG} --version` is this one's.",
            "`python -m MODULE` runs the same command:",
            *(f"  {verb:<{width}}  python -m {module}" for verb, (module, _) in VERBS.items()),
        ]
    )


def main() -> NoReturn:
    """The console script: `voxelbeam VERB ...`."""
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    interrupts.expect(f"{PROG} {verb}" if verb in VERBS else PROG)
    if verb in ("-h", "--help", "--version"):
        text = f"{PROG} {__version__}" if verb == "--version" else _help()
        cli.run(lambda _: print(text) or cli.EXIT_OK, PROG)
    if verb not in VERBS:
        problem = f"unknown verb {verb!r}" if verb else "a verb is needed"
        message = f"{problem}: {', '.join(VERBS)} (--help explains)"
        cli.run(functools.partial(_raise, cli.UsageError(message)), PROG)
    module = VERBS[verb][0]
    del sys.argv[1]
    cli.name_commands({module: f"{PROG} {verb}" for verb, (module, _) in VERBS.items()})
    try:
        command = importlib.import_module(module)
        if hasattr(command, "__path__"):
            command = importlib.import_module(f"{module}.__main__")
    except ImportError as error:
        cli.run(functools.partial(_raise, error), f"{PROG} {verb}")
    cli.run(command.main, command.PROG)


def _raise(error: Exception, _: Sequence[str]) -> int:
    raise error
