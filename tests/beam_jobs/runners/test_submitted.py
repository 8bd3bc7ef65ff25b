"""A job that runs elsewhere: cancelled when the command is to end, and never forgotten."""

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from beam_jobs.common import cli
from beam_jobs.common.cli import CommandError, StillRunningError
from beam_jobs.runners import submitted
from beam_jobs.runners.engines import Engine
from beam_jobs.runners.watch import Progress, watch

FLINK = Engine(name="Flink", place="http://far:8081", job_name="voxelbeam-convert-d-1")
DATAFLOW = Engine(name="Dataflow", place="project p, region r", job_name="j")


class FarJob:
    """As Beam's results are.

    Args:
      ends_as: the state a cancelled job comes to; None for one that goes on.
      wrong: what waiting for it raises at once; None to wait for its end.
    """

    def __init__(
        self, ends_as: str | None = "CANCELLED", wrong: Exception | None = None, fault: str = ""
    ) -> None:
        self.state, self._job_id, self.cancelled = "RUNNING", "id-7", 0
        self._ends_as, self._wrong, self._fault = ends_as, wrong, fault
        self._end = threading.Event()

    def cancel(self) -> None:
        self.cancelled += 1
        if self._fault:
            raise RuntimeError(self._fault)
        if self._ends_as:
            self.state = self._ends_as
            self._end.set()

    def wait_until_finish(self) -> None:
        if self._wrong is not None:
            raise self._wrong
        self._end.wait(20)


def broken_progress() -> Progress:
    """A display that fails once it runs: a fault of the command's own, as Ctrl-C is."""

    @contextlib.contextmanager
    def shown() -> Iterator[object]:
        def update() -> None:
            raise OSError("no more terminal")

        yield update

    return shown()  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(submitted, "_CANCEL_S", 0.2)
    monkeypatch.setattr(submitted, "_FAREWELL_S", 0.1)
    monkeypatch.setattr(submitted, "_SUBMIT_S", 0.4)


def test_whatever_ends_the_command_cancels_the_job_and_the_mark_goes_with_it():
    job, marks = FarJob(), list[str]()
    with pytest.raises(OSError, match="no more terminal"):
        watch(lambda: job, broken_progress(), engine=FLINK, mark=marks.append)
    assert job.cancelled == 1
    assert len(marks) == 2
    assert all(word in marks[0] for word in ("id-7", "voxelbeam-convert-d-1", "http://far:8081"))
    assert marks[1] == ""


@pytest.mark.parametrize(
    ("job", "why"),
    [
        (FarJob(fault="permission denied"), "permission denied"),
        (FarJob(ends_as=None), "RUNNING after"),
    ],
)
def test_a_job_that_cannot_be_cancelled_is_named_and_stays_marked(job, why):
    marks = list[str]()
    with pytest.raises(StillRunningError, match=why) as found:
        watch(lambda: job, broken_progress(), engine=DATAFLOW, mark=marks.append)
    assert "gcloud dataflow jobs cancel id-7 --project=p --region=r" in str(found.value)
    assert len(marks) == 1


def test_a_job_whose_end_this_process_cannot_see_is_cancelled_too():
    job = FarJob(wrong=RuntimeError("the network is gone"))
    with pytest.raises(CommandError, match="the network is gone"):
        watch(lambda: job, contextlib.nullcontext(lambda: None), engine=FLINK)
    assert job.cancelled == 1


def test_a_job_that_failed_is_not_cancelled():
    job, marks = FarJob(wrong=RuntimeError("bad data")), list[str]()
    job.state = "FAILED"
    with pytest.raises(CommandError, match="bad data"):
        watch(lambda: job, contextlib.nullcontext(lambda: None), engine=FLINK, mark=marks.append)
    assert job.cancelled == 0
    assert marks[1:] == [""]


def test_a_submission_that_is_under_way_is_waited_for_and_cancelled():
    job, marks = FarJob(), list[str]()

    def run() -> FarJob:
        time.sleep(0.3)
        return job

    with pytest.raises(OSError, match="no more terminal"):
        watch(run, broken_progress(), engine=DATAFLOW, mark=marks.append)
    assert job.cancelled == 1
    # Before it waits, for it may be ended meanwhile.
    assert ["list --filter=name=j" in marks[0], "cancel id-7" in marks[1]] == [True, True]
    assert marks[2:] == [""]


def test_a_submission_that_comes_to_nothing_leaves_no_mark():
    marks = list[str]()

    def run() -> FarJob:
        time.sleep(0.3)
        raise RuntimeError("no such bucket")

    with pytest.raises(OSError, match="no more terminal"):
        watch(run, broken_progress(), engine=DATAFLOW, mark=marks.append)
    assert marks[1:] == [""]


def test_no_mark_is_made_of_a_job_that_ends_with_the_command():
    job, marks = FarJob(ends_as=None), list[str]()
    engine = Engine(name="Prism", own_server=True, in_server=True)
    with pytest.raises(OSError, match="no more terminal"):
        watch(lambda: job, broken_progress(), engine=engine, mark=marks.append)
    assert marks == []
    assert job.cancelled == 1


@pytest.mark.parametrize("quiet", [False, True])
def test_name_id_and_state_are_printed_when_the_state_changes(quiet, capsys, monkeypatch):
    monkeypatch.setattr(cli._Output, "quiet", quiet)
    monkeypatch.setattr(submitted, "_STATE_S", 0.01)
    job = FarJob()
    job.state = "STARTING"

    def changes() -> None:
        time.sleep(0.1)
        job.state = "RUNNING"
        time.sleep(0.1)
        job.cancel()

    threading.Thread(target=changes).start()
    watch(lambda: job, contextlib.nullcontext(lambda: None), engine=FLINK)
    whole = "job voxelbeam-convert-d-1 (id-7) on Flink (http://far:8081)"
    lines = [f"{whole}: {state}" for state in ("STARTING", "RUNNING", "CANCELLED")]
    printed = capsys.readouterr().err.splitlines()
    assert printed[:2] == ([] if quiet else lines[:2])


@pytest.mark.parametrize(
    "said",
    [
        "bundle inst013 stage-016 failed:SDK worker disconnected: worker[job-003], 2 active",
        "Traceback (most recent call last):\n  File x\nRuntimeError: Channel closed prematurely.",
    ],
)
def test_a_worker_that_died_is_told_as_such(said):
    job = FarJob(wrong=RuntimeError(said))
    job.state = "FAILED"
    with pytest.raises(CommandError, match=r"^a worker was lost: .*; the same command resumes$"):
        watch(lambda: job, contextlib.nullcontext(lambda: None), engine=FLINK, resumes=True)


def test_a_part_of_the_engine_that_does_not_answer_is_told_without_grpcs_many_lines():
    said = (
        "Traceback\ngrpc._channel._InactiveRpcError: <_InactiveRpcError of RPC that terminated:\n"
        '\tstatus = StatusCode.UNAVAILABLE\n\tdetails = "failed to connect to ipv4:127.0.0.1:9"\n>'
    )
    job = FarJob(wrong=RuntimeError(said))
    job.state = "FAILED"
    with pytest.raises(CommandError, match=r"cannot be reached: failed to connect to ipv4:127\.0"):
        watch(lambda: job, contextlib.nullcontext(lambda: None), engine=FLINK)
