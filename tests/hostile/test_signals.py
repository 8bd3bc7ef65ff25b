"""Forty signals for each command, and the same command after each (`tests.hostile.signals`)."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.hostile.compared import digest
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


@pytest.mark.parametrize(
    ("name", "text", "other", "equal"),
    [
        ("a.json", '{"seconds": 1, "n": [{"input_wait": 2}]}', '{"n": [{}]}', True),
        ("a.json", '{"finished": true}', '{"finished": false}', False),
        ("a.json", '{"version": 1}', '{"version": 2}', False),
        ("a.json", '{"run_times": {"0": 1}}', '{"run_times": {"0": 2}}', False),
        ("a.json", '{"a": 1, "b": 2}', '{"b": 2, "a": 1}', False),
        ("a.csv", "trial,seconds\n0,1.5\n", "trial,seconds\n0,2.5\n", True),
        ("a.csv", "trial,attempts\n0,1\n", "trial,attempts\n0,2\n", False),
        ("a.keras", "network", "Network", False),
    ],
)
def test_no_more_is_left_out_than_what_measures_time(
    name: str, text: str, other: str, equal: bool, tmp_path: Path
) -> None:
    digests = []
    for place, content in (("once", text), ("again", other)):
        (tmp_path / place).mkdir()
        (tmp_path / place / name).write_text(content)
        digests.append(digest(tmp_path / place / name))
    assert (digests[0] == digests[1]) is equal


def test_moments_are_seeded() -> None:
    subject = Subject.__new__(Subject)
    subject.seconds, subject.operations = 3.0, ["open a", "os.rename a"]
    once, again = (list(subject.moments(40, random.Random("0 x"))) for _ in range(2))
    assert once == again
    assert {moment.kind for moment in once} == {"time", "operation", "cold"}
    assert [sum(m.number == n for m in once) for n in (1, 2, 9, 15)] == [10] * 4
