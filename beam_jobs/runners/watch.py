"""Progress of a Beam job: a live line on a terminal, a heartbeat in a log, one line of failure."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator

from beam_jobs.common import interrupts, terminal
from beam_jobs.common.cli import CommandError, UsageError, is_quiet
from beam_jobs.common.progress_files import Ticks, Units
from beam_jobs.runners.engines import Engine
from beam_jobs.runners.submitted import Mark, SubmittedJob, lost_connection

_HEARTBEAT_S = 30.0
_RESUMES = "; the same command resumes"
_GOES_ON = "; the same command goes on from here"  # what a DICOMweb service's failures end with


Update = Callable[[], None]
# What shows how far a job is while its block runs: `Update` is called several times a second.
Progress = contextlib.AbstractContextManager[Update]


def watch(
    run: Callable[[], object],
    progress: Progress,
    *,
    engine: Engine | None = None,
    private: bool = False,
    resumes: bool = False,
    mark: Mark | None = None,
) -> None:
    """Runs a pipeline to its end and shows how far it is; it never goes on without us.

    Args:
      run: starts the pipeline and returns its result (`pipeline.run`).
      progress: how it is shown.
      engine: what runs it (`job_server` says it); None for this process.
      private: report a failure's kind alone: messages may hold names of files.
      resumes: what was done stays done, which a failure's line says.
      mark: gets a line about a job as soon as it is one that outlives this process, and "" once
        it is known to have ended.

    Raises:
      CommandError: the pipeline failed; one line, without Beam's stack of stages.
      StillRunningError: it was to end, and may still run.
      UsageError: a worker found that what was requested cannot be.
    """
    job = None if engine is None or engine.local else SubmittedJob(engine, mark)
    failure: list[BaseException] = []
    died = threading.Event()

    def worker_died(hook: threading.ExceptHookArgs) -> None:
        """Beam's thread that waits for a worker process raises when it ends, unhandled."""
        if "Worker subprocess exited" in str(hook.exc_value):
            if thread.is_alive():
                died.set()
        elif not type(hook.exc_value).__module__.startswith("grpc"):  # the other end of that
            threading.__excepthook__(hook)

    def target() -> None:
        try:
            result = run()
            if job is not None:
                job.begun(result)
            result.wait_until_finish()  # type: ignore[attr-defined]
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target, daemon=True)
    threading.excepthook = worker_died
    thread.start()
    try:
        with progress as update:
            while thread.is_alive() and not died.is_set():
                thread.join(0.2)
                update()
    except BaseException:  # Ctrl-C, or what is shown cannot be shown
        try:
            if job is not None:
                job.give_up(thread)
        finally:
            interrupts.stop_work()
        raise
    if job is not None and failure:  # of the job, or of what this process knows of it
        job.give_up(thread)
    elif job is not None:
        job.ended()
    if died.is_set():
        died_how = "a worker process died (killed, or out of memory)"
        raise CommandError(f"{died_how}{_RESUMES if resumes else ''}")
    if failure:
        error = _one_line(failure[0])
        if private and not isinstance(error, UsageError):
            kind = type(failure[0]).__name__
            error = CommandError(f"the job failed ({kind}); --id_policy keep would show more")
        if job is not None and (lost := lost_connection(failure[0])):
            error = CommandError(f"{job} was lost: its job server does not answer ({lost})")
        if resumes and not isinstance(error, UsageError):
            error = CommandError(f"{str(error).removesuffix(_GOES_ON).rstrip('.')}{_RESUMES}")
        raise error from failure[0]


def conversion_progress(ticks: Ticks, files: int | None) -> Progress:
    """Bars of headers and patients on a terminal, elsewhere a line every half a minute.

    Args:
      ticks: what workers of this machine note.
      files: input files there are, None when unknown.
    """
    if is_quiet():
        return contextlib.nullcontext(lambda: None)
    return (_live_lines if sys.stderr.isatty() else _heartbeats)(ticks, files)


