"""Searches for hyperparameters on a dataset's folds: one process, or a chief and workers."""

from __future__ import annotations

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect

    expect("python -m trainer.tune")

import argparse
import contextlib
import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from beam_jobs.common.cli import (
    EXIT_OK,
    CommandError,
    Parser,
    UsageError,
    require_utf8,
    run,
)
from beam_jobs.common.files import interface as files
from beam_jobs.common.imports import quiet_tensorflow
from beam_jobs.common.named_file import read_named
from beam_jobs.common.terminal import row, say, show, width
from beam_jobs.core.manifest import Manifest, read_manifest
from trainer.config.run import CACHES, OPTIMIZER_OWN, TrainConfig
from trainer.config.run_layout import REPORT_NAME
from trainer.config.search_space import Space
from trainer.config.space_file import read_space, space_of
from trainer.config.user_code import load, may_take
from trainer.data.split import check_folds
from trainer.metrics.predictions import read_predictions
from trainer.metrics.wording import summary_line, verdict
from trainer.search.attempts import COMMAND
from trainer.search.board import leaderboard
from trainer.search.child_process import TRAIN
from trainer.search.objective import OBJECTIVES, measured
from trainer.search.outer import ALL, outer_folds, pool, score_outer
from trainer.search.outlook import tell_of_study
from trainer.search.roles import Role
from trainer.search.run_search import (
    TUNERS,
    Search,
    SearchConfig,
    folds_to_hold_out,
)
from trainer.search.study import (
    OUTER,
    SETTINGS_NAME,
    TRIALS_NAME,
    best_of,
    caveat,
    claimed,
    optimistic,
)
from trainer.training.run_files import Run

if TYPE_CHECKING:
    from trainer.networks.hypermodel import Found

