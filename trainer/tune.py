"""Searches for hyperparameters on a dataset's folds: one process, or a chief and workers."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beam_jobs.common.cli import (
    EXIT_OK,
    CommandError,
    Parser,
    UsageError,
    quiet_tensorflow,
    read_text,
    run,
)
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.terminal import row, show
from beam_jobs.core.manifest import Manifest, read_manifest
from trainer.config.run import CACHES, TrainConfig, merged
from trainer.config.search_space import Space, Value, read_space, space_of
from trainer.data.split import check_folds, folds_to_train
from trainer.search.board import Board, leaderboard, line
from trainer.search.study import (
    BEST_NAME,
    STUDY_NAME,
    TRIALS_NAME,
    Study,
    best_of,
    caveat,
    claimed,
    settings_of,
)
from trainer.search.trial import Request
from trainer.search.trial_process import COMMAND, run_trial
from trainer.training.environment import cluster_of

if TYPE_CHECKING:
    from trainer.search.tuner import Role

PROG = "python -m trainer.tune"
TUNERS = ("hyperband", "bayesian", "random", "grid")
OBJECTIVES = ("val_auc",)
_WARMUP = 5  # epochs of a cosine schedule's rise, a quarter of a short training at most


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        description="Searches for the network and the settings with the best mean validation AUC "
        "over a dataset's folds. Killed at any moment, the same command goes on; no finished "
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
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="dataset: a directory, gs://, s3://, ...")
    add("--output_dir", required=True, type=Path, metavar="STUDY", help="directory of the study")
    add("--tuner", default="hyperband", choices=TUNERS, help="how it is searched")
    add("--max_trials", type=int, default=30, metavar="N", help="at most so many trials")
    add("--objective", default="val_auc", choices=OBJECTIVES, help="what is maximised")
    add("--folds", type=int, metavar="K", help="hold out the first K folds in turn (default: all)")
    add("--seeds", type=int, default=1, metavar="S", help="networks a fold and trial")
    add("--epochs", type=int, default=27, help="at most so many a trial; of hyperband's last round")
    add("--patience", type=int, default=TrainConfig().patience,
        help="stop a network after so many epochs without a better validation AUC")  # fmt: skip
    add("--space", type=Path, metavar="FILE",
        help="JSON: a hyperparameter's name with its value (fixed), a list of values (restricted) "
        "or null (left at the trainer's default)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the search and of the trials' networks")
    add("--cache", default="auto", choices=CACHES, help="keep records between epochs")
    add("--memory_gb", type=float, metavar="GB",
        help="memory a trial may take on a device (default: what the machine has)")  # fmt: skip
    add("--worker_timeout", type=float, default=60.0, metavar="SECONDS",
        help="a worker or chief without a sign of life for so long is lost")  # fmt: skip
    return parser


def main(argv: Sequence[str], *, command: Sequence[str] = COMMAND) -> int:
    """The command; returns its exit code.

    Args:
      argv: arguments.
      command: starts a trial's process; tests put another one here.
    """
    args = _parser().parse_args(argv)
    for name in ("max_trials", "seeds", "epochs"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} must be at least 1: {getattr(args, name)}")
    for name in ("worker_timeout", "memory_gb"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"--{name} must be a positive number: {value}")
    tuner_id, address = role_of(os.environ)
    manifest = read_manifest(args.data)
    folds = folds_to_hold_out(manifest, args.folds)
    check_folds(manifest)
    modalities = manifest.schema.modalities
    if args.space is None:
        space = space_of(modalities)
    else:
        text = read_text(args.space, flag="--space")
        space = read_space(text, modalities, source=str(args.space))
    search = _Search(args, manifest, space, folds, command)
    search.config({choice.name: choice.values[0] for choice in space.choices}, args.epochs)
    is_worker = bool(address) and "chief" not in tuner_id
    if is_worker:
        return search.work(tuner_id, address)
    with claimed(args.output_dir.absolute(), search.asked, args.max_trials) as study:
        return search.lead(study, tuner_id, address)


def folds_to_hold_out(manifest: Manifest, count: int | None) -> tuple[int, ...]:
    """The manifest's first folds, or all of them.

    Raises:
      UsageError: it has not so many.
    """
    every = folds_to_train(manifest, None)
    if count is None:
        return every
    if not 1 <= count <= len(every):
        raise UsageError(f"--folds {count}: the dataset has {len(every)}, at least 1 is needed")
    return every[:count]


def role_of(environ: Mapping[str, str]) -> tuple[str, str]:
    """This process's name in the search, and the chief's "host:port", empty where it is alone.

    Raises:
      UsageError: KerasTuner's variables are not all there, or TF_CONFIG is not a cluster's.
    """
    names = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
    given = [environ.get(name, "") for name in names]
    if given[1] or given[2]:
        if missing := [n for n, value in zip(names, given, strict=True) if not value]:
            raise UsageError(
                f"{', '.join(missing)}: missing, {' and '.join(names)} belong together"
            )
        return given[0], f"{given[1]}:{given[2]}"
    cluster = cluster_of(environ)
    if len(cluster.workers) == 1:
        return "tuner0", ""
    name = "chief" if cluster.is_chief else f"tuner{cluster.index}"
    return given[0] or name, cluster.workers[0]


class _Search:
    """One process's part in a study."""

    def __init__(
        self,
        args: argparse.Namespace,
        manifest: Manifest,
        space: Space,
        folds: tuple[int, ...],
        command: Sequence[str],
    ) -> None:
        self.args, self.manifest, self.space = args, manifest, space
        self.folds, self.command = folds, command
        self.asked: dict[str, Any] = {
            "dataset_fingerprint": manifest.dataset_fingerprint,
            "tuner": args.tuner,
            "objective": args.objective,
            "folds": list(folds),
            "seeds": args.seeds,
            "epochs": args.epochs,
            "patience": args.patience,
            "seed": args.seed,
            "space": space.to_json(),
        }

    def lead(self, study: Study, tuner_id: str, address: str) -> int:
        """Searches alone, or as the chief of others, and says what was found."""
        names = [choice.name for choice in self.space.choices]
        rows = study.write(names)
        self._open()
        if rows:
            row("goes on", f"{len(rows)} trials are finished already")
        if not study.is_over:
            with Board(self.space, self.args.max_trials, rows) as board:
                self._search(study, tuner_id, address, lambda: board.update(study.write(names)))
        rows = study.write(names, finished=True)
        study.finish()
        # Drawing libraries take a second to import.
        from trainer.reports.study import write_report

        report = write_report(study.directory, self.asked, self.space, rows)
        best = best_of(rows)
        if best is None:
            raise CommandError(
                f"{study.directory}: none of {len(rows)} trials succeeded; "
                f"{TRIALS_NAME} has the reasons"
            )
        show(leaderboard(self.space, rows), width=100)
        failed = sum(one.objective is None for one in rows)
        row("best", line(best))
        row("mind", caveat(rows))
        row("trials", f"{len(rows)}, {failed} failed; {TRIALS_NAME} in {self.args.output_dir}")
        row("settings", f"{self.args.output_dir / BEST_NAME}, for trainer.task --hyperparameters")
        row("report", str(self.args.output_dir / report.name))
        return EXIT_OK

    def work(self, tuner_id: str, address: str) -> int:
        """Runs trials that a chief hands out."""
        directory = self.args.output_dir.absolute()
        given_up = time.monotonic() + self.args.worker_timeout
        while not (directory / STUDY_NAME).is_file():
            if time.monotonic() > given_up:
                raise CommandError(
                    f"{directory}: no chief has begun a study there for "
                    f"{self.args.worker_timeout:g} s"
                )
            time.sleep(0.2)
        there = settings_of(directory)
        if there != self.asked:
            differing = sorted(n for n in self.asked if there.get(n) != self.asked[n])
            raise ContractError(
                f"{directory}: the chief's study and this worker differ in "
                + "; ".join(f"{n}: {there.get(n)} there, {self.asked[n]} here" for n in differing)
            )
        study = Study(directory)
        self._search(study, tuner_id, address, lambda: None)
        row("worker", f"{tuner_id}: no trials are left")
        return EXIT_OK

    def config(self, values: Mapping[str, Value], epochs: int) -> TrainConfig:
        """The settings of a trial's runs."""
        active: dict[str, Value] = {}
        for choice in self.space.choices:
            if choice.is_active(active):
                active[choice.name] = values[choice.name]
        settings = {
            "epochs": epochs,
            "patience": self.args.patience,
            "repeats": self.args.seeds,
            "seed": self.args.seed,
            "optimizer": {"warmup_epochs": min(_WARMUP, epochs // 4)},
        }
        config = TrainConfig.from_json(merged(settings, self.space.settings(active)))
        return config.resolve(self.manifest.schema.modalities)

    def _open(self) -> None:
        """Says what is searched."""
        args, patients = self.args, sum(f in self.folds for _, _, f in self.manifest.patients)
        row(
            "search",
            f"{args.tuner}, at most {args.max_trials} trials of {self.space.count():,} "
            "combinations of",
        )
        for name, text in self.space.rows():
            row("", f"{name:<14} {text}")
        row(
            "objective",
            f"mean of the exact validation AUC over {len(self.folds)} of the dataset's "
            f"{self.manifest.folds} folds, {args.seeds} network{'s' if args.seeds > 1 else ''} "
            f"each ({patients} patients), maximised",
        )

    def _search(self, study: Study, tuner_id: str, address: str, told: Callable[[], None]) -> None:
        quiet_tensorflow()
        if address:  # KerasTuner reads them too
            host, _, port = address.rpartition(":")
            os.environ.update(
                KERASTUNER_TUNER_ID=tuner_id,
                KERASTUNER_ORACLE_IP=host,
                KERASTUNER_ORACLE_PORT=port,
            )
        # KerasTuner brings TensorFlow: seconds, only from here on.
        from trainer.training.mute_tensorflow import without_notes

        with without_notes():
            from trainer.search.oracles import make_oracle, round_of
            from trainer.search.tuner import Role, StudyTuner

        args = self.args
        oracle = make_oracle(
            args.tuner,
            self.space,
            objective=args.objective,
            max_trials=args.max_trials,
            epochs=args.epochs,
            seed=args.seed,
        )

        def run_one(trial: str, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
            values = self.space.complete(chosen)
            round_ = round_of(chosen)
            config = self.config(values, round_.get("epochs", args.epochs))
            request = Request(
                trial=trial,
                values=values,
                config=config.to_json(),
                data=args.data,
                dataset_fingerprint=self.manifest.dataset_fingerprint,
                folds=self.folds,
                cache=args.cache,
                memory=None if args.memory_gb is None else int(args.memory_gb * 1e9),
                logs=str(study.directory / "logs" / trial),
                round=round_,
            )
            return run_trial(study.trial(trial), request, self.command)

        role = Role(tuner_id=tuner_id, address=address)
        self._tell_plan(oracle, role)
        tuner = StudyTuner(
            oracle,
            directory=study.directory,
            role=role,
            run=run_one,
            told=told,
            timeout=args.worker_timeout,
        )
        tuner.search()

    def _tell_plan(self, oracle: Any, role: Role) -> None:
        """What the kind of search makes of the number of trials."""
        if role.is_worker:
            return
        if role.is_chief:
            row("chief", f"at {role.address}: hands out trials to workers, runs none itself")
        if self.args.tuner == "hyperband":
            rounds = oracle.plan(oracle._current_bracket)
            told = ", then ".join(f"{size} trials of {epochs} epochs" for size, epochs in rounds)
            row("first", f"{told}; each trained anew, with a schedule of its own")
        if self.args.tuner == "bayesian":
            row("first", f"{oracle.num_initial_points} random trials, then guided ones")


if __name__ == "__main__":
    run(main, PROG)
