"""What is tried apart: values, refusals, crashes and hangs are answers; nothing is left over."""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

from trainer.machine import apart
from trainer.machine.apart import Answer, Trial, tried


def trial(name: str, **arguments: object) -> Trial:
    return Trial(function=f"{__name__}:{name}", arguments=arguments)


# Tried in other processes.


def give(value: int) -> int:
    print("a library's own words")
    return value


def refuse(words: str) -> None:
    raise ValueError(words)


def need() -> None:
    import no_such_module  # type: ignore[import-not-found]  # noqa: F401


def need_of_another() -> None:
    try:
        need()
    except ImportError:
        raise ImportError("Stuff cannot be imported")  # noqa: B904


def crash(words: str = "") -> None:
    sys.stderr.write(f"a note\n{words}\na trace\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(60)


def process() -> int:
    return os.getpid()


@pytest.mark.slow
def test_values_refusals_and_what_is_missing_are_answers_of_one_process() -> None:
    trials = [trial("process"), trial("give", value=3), trial("refuse", words="one\nline")]
    needs = [trial("need"), trial("need_of_another")]
    answers = list(tried([*trials, *needs, trial("process")], seconds=30))
    assert answers[0] == answers[5] != Answer(value=os.getpid())
    assert answers[1] == Answer(value=3)
    assert answers[2] == Answer(problem="one line")
    assert answers[3] == Answer(
        problem="No module named 'no_such_module'", missing="no_such_module"
    )
    assert answers[4] == Answer(
        problem="Stuff cannot be imported (No module named 'no_such_module')",
        missing="no_such_module",
    )


@pytest.mark.slow
def test_every_process_leaves_a_gpus_memory_to_others_and_no_file_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("TF_FORCE_GPU_ALLOW_GROWTH", "MPLCONFIGDIR", "KERAS_HOME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    asked = [Trial(function="os:getenv", arguments={"key": name}) for name in names]
    # The second process, too, after the crash of the first.
    growth, *directories = (
        one.value for one in list(tried([trial("crash"), *asked], seconds=30))[1:]
    )
    assert growth == "true"
    assert directories == [tempfile.gettempdir()] * 2


def test_processes_want_no_directory_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setenv("HOME", "/no/such")
    monkeypatch.delenv("KERAS_HOME", raising=False)
    assert "KERAS_HOME" not in apart._environment()


@pytest.mark.slow
def test_a_crash_is_told_by_its_last_words_and_the_rest_is_tried() -> None:
    words = "F0000 00:00:00.000000    1 gpu.cc:1] Check failed: no kernel"
    answers = list(tried([trial("crash", words=words), trial("give", value=1)], seconds=30))
    assert answers[0].problem == f"its process ended by SIGSEGV: {words}".replace("    ", " ")
    assert answers[1] == Answer(value=1)


@pytest.mark.slow
def test_a_hang_is_ended_in_time_and_the_rest_is_tried(tmp_path: Path) -> None:
    file = tmp_path / "process"
    answers = list(tried([trial("hang", file=str(file)), trial("give", value=1)], seconds=5))
    assert answers[0] == Answer(problem="no answer within 5 s", hung=True)
    assert answers[1] == Answer(value=1)
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


def test_what_cannot_be_started_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    answers = list(tried([trial("process")] * 2, seconds=5))
    assert [answer.problem for answer in answers] == [
        "no process can be started: No such file or directory"
    ] * 2
