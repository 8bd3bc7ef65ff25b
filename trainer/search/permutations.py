"""The whole recipe again on permuted labels: what it scores where nothing can be learnt.

    RUN/permutations.csv          permutation, seed, auc (of other than binary labels: score): a row
                                  a finished retraining
    RUN/permutations/0007.json    the same of one; its presence marks it finished
    RUN/permutations/0007/        a retraining that is not finished: a run like any other

Every retraining is a process; a killed one is resumed by the next start, a finished one is not run
again. Of a run in a store the unfinished ones lie on this machine's disk.

Source: M. Ojala and G. C. Garriga, Journal of Machine Learning Research 11 (2010) 1833-1863.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.contract_json import ContractError, Kind, Within, require_kinds, require_known
from beam_jobs.common.csv_table import write_table
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import read_json, write_json
from beam_jobs.common.terminal import duration, say, say_parts
from trainer.config.code_identity import CODE
from trainer.config.provenance import PROVENANCE
from trainer.config.run import TrainConfig, merged
from trainer.config.run_layout import PERMUTATIONS, PERMUTATIONS_NAME
from trainer.config.stack import TENSORFLOW, require_same_stack
from trainer.metrics.stored import MOST
from trainer.metrics.tasks.measure import measure_of
from trainer.metrics.wording import score_of
from trainer.search.child_process import TRAIN, end, start, train_arguments
from trainer.training.run_files import Run

_NUMBERS: dict[str, Kind] = {"permutation": Within(int, 1, MOST), "seed": Within(int, 0, MOST)}
_SCORES: dict[str, Kind] = {"auc": Within(float, 0, 1), "score": Within(float, -1, 1)}


def check_permutations(
    config: TrainConfig, count: int, processes: int, *, cluster: bool, searched: bool
) -> None:
    """Refuses what cannot be, before anything is trained.

    Args:
      config, count, processes: as `retrain` takes them.
      cluster: several hosts train together.
      searched: the settings were searched on patients that the run scores.

    Raises:
      UsageError: no such number of retrainings or processes, seeds that run out, a run whose own
        labels are permuted, or one that retrainings cannot repeat.
    """
    for name, value in (("processes", processes), ("permutations", count)):
        if value < 1:
            raise UsageError(f"--{name} must be at least 1: {value}")
    if cluster:
        raise UsageError("--permutations: not on a cluster (TF_CONFIG); --processes trains several")
    if searched:
        raise UsageError(
            "--permutations: the settings were searched on these patients, and a retraining would "
            "not search anew; score them on the search's outer fold (--fold)"
        )
    if config.permute_labels:
        raise UsageError("--permutations retrains on permuted labels: not with --permute_labels")
    if _seed(config, count) > 2**31 - config.repeats:
        raise UsageError(f"--permutations {count}: from --seed {config.seed} the seeds run out")


def retrain(
    run: Path,
    config: TrainConfig,
    *,
    data: str,
    count: int,
    processes: int,
    cache: str,
    push: Callable[[], None],
    resumable: bool,
    code: Sequence[Mapping[str, Any]] = (),
    command: Sequence[str] = TRAIN,
) -> None:
    """Retrains a finished run on permuted labels until there are `count` scores in its directory.

    Args:
      run: directory of the finished run, claimed by this process.
      config: of the run.
      data: the dataset's address.
      count: retrainings in all, those of earlier starts among them.
      processes: that train at the same time.
      cache: how records are kept between epochs.
      push: brings a store up to what lies in `run`.
      resumable: unfinished retrainings lie in `run`, where a next start finds them.
      code: identities of the user's functions that the run is made of.
      command: starts `trainer.task`; tests put another one here.

    Raises:
      CommandError: a retraining ended without a result; what is finished stays.
      ContractError: what is finished is not readable, or another TensorFlow has trained the run.
    """
    made = Run.load(run)
    folder, own = run / PERMUTATIONS, score_of(made.metrics)
    measure = measure_of(made.target)
    score, title = measure.key, measure.title
    folder.mkdir(exist_ok=True)
    known = _finished(folder, score)
    _write(run, known, score)
    for number in known:  # a kill came between its result and the end of its directory
        shutil.rmtree(folder / f"{number:04}", ignore_errors=True)
    waiting = [number for number in range(1, count + 1) if number not in known]
    if waiting and TENSORFLOW in made.versions:
        otherwise = "train it anew: --overwrite"
        require_same_stack(made.versions, "the run", otherwise=otherwise)
    if len(waiting) < count:
        say(f"{count - len(waiting)} of {count} permutations are finished already")
    begun, before = time.monotonic(), len(known)
    running: dict[int, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(files.scratch("permute"))
        place = folder if resumable else scratch
        logs: dict[int, IO[bytes]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    number = waiting.pop(0)
                    again: dict[str, Any] = {"seed": _seed(config, number), "permute_labels": True}
                    if code:
                        again[PROVENANCE] = {CODE: list(code)}
                    settings = scratch / f"{number:04}.json"
                    write_json(settings, merged(config.to_json(), again))
                    log = stack.enter_context((scratch / f"{number:04}.log").open("w+b"))
                    arguments = train_arguments(
                        *(data, str(place / f"{number:04}"), settings),
                        fold=config.fold,
                        cache=cache,
                    )
                    running[number] = start([*command, *arguments], log=log, sharing=processes > 1)
                    logs[number] = log
                time.sleep(0.1)
                for number in [n for n, child in running.items() if child.poll() is not None]:
                    child = running.pop(number)
                    end(child)
                    _require_result(number, child.returncode, logs.pop(number))
                    metrics = Run.load(place / f"{number:04}").metrics
                    known[number] = (_seed(config, number), score_of(metrics))
                    _keep(folder, number, known[number], score)
                    _write(run, known, score)
                    push()
                    shutil.rmtree(place / f"{number:04}")
                    done, left = len(known) - before, len(waiting) + len(running)
                    as_good = sum(area >= own for _, area in known.values())
                    rest = (time.monotonic() - begun) / done * left
                    say_parts(
                        f"permutation {number} of {count}",
                        f"{title} {known[number][1]:.3f}",
                        f"{as_good} of {len(known)} reach the run's {own:.3f}",
                        f"{duration(rest)} left" if left else "",
                    )
        finally:
            for child in running.values():
                end(child)


def _seed(config: TrainConfig, number: int) -> int:
    """The first seed of a retraining: no two share one."""
    return config.seed + number * config.repeats


def _finished(folder: Path, score: str) -> dict[int, tuple[int, float]]:
    """Number → (seed, score) of every finished retraining; `score` is what it is called.

    Raises:
      ContractError: a file that is not one's result.
    """
    found = {}
    kinds = {**_NUMBERS, score: _SCORES[score]}
    for file in sorted(folder.glob("[0-9]*.json")):
        data = read_json(file)
        try:
            require_kinds(data, kinds)
            require_known(data, kinds)
            if file.stem != f"{data['permutation']:04}":
                raise ContractError(
                    f"permutation: {data['permutation']} found, the name's required"
                )
        except ContractError as error:
            raise ContractError(f"{file}: {error}; delete it to train it again") from error
        found[data["permutation"]] = (data["seed"], float(data[score]))
    return found


def _keep(folder: Path, number: int, result: tuple[int, float], score: str) -> None:
    cells = zip((*_NUMBERS, score), (number, *result), strict=True)
    write_json(folder / f"{number:04}.json", dict(cells))


def _write(run: Path, known: dict[int, tuple[int, float]], score: str) -> None:
    """permutations.csv, in the order of their numbers."""
    table = [(number, *known[number]) for number in sorted(known)]
    write_table(run / PERMUTATIONS_NAME, (*_NUMBERS, score), table)


def _require_result(number: int, code: int, log: IO[bytes]) -> None:
    if code:
        log.seek(0)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "it wrote nothing")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise CommandError(f"permutation {number} ended with {how}: {last}")
