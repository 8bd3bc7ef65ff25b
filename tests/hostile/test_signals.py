"""Forty signals for each command, and the same command after each (`tests.hostile.signals`)."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.hostile.made import Made
from tests.hostile.signals import COMMANDS, Moment, Subject, run
from tests.hostile.zygote import Zygotes


def test_a_killed_and_a_terminated_report_are_made_again(
    tmp_path: Path, made: Made, zygotes: Zygotes
) -> None:
    subject = Subject("report", tmp_path, made, zygotes)
    last = next(at for at, line in enumerate(subject.operations, 1) if "os.rename" in line)
    for number, ended in ((signal.SIGKILL, "9"), (signal.SIGTERM, "143")):
        moment = Moment(number=number, kind="operation", at=last)
        assert subject.meets(moment)[:2] == (ended, [])


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_forty_signals_change_nothing(
    name: str, tmp_path: Path, made: Made, zygotes: Zygotes
) -> None:
    faults, _ = run(name, 40, 0, tmp_path, made, zygotes)
    assert faults == []


def test_moments_are_seeded() -> None:
    subject = Subject.__new__(Subject)
    subject.seconds, subject.operations = 3.0, ["open a", "os.rename a"]
    once, again = (list(subject.moments(40, random.Random("0 x"))) for _ in range(2))
    assert once == again
    assert {moment.kind for moment in once} == {"time", "operation", "cold"}
    assert [sum(m.number == n for m in once) for n in (1, 2, 9, 15)] == [10] * 4
