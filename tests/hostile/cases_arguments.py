"""Arguments that no command should fall over: every option of every command, spoilt in each way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from tests.hostile.cases import MODULES, Case
from tests.hostile.commands import COMMANDS, Command
from tests.hostile.sandbox import Sandbox

_QUICK = {("convert", "--folds", "six thousand digits"), ("phantoms", "--patients", "words")}
_ESCAPES = "\x1b]0;title\x07\x1b[2J\u202e[bold]\r\n=1+1"
_WHOLE = {"zero": "0", "thirty digits": "9" * 30}
_FRACTIONS = {"negative": "-1", "thirty digits": "9" * 30, "not a number": "nan", "infinite": "inf"}
_FRACTIONAL = ("--fov_mm", "--difficulty", "--label_noise", "--width", "--depth", "--dropout",
               "--learning_rate", "--weight_decay", "--clip_norm", "--ema", "--label_smoothing",
               "--memory_gb", "--worker_timeout")  # fmt: skip
_TEXTS = {"escape sequences": _ESCAPES, "empty": "", "no UTF-8": "\udcff\udcfe"}
# The same code of a command's meets these, whichever option they stand behind.
_ONE_OPTION = {"six thousand digits": "9" * 6000, "words": _ESCAPES}
_ONE_TEXT = {"100 kB": "x" * 100_000, "ten thousand items": ",".join(map(str, range(10_000)))}


def _unknown() -> Iterator[Case]:
    for subject in MODULES:
        yield Case(
            attack="an option that does not exist",
            subject=subject,
            make=lambda sandbox: [f"--{_ESCAPES}"],
            codes=(2,),
            quick=subject in ("voxelbeam", "survey"),
        )


def _options() -> Iterator[Case]:
    for subject, command in COMMANDS.items():
        for place, option in enumerate(command.numbers):
            values = _FRACTIONS if option in _FRACTIONAL else _WHOLE
            more = {} if place else _ONE_OPTION
            yield from _spoilt("a number that is none, or absurd", subject, option, values | more)
        for place, option in enumerate(command.texts):
            more = {} if place else _ONE_TEXT
            yield from _spoilt("a word that is none", subject, option, _TEXTS | more)


def _spoilt(attack: str, subject: str, option: str, values: Mapping[str, str]) -> Iterator[Case]:
    command = COMMANDS[subject]
    for kind, value in values.items():
        yield Case(
            attack=attack,
            subject=subject,
            name=f"{option} {kind}",
            make=partial(command.line, changes={option: value}),
            timeout=300 if subject == "tune" else 120,
            quick=(subject, option, kind) in _QUICK,
        )


def _without(sandbox: Sandbox, *, command: Command, option: str) -> list[str]:
    line = command.line(sandbox, {option: "\0"})
    return [part for part in line if part not in ("\0", option)]


def _missing() -> Iterator[Case]:
    for subject, command in COMMANDS.items():
        for option in command.arguments:
            if (subject, option) == ("tune", "--max_trials"):
                continue  # a sound search, of more trials than a test waits for
            yield Case(
                attack="an option left out",
                subject=subject,
                name=option,
                make=partial(_without, command=command, option=option),
            )


CASES = [*_unknown(), *_options(), *_missing()]
