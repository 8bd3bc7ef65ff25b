"""Searches for hyperparameters on a dataset's folds: one process, or a chief and workers."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence

from beam_jobs.common.cli import EXIT_OK, CommandError, Parser, run
from beam_jobs.common.files import interface as files
from beam_jobs.common.named_file import read_named
from beam_jobs.common.terminal import row, show
from beam_jobs.core.manifest import read_manifest
from trainer.config.run import CACHES
from trainer.config.search_space import read_space, space_of
from trainer.data.split import check_folds
from trainer.search.attempts import COMMAND
from trainer.search.board import leaderboard, line
from trainer.search.roles import Role
from trainer.search.run_search import (
    OBJECTIVES,
    TUNERS,
    Search,
    SearchConfig,
    folds_to_hold_out,
)
from trainer.search.study import SETTINGS_NAME, TRIALS_NAME, FinishedTrial, best_of, caveat, claimed

PROG = "python -m trainer.tune"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        description="Searches for the network and the settings with the best mean validation AUC "
        "over a dataset's folds. Killed at any moment, the same command resumes it; no finished "
        "trial is run again.",
        examples=(
            f"  {PROG} --data dataset --output_dir study --tuner hyperband \\\n"
            "      --max_trials 30 --epochs 27 --folds 3\n"
            '  echo \'{"network": ["resnet10", "slice_cnn"], "fusion": "early"}\' > space.json\n'
            f"  {PROG} --data dataset --output_dir study --tuner bayesian \\\n"
            "      --max_trials 20 --space space.json\n"
            "  python -m trainer.task --data dataset --output_dir run --cross_validate \\\n"
            "      --hyperparameters study/best_hyperparameters.json\n"
            "several machines that all see the study's directory: the same command on each, with\n"
            "KERASTUNER_TUNER_ID (chief, or a worker's name), KERASTUNER_ORACLE_IP and\n"
            "KERASTUNER_ORACLE_PORT (the chief's), or TF_CONFIG or CLUSTER_SPEC. The chief only\n"
            "hands out trials; workers may come and go."
        ),
    )
    parser.set_defaults(**dataclasses.asdict(SearchConfig()))
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="dataset: a directory, gs://, s3://, ...")
    add("--output_dir", required=True, metavar="STUDY", help="directory of the study, or a store's")
    add("--tuner", choices=TUNERS, help="how it is searched")
    add("--max_trials", type=int, metavar="N", help="at most so many trials")
    add("--objective", choices=OBJECTIVES, help="what is maximised")
    add("--folds", type=int, metavar="K", help="hold out the first K folds in turn (default: all)")
    add("--seeds", type=int, metavar="S", help="networks a fold and trial")
    add("--epochs", type=int, help="of a trial; of hyperband's last round")
    add("--space", metavar="FILE",
        help="JSON: a hyperparameter's name with its value (fixed), a list of values (restricted) "
        "or null (left at the trainer's default)")  # fmt: skip
    add("--seed", type=int, help="of the search and of the trials' networks")
    add("--cache", choices=CACHES, help="keep records between epochs")
    add("--memory_gb", type=float, metavar="GB",
        help="memory a trial may take on a device (default: what the machine has)")  # fmt: skip
    add("--worker_timeout", type=float, metavar="SECONDS",
        help="a worker or chief without a heartbeat for so long is lost")  # fmt: skip
    return parser


def main(argv: Sequence[str], *, command: Sequence[str] = COMMAND) -> int:
    """The command; returns its exit code.

    Args:
      argv: arguments.
      command: starts a trial's process; tests put another one here.
    """
    args = _parser().parse_args(argv)
    config = SearchConfig(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(SearchConfig)}
    )
    role = Role.of(os.environ)
    manifest = read_manifest(args.data)
    folds = folds_to_hold_out(manifest, args.folds)
    check_folds(manifest)
    modalities = manifest.schema.modalities
    if args.space is None:
        space = space_of(modalities)
    else:
        text = read_named(args.space, flag="--space")
        space = read_space(text, modalities, source=args.space)
    search = Search(
        config, data=args.data, manifest=manifest, space=space, folds=folds, command=command
    )
    directory = args.output_dir
    if not files.is_remote(directory):
        directory = os.path.abspath(directory)
    if role.is_worker:
        search.work(directory, role)
        return EXIT_OK
    with claimed(directory, search.request, config.max_trials) as study:
        trials = search.lead(study, role)
        # scikit-learn and drawing libraries take seconds to import.
        from trainer.reports.study import REPORT_NAME, write_report

        write_report(study.directory, search.request, space, trials)
    _print_summary(args.output_dir, search, trials)
    row("report", files.join(args.output_dir, REPORT_NAME))
    return EXIT_OK


def _print_summary(directory: str, search: Search, trials: Sequence[FinishedTrial]) -> None:
    best = best_of(trials)
    if best is None:
        raise CommandError(
            f"{directory}: none of {len(trials)} trials succeeded; {TRIALS_NAME} has the reasons"
        )
    show(leaderboard(search.space, trials), width=100)
    failed = sum(trial.objective is None for trial in trials)
    row("best", line(best))
    row("mind", caveat(trials))
    row("trials", f"{len(trials)}, {failed} failed; {TRIALS_NAME} in {directory}")
    row("settings", f"{files.join(directory, SETTINGS_NAME)}, for trainer.task --hyperparameters")


if __name__ == "__main__":
    run(main, PROG)
