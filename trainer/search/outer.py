"""What searched settings are worth on patients that stand in no trial: one outer fold, or each.

    study/outer/                 the best trial's settings, trained on all other folds: a run
                                 (`trainer.task --fold K`), made once, after the last trial
    study/outer-0/, outer-1/     nested cross-validation: a study an outer fold, each as above
    study/oof_predictions.csv    its outer runs' predictions, every patient once: report.html and
                                 metrics.json beside it measure them

Source: S. Varma and R. Simon, BMC Bioinformatics 7 (2006) 91.
"""

from __future__ import annotations

from collections.abc import Sequence

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.csv_table import read_table, write_table
from beam_jobs.common.files import interface as files
from beam_jobs.core.manifest import Manifest
from trainer.config.run_layout import OOF_NAME, RUN_NAME
from trainer.data.split import folds_in_use, folds_to_train
from trainer.metrics.tasks.oof_table import oof_columns
from trainer.search.child_process import TRAIN, run_to_end, train_arguments
from trainer.search.study import OUTER, SETTINGS_NAME, Study
from trainer.training.run_files import Run

ALL = "all"


def outer_folds(text: str, manifest: Manifest) -> tuple[int, ...]:
    """The folds that --outer_fold names: one of the manifest's, or all.

    Raises:
      UsageError: it is neither, or too few folds are left to search on.
    """
    if text == ALL:
        folds = folds_in_use(manifest, None)
    elif text.isascii() and text.isdigit():
        folds = (int(text),)
    else:
        raise UsageError(f"--outer_fold {text}: a fold's number or {ALL!r} is needed")
    folds_to_train(manifest, None, folds[-1])
    return folds


def score_outer(
    study: Study, *, data: str, fold: int, cache: str, command: Sequence[str] = TRAIN
) -> Run:
    """Trains a finished study's best settings on all folds but the outer one, and scores that.

    A run that is there already is read.

    Args:
      study: whose search is over.
      data: the dataset's address.
      fold: the outer one.
      cache: how records are kept between epochs.
      command: starts `trainer.task`; tests put another one here.

    Raises:
      CommandError: the training fails; it has said why.
    """
    directory = files.join(study.directory, OUTER)
    if files.stat(files.join(directory, RUN_NAME)) is None:
        study.require()
        settings = files.join(study.directory, SETTINGS_NAME)
        arguments = train_arguments(data, directory, settings, fold=fold, cache=cache)
        if code := run_to_end([*command, *arguments]):
            raise CommandError(f"{directory}: the outer run ended with exit code {code}")
    return Run.load(directory)


def pool(directory: str, runs: Sequence[Run]) -> str:
    """Writes the outer runs' out-of-fold predictions as one table; gives its path."""
    rows: list[list[str]] = []
    columns: Sequence[str] = oof_columns(runs[0].schema.target)
    for run in runs:
        source = files.join(run.directory, OOF_NAME)
        try:
            there, found = read_table(files.read(source), columns, ours=True)
        except ValueError as error:
            raise ContractError(f"{source}: {error}") from error
        columns = columns if rows else there  # covariates too, which every run has then
        rows += [[row[name] for name in columns] for _, row in found]
    file = files.join(directory, OOF_NAME)
    write_table(file, columns, rows)
    return file
