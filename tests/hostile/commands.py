"""Every command's sound arguments, and what each of them is: for cases that spoil one at a time."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from tests.hostile.made import NAMES
from tests.hostile.sandbox import Sandbox


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command that would succeed.

    Attributes:
      arguments: option → value, "" for the positional one, None for no value; `{NAME}` stands for a
        copy of what `Made` makes.
      files: options, of these or others, that name a file to read.
      directories: options that name a directory to read.
      numbers: options of numbers.
      texts: options of words or lists.
      output: the option that names what is written, if any.
      output_is_file: whether that is a file.
    """

    arguments: Mapping[str, str | None]
    files: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    output: str | None = None
    output_is_file: bool = False

    def line(self, sandbox: Sandbox, changes: Mapping[str, object]) -> list[str]:
        """Its arguments in a sandbox, with some of them others."""
        line: list[object] = []
        for option, value in {**self.arguments, **changes}.items():
            if isinstance(value, str) and option not in changes:
                value = self.filled(value, sandbox)
            line += [part for part in (option or None, value) if part is not None]
        return [str(part) for part in line]

    @staticmethod
    def filled(value: str, sandbox: Sandbox) -> str:
        """A value with copies of what it names, and their places."""
        for name in NAMES:
            if f"{{{name}}}" in value and not sandbox.path(f"input/{name}").exists():
                sandbox.put(name)
        return re.sub(r"\{(.+?)\}", lambda found: str(_place(found[1], sandbox)), value)


def _place(name: str, sandbox: Sandbox) -> object:
    return sandbox.output if name == "output" else sandbox.path(f"input/{name}")


_GRID = {"--shape": "16,16,10", "--folds": "2"}
COMMANDS: dict[str, Command] = {
    "convert": Command(
        arguments={"--input": "{cohort}/train", "--output": "{output}",
                   "--labels": "{cohort}/train_labels.csv", **_GRID},
        files=("--labels", "--series_rules", "--groups", "--folds_csv", "--id_key"),
        directories=("--input",),
        numbers=("--folds", "--seed", "--patients_per_shard", "--processes", "--shape", "--fov_mm"),
        texts=("--id_column", "--label_column", "--modalities", "--require_modalities",
               "--dtype", "--patient_from", "--group_column"),
        output="--output",
    ),
    "survey": Command(
        arguments={"": "{cohort}/train"},
        files=("--series_rules",),
        directories=("",),
        texts=("--modalities", "--patient_from"),
        output="--output",
        output_is_file=True,
    ),
    "verify": Command(
        arguments={"": "{dataset}"},
        directories=("", "--against"),
        numbers=("--workers", "--samples", "--seed"),
    ),
    "report": Command(
        arguments={"": "{dataset}", "--output": "{output}"},
        directories=("", "--against"),
        numbers=("--workers",),
        output="--output",
        output_is_file=True,
    ),
    "phantoms": Command(
        arguments={"--output": "{output}", "--patients": "1", "--test_patients": "0",
                   "--matrix": "16,16", "--slices": "4,4", "--workers": "1"},
        numbers=("--patients", "--test_patients", "--seed", "--matrix", "--slices", "--difficulty",
                 "--label_noise", "--workers"),
        texts=("--modalities",),
        output="--output",
    ),
    "train": Command(
        arguments={"--data": "{dataset}", "--output_dir": "{output}", "--fold": "0",
                   "--model": "seed_cnn", "--width": "0.1", "--epochs": "1"},
        files=("--hyperparameters", "--encoder_weights", "--weights"),
        directories=("--data",),
        numbers=("--fold", "--width", "--depth", "--dropout", "--epochs", "--batch_size",
                 "--repeats", "--seed", "--learning_rate", "--warmup_epochs", "--weight_decay",
                 "--clip_norm", "--ema", "--label_smoothing", "--permutations", "--processes"),
        texts=("--model", "--modalities", "--augment", "--precision"),
        output="--output_dir",
    ),
    "tune": Command(
        arguments={"--data": "{dataset}", "--output_dir": "{output}", "--max_trials": "1",
                   "--epochs": "1", "--tuner": "random", "--folds": "1",
                   "--space": "{space.json}"},
        files=("--space",),
        directories=("--data",),
        numbers=("--max_trials", "--epochs", "--folds", "--seeds", "--outer_fold", "--seed",
                 "--memory_gb", "--worker_timeout"),
        texts=("--tuner", "--objective"),
        output="--output_dir",
    ),
    "baseline": Command(
        arguments={"--data": "{dataset}", "--output_dir": "{output}", "--trees": "3"},
        directories=("--data",),
        numbers=("--trees", "--repeats", "--seed"),
        texts=("--modalities",),
        output="--output_dir",
    ),
    "evaluate": Command(
        arguments={"--predictions": "{run}/oof_predictions.csv", "--output": "{output}"},
        files=("--predictions", "--labels", "--series"),
        directories=("--run",),
        texts=("--id_column", "--label_column", "--probability_column"),
        output="--output",
    ),
    "saliency": Command(
        arguments={"--run": "{run}", "--data": "{dataset}", "--output": "{output}"},
        directories=("--run", "--data"),
        texts=("--patients", "--method"),
        output="--output",
    ),
    "export": Command(
        arguments={"--runs": "{run}", "--output": "{output}"},
        directories=("--runs", "--data"),
        texts=("--ensemble", "--calibration"),
        output="--output",
    ),
    "predict": Command(
        arguments={"--model": "{model}", "--input": "{cohort}/test",
                   "--output": "{output}.csv"},
        files=("--ids", "--id_key"),
        directories=("--model", "--input"),
        numbers=("--output_shards", "--batch_size", "--batch_mb"),
        texts=("--columns", "--id_column", "--value_column", "--id_policy", "--patient_from"),
        output="--output",
        output_is_file=True,
    ),
    "check": Command(
        arguments={"": "{submission.csv}", "--sample": "{cohort}/sample_submission.csv"},
        files=("", "--sample"),
        texts=("--id_column", "--value_column"),
    ),
}  # fmt: skip