def prediction_progress(ticks: Ticks, patients: int | None) -> Progress:
    """A bar of patients on a terminal, nothing elsewhere.

    Args:
      ticks: what workers of this machine note.
      patients: how many there are, None when unknown.
    """
    if not ticks.patients:
        return contextlib.nullcontext(lambda: None)
    return _bar(ticks, patients)


@contextlib.contextmanager
def _bar(ticks: Ticks, patients: int | None) -> Iterator[Update]:
    predicted = Units(ticks.patients)
    with terminal.progress() as bars:
        task = bars.add_task("predicting", total=patients)

        def update() -> None:
            done = predicted.done()
            bars.update(task, completed=done, total=_at_least(patients, done))

        yield update


@contextlib.contextmanager
def _live_lines(ticks: Ticks, files: int | None) -> Iterator[Update]:
    read, planned, converted = map(Units, (ticks.files, ticks.planned, ticks.patients))
    with terminal.progress() as bars:
        headers = bars.add_task("reading headers", total=files)
        patients = bars.add_task("converting", total=None)

        def update() -> None:
            opened, done = read.done(), converted.done()
            bars.update(headers, completed=opened, total=_at_least(files, opened))
            # Looked at behind what is done: every patient is planned before.
            bars.update(patients, completed=done, total=planned.done() or None)

        yield update


@contextlib.contextmanager
def _heartbeats(ticks: Ticks, files: int | None) -> Iterator[Update]:
    start = last = time.monotonic()
    headers, planned, converted = map(Units, (ticks.files, ticks.planned, ticks.patients))

    def update() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _HEARTBEAT_S:
            return
        last = now
        read, done = headers.done(), converted.done()
        of_files = "" if files is None else f" of {_at_least(files, read)}"
        line = f"{now - start:.0f} s: headers of {read}{of_files} files"
        if of_patients := planned.done():  # looked at behind what is done
            line += f", {done} of {of_patients} patients converted"
        else:
            line += f" ({read / (now - start):.0f}/s)"
        print(line, file=sys.stderr)

    yield update


def _at_least(total: int | None, done: int) -> int | None:
    """A total counted beforehand; of an input that grew meanwhile at least what was found."""
    return None if total is None else max(total, done)


_LAST_ERROR = re.compile(r"^(?:[\w.]*\.)?(\w+): (.*)$", re.MULTILINE)


# An OSError as text: what is refused, and of which file.
_REFUSED = re.compile(r"(?:\w*Error: )?\[Errno \d+\] (?P<what>.*?)(?:: '(?P<place>.*)')?")


# How Prism, Beam's Python job server and the Java ones (Flink, Spark) say it.
_LOST_WORKER = re.compile(
    r"SDK worker disconnected|Channel closed prematurely|Multiplexer hanging up"
    r"|SDK harness .*(?:disconnected|was terminated)|Worker .* was lost",
    re.IGNORECASE,
)
_GRPC_DETAILS = re.compile(r"^\s*details = \"(.*?)\"?$", re.MULTILINE)


def _one_line(error: BaseException) -> Exception:
    """What went wrong, without Beam's traceback text and stage names."""
    if isinstance(error, KeyboardInterrupt):
        return CommandError("interrupted")
    text = str(error).split(" [while running")[0].strip()
    name = type(error).__name__
    if _LOST_WORKER.search(text):
        return CommandError("a worker was lost: it died (killed, or out of memory), or its machine")
    if said := _GRPC_DETAILS.search(text):
        return CommandError(f"a part of the engine cannot be reached: {said[1]}")
    found = _LAST_ERROR.findall(str(error))
    if "Traceback" in str(error) and found:
        name, text = found[-1]
        text = text.split(" [while running")[0]
    if refused := _REFUSED.fullmatch(text):
        place, text = refused["place"], refused["what"]
        text = f"{place}: {text}" if place else text
    if name == UsageError.__name__ or isinstance(error, UsageError):
        return UsageError(text)
    return CommandError(text or name)
