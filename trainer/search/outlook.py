"""How long a run or a study will take, where that is long, and the smaller command to try first.

Measured on the first steps of the first member (`training.epoch.FirstSteps`), in its own process or
in one that trains for this one (`child_process.run_to_end`).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from beam_jobs.common.terminal import duration, row, say, width
from trainer.training.environment import Pace

LONG_S = 3600.0  # from here on it is told
_TRY_S = 600.0  # that a try may take
_LEAST = 1.5  # times shorter, or it is no smaller run

Changes = Mapping[str, str | None]  # flag -> its new value, None: it goes


def tell_of_run(
    pace: Pace,
    *,
    fold: int,
    directory: str,
    permutations: int = 0,
    command: Sequence[str] = (),
) -> None:
    """Prints how long a run with its retrainings will take, where that is long.

    Args:
      pace: of the run.
      fold: one of those that are held out.
      directory: of the run.
      permutations: retrainings of all its members after it.
      command: the command line; without one the settings of a try are told.
    """
    total = pace.seconds * (1 + permutations)
    if total <= LONG_S:
        return
    times = "once" if permutations == 1 else f"{permutations} times"
    again = f", all of it {times} more on permuted labels" if permutations else ""
    what = f"{_count(pace.members, 'network')} of {_count(pace.epochs, 'epoch')}"
    _tell(total, f"{what}, {_short(pace.epoch_seconds)} an epoch{again}")
    epochs = _epochs_to_try(pace, networks=1)
    shorter = epochs * pace.epoch_seconds + pace.end_seconds
    if total < _LEAST * shorter:
        _advise_less_volume()
        return
    changes: Changes = {
        **dict.fromkeys(("--cross_validate", "--permutations", "--processes", "--overwrite")),
        **{"--output_dir": f"{directory.rstrip('/')}-try", "--fold": str(fold)},
        **{"--epochs": str(epochs), "--repeats": "1", "--epoch_choice": "last"},
    }
    text = f"the same settings with fold={fold}, epochs={epochs}, repeats=1, epoch_choice='last'"
    _tell_try(shorter, total / shorter, changed(command, changes) if command else text)


def tell_of_study(
    pace: Pace,
    *,
    trials: Sequence[int],
    searches: int,
    directory: str,
    command: Sequence[str],
) -> None:
    """Prints how long a study will take, where that is long.

    Args:
      pace: of its first trial, which stands for all.
      trials: epochs of each trial.
      searches: studies of that size, one an outer fold.
      directory: of the study, or of all.
      command: the command line.
    """
    each = sum(trials) * pace.epoch_seconds + len(trials) * pace.end_seconds
    total = searches * pace.members * each
    if total <= LONG_S:
        return
    several = f"{searches} searches of " if searches > 1 else ""
    what = f"{several}{_count(len(trials), 'trial')} with {_count(pace.members, 'network')} each"
    _tell(total, f"{what}, {_short(pace.epoch_seconds)} an epoch of the first trial's")
    epochs = _epochs_to_try(pace, networks=2)
    shorter = 2 * (epochs * pace.epoch_seconds + pace.end_seconds)
    if total < _LEAST * shorter:
        _advise_less_volume()
        return
    changes: Changes = {
        **{"--outer_fold": None, "--output_dir": f"{directory.rstrip('/')}-try"},
        **{"--tuner": "random", "--max_trials": "2", "--folds": "1", "--seeds": "1"},
        "--epochs": str(epochs),
    }
    _tell_try(shorter, total / shorter, changed(command, changes))


def changed(command: Sequence[str], changes: Changes) -> str:
    """A command line with other values of some flags, in lines that a shell takes as they are.

    Args:
      command: program and arguments; a flag may stand as "--flag value", "--flag=value" or alone.
      changes: flag -> its value; flags that are not there are put behind, those of None are left
        out.
    """
    kept: list[str] = []
    gone = False
    for part in command:
        if part.startswith("--"):
            name = part.partition("=")[0]
            gone = name in changes
        if not gone:
            kept.append(part)
    for name, value in changes.items():
        if value is not None:
            kept += [name, value]
    lines, room = [""], width() - 4
    words = [shlex.quote(part) for part in kept]
    for place, word in enumerate(words):
        # A flag and its value stay together.
        after = words[place + 1 : place + 2] if word.startswith("--") else []
        wanted = " ".join([word, *(one for one in after if not one.startswith("--"))])
        if lines[-1].strip() and len(f"{lines[-1]} {wanted}") > room:
            lines[-1] += " \\"
            lines.append("     ")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else f"  {word}"
    return "\n".join(lines)


def _epochs_to_try(pace: Pace, *, networks: int) -> int:
    room = _TRY_S / networks - pace.end_seconds
    return max(1, min(pace.epochs, int(room / pace.epoch_seconds)))


def _tell(seconds: float, what: str) -> None:
    row("expect", f"{duration(seconds)} on this CPU: {what}", folded=True)


def _tell_try(seconds: float, factor: float, command: str) -> None:
    row("try first", f"{duration(seconds)}, {factor:.0f} times shorter:", folded=True)
    say(command)


def _advise_less_volume() -> None:
    text = "a dataset of half the --shape: an eighth of the voxels (or a GPU)"
    row("shorter", text, folded=True)


def _short(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _count(number: int, of: str) -> str:
    return f"{number} {of}{'' if number == 1 else 's'}"
