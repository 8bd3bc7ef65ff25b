"""One process's part in a search: what is searched, each trial's settings, and who runs them."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.contract_json import ContractError, fingerprint
from beam_jobs.common.files import interface as files
from beam_jobs.common.imports import quiet_tensorflow, without_notes
from beam_jobs.common.terminal import row
from beam_jobs.core.cohort.target import Target
from beam_jobs.core.manifest import Manifest
from trainer.config.code_identity import CODE, identities
from trainer.config.hyperparameter import Choice, Value
from trainer.config.network import NO_WEIGHTS
from trainer.config.provenance import PROVENANCE
from trainer.config.run import MOST, OWN_CODE, TrainConfig, merged
from trainer.config.search_space import Space
from trainer.config.start_files import WEIGHTS, sha256_of
from trainer.config.user_code import is_reference
from trainer.data.split import folds_in_use, folds_to_train
from trainer.metrics.tasks.measure import measure_of
from trainer.search.attempts import COMMAND, run_trial
from trainer.search.board import Board
from trainer.search.objective import objective_of
from trainer.search.roles import Role
from trainer.search.study import STUDY_NAME, FinishedTrial, Study, settings_of
from trainer.search.trial import Request

TUNERS = ("hyperband", "bayesian", "random", "grid")
# Settings whose change makes another study; more trials or another cache do not.
_TELLING = ("tuner", "objective", "seeds", "epochs", "seed")
_WARMUP = 5  # epochs of a cosine schedule's rise, a quarter of a short training at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How a search goes about it.

    Attributes:
      tuner: one of `TUNERS`.
      objective: what is maximised, one of `OBJECTIVES`; None takes that of the dataset's labels.
      max_trials: at most so many.
      seeds: networks a fold and trial.
      epochs: of a trial; of hyperband's last round.
      seed: of the search and of the trials' networks.
      cache: how records are kept between epochs.
      memory_gb: memory a trial may take on a device; None for what the machine has.
      worker_timeout: seconds without a heartbeat after which a worker, or the chief, is lost.

    Raises:
      UsageError: a value that no search can have.
    """

    tuner: str = "hyperband"
    objective: str | None = None
    max_trials: int = 30
    seeds: int = 1
    epochs: int = 27
    seed: int = 0
    cache: str = "auto"
    memory_gb: float | None = None
    worker_timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("max_trials", "seeds", "epochs"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 1: {getattr(self, name)}")
            if getattr(self, name) > MOST:
                raise UsageError(f"--{name} must be at most {MOST}: {getattr(self, name)}")
        for name in ("worker_timeout", "memory_gb"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"--{name} must be a positive number: {value}")


def folds_to_hold_out(
    manifest: Manifest, count: int | None, outer: int | None = None
) -> tuple[int, ...]:
    """The manifest's first folds, or all of them; never an outer one.

    Raises:
      UsageError: it has not so many.
    """
    every = folds_to_train(manifest, None, outer)
    if count is None:
        return every
    if not 1 <= count <= len(every):
        beside = "" if outer is None else " beside the outer one"
        raise UsageError(
            f"--folds {count}: the dataset has {len(every)}{beside}, at least 1 is needed"
        )
    return every[:count]


def _require_of_task(space: Space, target: Target) -> None:
    """Refuses settings of classes where labels are values: each such trial would fail.

    Raises:
      UsageError: the space has one; the message names it.
    """
    plain = TrainConfig()
    for choice in space.choices if target.task == "regression" else ():
        if choice.name in ("label_smoothing", "class_weights") and (
            choice.size > 1 or choice.first != getattr(plain, choice.name)
        ):
            raise UsageError(f"--space: {choice.name}: labels are values, not classes")


def _objective(config: SearchConfig, manifest: Manifest) -> str:
    """What is maximised on the dataset.

    Raises:
      UsageError: it is asked for what labels of another task are scored by.
    """
    target = manifest.schema.target
    own = objective_of(target)
    if config.objective not in (None, own):
        raise UsageError(f"--objective {config.objective}: of {target.task} labels it is {own}")
    return own


class Search:
    """One process's part in a study.

    Args:
      config: how it is searched.
      data: the dataset's directory.
      manifest: the dataset's.
      space: what may be chosen.
      folds: held out in turn.
      outer_fold: of which no trial sees a patient; None: there is none.
      command: starts a trial's process; tests put another one here.
      tell: gets the first trial's pace and, as `trials`, the epochs of all that are planned
        (`outlook.tell_of_study`).

    Attributes:
      data, config, space, outer_fold: as given.
      objective: what is maximised, as a column is called.
      title: the same for people.
      request: what tells its study from others, as JSON.
      provenance: what its settings carry along, of which trials nothing is known yet.

    Raises:
      UsageError: settings that no trial can have.
    """

    def __init__(
        self,
        config: SearchConfig,
        *,
        data: str,
        manifest: Manifest,
        space: Space,
        folds: tuple[int, ...],
        outer_fold: int | None = None,
        command: Sequence[str] = COMMAND,
        tell: Callable[..., None] | None = None,
    ) -> None:
        self.config, self.space, self.outer_fold = config, space, outer_fold
        self.data, self._manifest, self._folds = data, manifest, folds
        self._command, self._tell = command, tell
        _require_of_task(space, manifest.schema.target)
        self.objective = _objective(config, manifest)
        self.title = measure_of(manifest.schema.target).title
        self.request: dict[str, Any] = {
            **{name: getattr(config, name) for name in _TELLING},
            "objective": self.objective,
            "dataset_fingerprint": manifest.dataset_fingerprint,
            "folds": list(folds),
            "outer_fold": outer_fold,
            "space": space.to_json(),
        }
        if code := self._code():
            self.request[CODE] = code
        if weights := self._weights():
            self.request[WEIGHTS] = weights
        seen = folds_in_use(manifest, outer_fold)
        self.provenance: dict[str, Any] = {
            "study": fingerprint(self.request),
            **{name: self.request[name] for name in ("dataset_fingerprint", "folds", "outer_fold")},
            "objective": self.objective,
            "patients": sorted(name for name, _, fold in manifest.patients if fold in seen),
        }
        if config.tuner == "hyperband" and "epochs" in space.names:
            raise UsageError(
                "epochs cannot be searched by hyperband, whose rounds say them: --epochs is those "
                "of the last one"
            )
        self._settings(next(space.combinations(grid=True)), config.epochs)

    def lead(self, study: Study, role: Role) -> list[FinishedTrial]:
        """Searches alone, or as the chief of others; gives every finished trial."""
        names = self.space.names
        trials = study.write(names, self.provenance)
        self._print_plan()
        if trials:
            row("resumed", f"{len(trials)} trials are finished already")
        if not study.is_over:
            with Board(self.space, self.config.max_trials, trials, self.title) as board:
                if trials:
                    self._tell = None  # the board knows how long they take
                self._search(study, role, lambda: board.update(study.write(names, self.provenance)))
        trials = study.write(names, self.provenance, finished=True)
        study.finish()
        return trials

    def work(self, directory: str, role: Role) -> None:
        """Runs trials that a chief hands out.

        Raises:
          CommandError: no chief begins a study in the directory, or it is lost.
          ContractError: the chief's study is another one.
        """
        timeout = self.config.worker_timeout
        given_up = time.monotonic() + timeout
        while files.stat(files.join(directory, STUDY_NAME)) is None:
            if time.monotonic() > given_up:
                raise CommandError(f"{directory}: no chief has begun a study in {timeout:g} s")
            time.sleep(0.2)
        there = settings_of(directory)
        if differing := sorted(n for n in self.request if there.get(n) != self.request[n]):
            raise ContractError(
                f"{directory}: the chief's study and this worker differ in "
                + "; ".join(f"{n}: {there.get(n)} there, {self.request[n]} here" for n in differing)
            )
        self._tell = None
        self._search(Study(directory), role, lambda: None)
        row("worker", f"{role.tuner_id}: no trials are left")

    def _settings(self, values: Mapping[str, Value], epochs: int) -> TrainConfig:
        """The settings of a trial's runs, of complete values."""
        epochs = int(values.get("epochs", epochs))
        settings = {
            "epochs": epochs,
            "outer_fold": self.outer_fold,
            "repeats": self.config.seeds,
            "seed": self.config.seed,
            "optimizer": {"warmup_epochs": min(_WARMUP, epochs // 4)},
        }
        config = TrainConfig.from_json(merged(settings, self.space.settings(values)))
        schema = self._manifest.schema
        return config.resolve(schema.modalities, schema.covariate_names)

    def _code(self) -> list[dict[str, Any]]:
        """Identities of the user's functions that the space names."""
        quiet_tensorflow()  # which a user's module may import
        return identities(
            (f"--space: {choice.name}", str(value))
            for choice in self.space.choices
            if isinstance(choice, Choice) and choice.place in OWN_CODE.values()
            for value in choice.values
            if is_reference(value)
        )

    def _weights(self) -> dict[str, str]:
        """sha256 of each file from which networks of the space start, by its name."""
        names = {
            str(value)
            for choice in self.space.choices
            if isinstance(choice, Choice) and choice.place == ("network", WEIGHTS)
            for value in choice.values
            if value != NO_WEIGHTS
        }
        return {name: sha256_of(name, flag=f"--space: {WEIGHTS}") for name in sorted(names)}

    def _print_plan(self) -> None:
        config = self.config
        row(
            "search",
            f"{config.tuner}, at most {config.max_trials} trials of "
            f"{self.space.size_text(grid=config.tuner == 'grid')} of",
            folded=True,
        )
        rows = self.space.rows()
        width = max(len(name) for name, _ in rows)
        for name, text in rows:
            row("", f"{name:<{width}} {text}", folded=True)
        patients = sum(fold in self._folds for _, _, fold in self._manifest.patients)
        row(
            "objective",
            f"mean {self.title.removeprefix('mean ')} at the last epoch over {len(self._folds)} "
            f"of the dataset's {self._manifest.folds} folds, {config.seeds} "
            f"network{'s' if config.seeds > 1 else ''} each ({patients} patients), maximised",
            folded=True,
        )
        if self.outer_fold is not None:
            text = f"fold {self.outer_fold} stands in no trial; it is scored once, at the end"
            row("outer", text, folded=True)

    def _require_files(self) -> None:
        """Refuses weights that are not there, before trials fail one by one."""
        for choice in self.space.choices:
            if choice.name in ("weights", "encoder_weights"):
                for value in map(str, choice.every()):
                    if value != NO_WEIGHTS and files.stat(value) is None:
                        raise UsageError(f"--space: {choice.name}: {value} is not a file")

    def _search(self, study: Study, role: Role, on_trial_end: Callable[[], None]) -> None:
        self._require_files()
        quiet_tensorflow()
        os.environ.update(role.variables())  # KerasTuner reads them too
        # KerasTuner brings TensorFlow: seconds, only from here on.
        with without_notes():
            from trainer.search.oracles.make_oracle import (
                epochs_of,
                make_oracle,
                plan_of,
                round_of,
            )
            from trainer.search.tuner import StudyTuner

        config = self.config
        oracle = make_oracle(
            config.tuner,
            self.space,
            objective=self.objective,
            max_trials=config.max_trials,
            epochs=config.epochs,
            seed=config.seed,
        )

        told = self.provenance
        if CODE in self.request:  # what is found to work is free of it
            told = {**told, CODE: self.request[CODE]}

        planned = epochs_of(oracle, config.epochs)

        def run_one(trial: str, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
            values, round_ = self.space.complete(chosen), round_of(chosen)
            settings = self._settings(values, round_.get("epochs", config.epochs))
            with (
                files.mirrored(study.trial(trial), resume=True) as directory,
                files.mirrored(study.logs(trial), resume=True) as logs,
            ):
                request = Request(
                    trial=trial,
                    values=values,
                    config={**settings.to_json(), PROVENANCE: told},
                    data=self.data,
                    dataset_fingerprint=self._manifest.dataset_fingerprint,
                    folds=self._folds,
                    cache=config.cache,
                    memory=None if config.memory_gb is None else int(config.memory_gb * 1e9),
                    logs=str(logs.local),
                    round=round_,
                )
                tell, self._tell = self._tell, None
                if tell is not None:
                    tell = functools.partial(tell, trials=planned)
                return run_trial(directory.local, request, self._command, tell)

        if role.is_chief:
            text = f"at {role.address}: hands out trials to workers, runs none itself"
            row("chief", text, folded=True)
        tuner = StudyTuner(
            oracle,
            directory=study.directory,
            role=role,
            run_trial=run_one,
            on_trial_end=on_trial_end,
            timeout=config.worker_timeout,
        )
        if not role.is_worker:  # what is left, of a study that is taken up again
            for number, line in enumerate(plan_of(oracle)):
                row("" if number else "plan", line, folded=True)
        tuner.search()