PROG = "python -m trainer.tune"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        description="Searches for the network and the settings with the best mean validation AUC "
        "(of values: rank correlation) over a dataset's folds. Killed at any moment, the same "
        "command resumes it; no finished trial is run again. The best of many trials is "
        "optimistic: --outer_fold keeps patients out of all of them and scores them once, at the "
        "end.",
        examples=(
            f"  {PROG} --data dataset --output_dir study --tuner hyperband \\\n"
            "      --max_trials 30 --epochs 27 --folds 3\n"
            f"  {PROG} --data dataset --output_dir nested --outer_fold all --max_trials 20\n"
            '  echo \'{"network": ["resnet10", "slice_cnn"], "fusion": "early",\n'
            '      "learning_rate": {"min": 1e-5, "max": 1e-2, "log": true}}\' > space.json\n'
            f"  {PROG} --data dataset --output_dir study --tuner bayesian \\\n"
            "      --max_trials 20 --space space.json \\\n"
            "      --outer_fold 0\n"
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
    add("--objective", choices=OBJECTIVES,
        help="what is maximised (default: the score of the dataset's task)")  # fmt: skip
    add("--folds", type=int, metavar="K", help="hold out the first K folds in turn (default: all)")
    add("--seeds", type=int, metavar="S", help="networks a fold and trial")
    add("--outer_fold", metavar="K|all",
        help="a fold that no trial trains on or scores, for the score of the best settings; all: "
        "a search for each fold, and the score of all together")  # fmt: skip
    add("--epochs", type=int, help="of a trial; of hyperband's last round")
    add("--space", metavar="FILE",
        help="JSON: a setting's name with its value (fixed), a list of values, a range "
        "({min, max, step, log}) or null (left at the trainer's default)")  # fmt: skip
    add("--hypermodel", metavar="MODULE:BUILD",
        help="KerasTuner's build(hp) or HyperModel, searched as it stands; --space then fixes or "
        "restricts its hyperparameters (options.NAME) and adds the trainer's")  # fmt: skip
    add("--seed", type=int, help="of the search and of the trials' networks")
    add("--cache", choices=CACHES, help="keep records between epochs")
    add("--memory_gb", type=float, metavar="GB",
        help="memory a trial may take on a device (default: what the machine has)")  # fmt: skip
    add("--worker_timeout", type=float, metavar="SECONDS",
        help="a worker or chief without a heartbeat for so long is lost")  # fmt: skip
    return parser


def main(
    argv: Sequence[str], *, command: Sequence[str] = COMMAND, train: Sequence[str] = TRAIN
) -> int:
    """The command; returns its exit code.

    Args:
      argv: arguments.
      command: starts a trial's process; tests put another one here.
      train: starts the outer run's process; tests put another one here.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    config = SearchConfig(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(SearchConfig)}
    )
    role = Role.of(os.environ)
    require_utf8(args.data)  # stands in every trial's request
    manifest = read_manifest(args.data)
    nested = args.outer_fold == ALL
    if nested and role.address:
        raise UsageError(
            "--outer_fold all searches in one process; on several machines search each fold alone "
            "(--outer_fold 0 --output_dir STUDY/outer-0, ...), then start it once more on one"
        )
    outer = (None,) if args.outer_fold is None else outer_folds(args.outer_fold, manifest)
    folds = [folds_to_hold_out(manifest, args.folds, one) for one in outer]
    check_folds(manifest)
    space = _space(args.space, args.hypermodel, manifest)
    searches = [
        Search(
            config,
            data=args.data,
            manifest=manifest,
            space=space,
            folds=held_out,
            outer_fold=one,
            command=command,
            tell=functools.partial(
                tell_of_study,
                searches=len(outer),
                directory=args.output_dir,
                command=(*parser.prog.split(), *argv),
            ),
        )
        for one, held_out in zip(outer, folds, strict=True)
    ]
    directory = args.output_dir
    if not files.is_remote(directory):
        directory = os.path.abspath(directory)
    require_utf8(directory)
    if role.is_worker:
        searches[0].work(directory, role)
    elif nested:
        _nested(directory, searches, role, train)
    else:
        _study(directory, searches[0], role, train)
    return EXIT_OK


def _space(file: str | None, hypermodel: str | None, manifest: Manifest) -> Space:
    """What may be chosen: the trainer's settings, or a hypermodel's, as --space has them."""
    own: dict[str, Any] = {}
    found = None
    if hypermodel is not None:
        found = _found(hypermodel, manifest)
        own = {"network": hypermodel, "own": found.hyperparameters}
    if file is None:
        space = space_of(manifest.schema.modalities, **own)
    else:
        text = read_named(file, flag="--space")
        more = {**own, "takes": may_take}
        space = read_space(text, manifest.schema.modalities, source=file, **more)
    if found is not None:
        _require_fitting(f"--hypermodel {hypermodel}", found, space, manifest)
    return space


def _found(reference: str, manifest: Manifest) -> Found:
    """The hyperparameters of a user's hypermodel."""
    quiet_tensorflow()
    # TensorFlow: seconds, only from here on. A GPU is the trials'.
    import tensorflow as tf

    from trainer.networks.hypermodel import discover, is_hypermodel

    with contextlib.suppress(RuntimeError):  # in use already, by who calls this in a process
        tf.config.set_visible_devices([], "GPU")
    found = load(reference, flag="--hypermodel")
    if not is_hypermodel(found):
        raise UsageError(
            f"--hypermodel {reference}: KerasTuner's build(hp) or a HyperModel is needed"
        )
    row("hypermodel", f"{reference}: built at several values, to find its hyperparameters")
    shape = (*manifest.schema.shape, len(manifest.schema.modalities))
    return discover(f"--hypermodel {reference}", found, shape, manifest.schema.target)


def _require_fitting(told: str, found: Found, space: Space, manifest: Manifest) -> None:
    """Refuses a hypermodel that leaves nothing to search, or whose defaults cannot be trained."""
    from trainer.networks.registry import build_model

    if not space.searched:
        names = ", ".join(choice.name for choice in found.hyperparameters)
        raise UsageError(f"{told}: nothing is left to search (it has {names or 'nothing'})")
    settings = space.settings(next(space.combinations(grid=True)))
    fixed = [c for c in space.choices if c.size == 1 and c.place[:2] == ("network", "options")]
    settings["network"]["options"] = {choice.place[-1]: choice.first for choice in fixed}
    config = TrainConfig.from_json(settings).resolve(
        manifest.schema.modalities, manifest.schema.covariate_names
    )
    schema = manifest.schema
    assert config.modalities is not None
    build_model(
        config.network,
        schema.shape,
        len(config.modalities),
        schema.dtype,
        target=schema.target,
        covariates=config.chosen(schema.covariates),
    )
    useless = [c.name for c in space.choices if c.place[:1] == ("optimizer",)]
    if found.compiled and (useless := [name for name in useless if name in OPTIMIZER_OWN]):
        raise UsageError(
            f"--space: {', '.join(useless)}: the hypermodel is compiled with its own optimizer"
        )


def _study(directory: str, search: Search, role: Role, train: Sequence[str]) -> Run | None:
    """One search, and the score of its outer fold where it has one."""
    with claimed(directory, search.request, search.config.max_trials) as study:
        trials = search.lead(study, role)
        best = best_of(trials)
        outer = None
        if best is not None and search.outer_fold is not None:
            outer = score_outer(
                study,
                data=search.data,
                fold=search.outer_fold,
                cache=search.config.cache,
                command=train,
            )
            study.keep_outer(outer.metrics, fold=search.outer_fold)
        # scikit-learn and drawing libraries take seconds to import.
        from trainer.reports.study import write_report

        write_report(study.directory, search.request, search.space, trials, outer)
    if best is None:
        raise CommandError(
            f"{directory}: none of {len(trials)} trials succeeded; {TRIALS_NAME} has the reasons"
        )
    if outer is not None:
        row("outer fold", f"{summary_line(outer.metrics)}, fold {search.outer_fold}, in no trial",
            folded=True)  # fmt: skip
        row("verdict", verdict(outer.metrics), folded=True)
    show(leaderboard(search.space, trials, search.title), width=width())
    failed = sum(trial.objective is None for trial in trials)
    row("best", f"trial {best.trial}, {search.title} {best.objective:.3f}{optimistic(trials)}",
        folded=True)  # fmt: skip
    row("mind", caveat(trials, search.title), folded=True)
    row("trials", f"{len(trials)}, {failed} failed; {TRIALS_NAME} in {directory}")
    row("settings", f"{files.join(directory, SETTINGS_NAME)}, for trainer.task --hyperparameters")
    row("report", files.join(directory, REPORT_NAME))
    return outer


def _nested(directory: str, searches: Sequence[Search], role: Role, train: Sequence[str]) -> None:
    """A search an outer fold, then the score of all outer folds together."""
    first = searches[0]
    request = {**first.request, "folds": len(first.request["folds"]), "outer_fold": ALL}
    with claimed(directory, request, first.config.max_trials) as study:
        runs = []
        for search in searches:
            say(f"outer fold {search.outer_fold} of {len(searches)}")
            place = files.join(directory, f"{OUTER}-{search.outer_fold}")
            outer = _study(place, search, role, train)
            assert outer is not None  # without a best trial it has raised
            runs.append(outer)
        predictions = pool(directory, runs)
        metrics = measured(predictions)
        # scikit-learn and drawing libraries take seconds to import.
        from trainer.reports.evaluation import write_report

        write_report(directory, read_predictions(predictions))
        study.keep_outer(metrics, fold=ALL)
        study.finish()
    row("nested", f"{len(runs)} searches, each scored on the fold that none of its trials has seen",
        folded=True)  # fmt: skip
    row("out of fold", summary_line(metrics), folded=True)
    row("verdict", verdict(metrics), folded=True)
    row("report", files.join(directory, REPORT_NAME))


if __name__ == "__main__":
    run(main, PROG)
