"""Where things lie in a run's directory: the names that writers and readers of runs share.

run/
  config.json            what was requested, of which dataset; written first
  run.json               the contract (`trainer.training.run_files.Run`); written last
  oof_predictions.csv    `OOF_COLUMNS`, out of fold only; how the epoch was chosen, and by which
                         reasons no claim can be made of the scores, stand in every row; labels and
                         answers as `trainer.metrics.tasks.oof_table` has them, and behind all a
                         column covariate_NAME of each that the networks got
  covariates_predictions.csv  the same of covariates alone, where the dataset has some
  report.html            what they are worth, for people; metrics.json is the same in numbers
  fold-0/network.keras   the member; network.weights.h5 where a user's own code makes its layers
  fold-0/.epoch-7.keras  an epoch that may become it; gone when the run is done
  fold-0/history.csv     one row an epoch
  fold-0/result.json     what the fold gave; written last, so that it marks a fold that is done
  fold-0/state.npz       what a restart resumes from; gone when the fold is done
  permutations.csv       with --permutations: permutation, seed, auc of each finished retraining
  permutations/          the same, a file each, and retrainings that are not finished
  logs/fold-0/           TensorBoard scalars and pictures

With --repeats the members are fold-0-seed-0/, fold-0-seed-1/, ...
"""

from __future__ import annotations

import re

from beam_jobs.common.files import interface as files
from trainer.config.run import TrainConfig

CONFIG_NAME = "config.json"
RUN_NAME = "run.json"
PERMUTATIONS = "permutations"
REPORT_NAME = "report.html"
METRICS_NAME, METRICS_FORMAT = "metrics.json", "voxelbeam-evaluation"
OOF_NAME, ALONE_NAME = "oof_predictions.csv", "covariates_predictions.csv"
COVARIATE = "covariate_"  # before the name of one, in oof_predictions.csv
OOF_COLUMNS = ("patient_id", "label", "fold", "seed", "logit", "probability") + (
    "epoch",
    "epoch_choice",
    "no_claim",
)
PERMUTATIONS_NAME = "permutations.csv"
NETWORK_NAME, WEIGHTS_NAME = "network.keras", "network.weights.h5"
HISTORY_NAME = "history.csv"


def history_columns(score: str) -> tuple[str, ...]:
    """Columns of history.csv where held-out patients are scored by a measure of that name."""
    validated = ("epoch", "loss", "val_loss", f"val_{score}")
    return (*validated, "learning_rate", "step_seconds", "input_wait", "epoch_seconds")


HISTORY_COLUMNS = history_columns("auc")
FOLD_RESULT_NAME = "result.json"
FOLD_STATE_NAME = "state.npz"
LOGS = "logs"

_NETWORK = r"(?:network|\.epoch-[0-9]+)\.(?:keras|weights\.h5)"
_MEMBER = r"fold-[0-9]+(?:-seed-[0-9]+)?"
_RUN_FILE = re.compile(
    rf"(?:{PERMUTATIONS}/[0-9]{{4,}}/)?(?:"
    rf"{CONFIG_NAME}|{RUN_NAME}|{METRICS_NAME}|{REPORT_NAME}|{OOF_NAME}|{ALONE_NAME}"
    rf"|{PERMUTATIONS_NAME}|\.lock"
    rf"|{_MEMBER}/(?:\.?{_NETWORK}|{HISTORY_NAME}|{FOLD_RESULT_NAME}"
    rf"|\.?{FOLD_STATE_NAME})"
    rf"|{LOGS}/(?:.*/)?events\.out\.tfevents\.[^/]*|{PERMUTATIONS}/[0-9]{{4,}}\.json)",
    re.ASCII,
)
# Folders of a run: what lies in them is written and deleted.
_OWN_FOLDER = re.compile(rf"(?:{_MEMBER}|{LOGS}|{PERMUTATIONS})/.*", re.ASCII | re.DOTALL)


def is_run_file(name: str) -> bool:
    """Whether a file has a name that a run gives one of its own; halves of files too.

    Args:
      name: its path below the run's directory.

    >>> is_run_file("fold-0/network.keras"), is_run_file("fold-0/notes.txt")
    (True, False)
    """
    return _RUN_FILE.fullmatch(files.temporary_of(name) or name) is not None


def in_run_folder(name: str) -> bool:
    """Whether a path below a run's directory lies in one of its folders, or is one."""
    return _OWN_FOLDER.fullmatch(name) is not None


def member_name(config: TrainConfig, fold: int, seed: int) -> str:
    """The directory of a member within its run."""
    return f"fold-{fold}" if config.repeats == 1 else f"fold-{fold}-seed-{seed}"


def file_name(config: TrainConfig) -> str:
    """Of a member's file: weights alone where only a user's own code makes its layers again."""
    return WEIGHTS_NAME if config.network.has_own_code else NETWORK_NAME
