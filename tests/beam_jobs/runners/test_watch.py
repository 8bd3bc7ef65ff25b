"""How far a job is, and how it failed: no count above its total, one line that says what then."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.progress_files import Ticks, tick
from beam_jobs.runners import watch


def test_progress_is_never_above_its_total(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_HEARTBEAT_S", 0.0)
    ticks = Ticks.below(str(tmp_path))
    for _ in range(2):  # the engine ran all of it again
        for chunk in range(3):
            tick(ticks.files, str(chunk), count=64)
        tick(ticks.planned, "1", "2")
        tick(ticks.patients, "1")
    with watch.conversion_progress(ticks, 192) as update:
        update()
        tick(ticks.files, "3", count=8)  # of an input that grew
        update()
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("headers of 192 of 192 files, 1 of 2 patients converted")
    assert "headers of 200 of 200 files" in second


def failing(error: Exception) -> None:
    def run() -> object:
        def wait() -> None:
            raise error

        return SimpleNamespace(wait_until_finish=wait)

    watch.watch(run, watch.prediction_progress(Ticks(), None), resumes=True)


@pytest.mark.parametrize("said", ["disk full", "disk full."])
def test_a_failed_job_says_that_the_same_command_resumes(said: str) -> None:
    with pytest.raises(CommandError) as caught:
        failing(RuntimeError(f"OSError: {said} [while running 'Write']"))
    assert str(caught.value).endswith("disk full; the same command resumes")


def test_what_is_wrong_with_the_request_is_not_resumed() -> None:
    with pytest.raises(UsageError, match=r"\Ano label$"):
        failing(UsageError("no label"))
