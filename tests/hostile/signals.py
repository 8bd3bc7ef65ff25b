"""Signals at seeded moments of a command's life; then the same command, and what it leaves.

    python -m tests.hostile.signals --commands convert,train --signals 40 --seed 0

Each signal meets a command that starts afresh: at a moment of its duration, right before one of its
file operations (half of them renames), or, from a cold start, amid its imports. INT, TERM and HUP
must end it within seconds with their exit code, one line, and nothing left; KILL ends it anyhow.
Then the same command must finish with the bytes of one that nothing interrupted, nothing left in
its output or TMPDIR, and no process alive.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.hostile.compared import differences, digest
from tests.hostile.made import SHAPE, SMALL, Made
from tests.hostile.processes import heed_signals, session, slowdown
from tests.hostile.zygote import ROOT, Outcome, Zygotes

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
PROMPT_S = 4.0  # on a machine that does nothing else; elsewhere times `Outcome.slowdown`
_AT_OPERATION = "tests.hostile.at_operation"
_FORKED = "tests.hostile.forked"
_FIRST_LINES_S = 0.12  # of an interpreter, before it has read ours
_BEGUN_S = 0.5  # by then it has, times `Outcome.slowdown`
_GRACE_S = 2.0  # of processes behind their first one; times `Outcome.slowdown`
_RUN_S = 240.0
# What a conversion says each half a minute where it writes to no terminal.
_HEARTBEAT = re.compile(r"^\d+ s: headers of .*\n", re.MULTILINE)

COHORT = ("--input", "../input/cohort/train", "--labels", "../input/cohort/train_labels.csv")
DATASET = ("--data", "../input/dataset", "--output_dir", "output")
CONVERT = (*COHORT, "--output", "output", "--patients_per_shard", "2", *SHAPE)
# Name → module, what it needs, arguments.
COMMANDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "convert": ("beam_jobs.dicom_to_tfrecord", ("cohort",), CONVERT),
    "convert-npz": ("beam_jobs.dicom_to_tfrecord", ("cohort",), (*CONVERT, "--format", "npz")),
    "convert-processes": (
        "beam_jobs.dicom_to_tfrecord", ("cohort",), (*CONVERT, "--processes", "2")
    ),
    "report": (
        "beam_jobs.report", ("dataset",), ("../input/dataset", "--output", "output/page.html")
    ),
    "train": (
        "trainer.task", ("dataset",),
        (*DATASET, "--fold", "0", *SMALL, "--epochs", "2", "--augment", "none"),
    ),
    "tune": (
        "trainer.tune", ("dataset", "small_space.json"),
        (*DATASET, "--max_trials", "2", "--epochs", "1", "--tuner", "random", "--folds", "1",
         "--space", "../input/small_space.json"),
    ),
    "export": (
        "serving.export", ("run", "dataset"),
        ("--runs", "../input/run", "--data", "../input/dataset", "--output", "output/model",
         "--overwrite"),
    ),
    "predict": (
        "serving.batch_predict", ("model", "cohort"),
        ("--model", "../input/model", "--input", "../input/cohort/test", "--ids",
         "../input/cohort/sample_submission.csv", "--output", "output/submission.csv"),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """When a signal comes.

    Attributes:
      number: the signal.
      kind: "time", "operation" or "cold".
      at: seconds, or the number of the operation.
    """

    number: signal.Signals
    kind: str
    at: float


class Subject:
    """A command at a place of its own, where it is run again and again.

    Args:
      name: of `COMMANDS`.
      place: an empty directory.
      made: sound inputs.
      zygotes: which run it.
    """

    def __init__(self, name: str, place: Path, made: Made, zygotes: Zygotes) -> None:
        self.name, self._place, self._zygotes = name, place, zygotes
        self._module, needs, self._arguments = COMMANDS[name]
        for need in needs:
            source, target = made.get(need), place / "input" / need
            target.parent.mkdir(exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        self._afresh()
        started = time.monotonic()
        self._require_sound(self.run())
        self.seconds = time.monotonic() - started
        self.reference = self.found()
        self._afresh()
        log = place / "operations"
        self._require_sound(self._wrapped(signal.SIGINT, 0, {"OPERATIONS": str(log)}))
        self.operations = log.read_text().splitlines()
        if different := differences(name, self.reference, self.found()):
            raise RuntimeError(f"{name}: two runs differ: {different}")

    def _require_sound(self, outcome: Outcome) -> None:
        if outcome.code != 0:
            raise RuntimeError(f"{self.name}: {outcome}")

    def _afresh(self) -> None:
        for name in ("work", "tmp", "home", "streams"):
            shutil.rmtree(self._place / name, ignore_errors=True)
            (self._place / name).mkdir()

    def _environment(self, more: dict[str, str] | None = None) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self._place / "home"),
            "TMPDIR": str(self._place / "tmp"),
            "PYTHONPATH": str(ROOT),
            **(more or {}),
        }

    def run(self, signal_after: tuple[float, int] | None = None) -> Outcome:
        """The command from the zygote, with a signal to its process group."""
        words = [*self._forked(), self._module, *self._arguments]
        return self._ask(words[0], words[1:], signal_after=signal_after)

    def _forked(self) -> tuple[str, ...]:
        """What the command's own processes are forks by, where imports would be most of them."""
        return (_FORKED,) if self.name == "tune" else ()

    def _wrapped(self, number: int, at: int, more: dict[str, str] | None = None) -> Outcome:
        arguments = (str(int(number)), str(at), *self._forked(), self._module, *self._arguments)
        return self._ask(_AT_OPERATION, arguments, more)

    def _ask(
        self,
        module: str,
        arguments: Sequence[str],
        more: dict[str, str] | None = None,
        signal_after: tuple[float, int] | None = None,
    ) -> Outcome:
        return self._zygotes.of(self._module).run(
            module,
            arguments,
            cwd=self._place / "work",
            env=self._environment(more),
            streams=self._place / "streams",
            timeout=_RUN_S,
            signal_after=signal_after,
        )

    def _cold(self, moment: Moment) -> Outcome:
        """The command from its start, with a signal to its own process alone."""
        streams = self._place / "streams"
        with (streams / "stdout").open("wb") as out, (streams / "stderr").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", self._module, *self._arguments],
                cwd=self._place / "work", env=self._environment(), stdin=subprocess.DEVNULL,
                stdout=out, stderr=err, start_new_session=True, preexec_fn=heed_signals,
            )  # fmt: skip
            time.sleep(moment.at)
            process.send_signal(moment.number)
            signalled = time.monotonic()
            slow = 1.0
            while (code := process.poll()) is None and time.monotonic() < signalled + _RUN_S:
                slow = slowdown(process.pid) or slow
                time.sleep(0.01)
            killed = "" if code is not None else "timeout"
            if code is None:
                process.kill()
                code = process.wait()
            seconds = moment.at + time.monotonic() - signalled
        until = time.monotonic() + _GRACE_S * slow
        while (left := session(process.pid)) and time.monotonic() < until:
            time.sleep(0.02)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return Outcome(
            code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            stdout=(streams / "stdout").read_text(),
            stderr=(streams / "stderr").read_text(),
            seconds=seconds,
            peak_bytes=0,
            slowdown=slow,
            killed=killed,
            left=self._left(),
            left_processes=tuple(left.values()),
        )

    def _left(self) -> tuple[str, ...]:
        tmp = self._place / "tmp"
        return tuple(sorted(str(path.relative_to(tmp)) for path in tmp.rglob("*")))

    def _left_behind(self) -> Iterator[Path]:
        for name in ("work", "tmp", "home"):
            yield from (self._place / name).iterdir()

    def found(self) -> dict[str, str]:
        """Path → digest of all that lies in the working directory."""
        work = self._place / "work"
        return {
            str(path.relative_to(work)): digest(path) if path.is_file() else "directory"
            for path in sorted(work.rglob("*"))
        }

    def moments(self, count: int, rng: random.Random) -> Iterator[Moment]:
        """Seeded ones, of each signal as many, of each kind some."""
        renames = [
            at
            for at, line in enumerate(self.operations, 1)
            if line.startswith("os.rename") and "__autograph" not in line  # TensorFlow's own
        ]
        for place in range(count):
            number = SIGNALS[place % len(SIGNALS)]
            kind = ("time", "operation", "time", "operation", "cold")[place // len(SIGNALS) % 5]
            at = self.seconds * rng.uniform(0.0, 1.0)
            if kind == "cold":
                at = rng.uniform(_FIRST_LINES_S, 3.0 + self.seconds)
            elif kind == "operation":
                often = renames if renames and rng.random() < 0.5 else self.operations
                pick = rng.randrange(len(often))
                at = renames[pick] if often is renames else pick + 1
            yield Moment(number=number, kind=kind, at=at)

    def meets(self, moment: Moment) -> tuple[str, list[str], float]:
        """One signal and the same command again: how it ended, what was wrong, and the seconds it
        took from the signal on, as of a machine that does nothing else.
        """
        self._afresh()
        if moment.kind == "cold":
            outcome = self._cold(moment)
        elif moment.kind == "time":
            outcome = self.run((moment.at, int(moment.number)))
        else:
            outcome = self._wrapped(moment.number, int(moment.at))
        faults = list(self._ended_badly(outcome, moment))
        early = outcome.signal == moment.number != signal.SIGKILL and not faults
        took = outcome.seconds - moment.at if moment.kind != "operation" else 0.0
        ended = "done" if outcome.code == 0 else f"{outcome.code or outcome.signal}"
        if early:
            ended = "before the first line"
        if outcome.code != 0 and not any(self._left_behind()):
            return ended, faults, max(0.0, took / outcome.slowdown)  # it would be a first run
        if outcome.code != 0 or self.name != "export":
            again = self.run()
            if again.code != 0:
                faults.append(f"again: exit code {again.code}, {again.stderr[-300:]!r}")
            faults += [f"again: left in TMPDIR: {name}" for name in again.left[:3]]
            faults += [f"again: left running: {line}" for line in again.left_processes[:1]]
        faults += [
            f"again: {line}" for line in differences(self.name, self.reference, self.found())[:3]
        ]
        return ended, faults, max(0.0, took / outcome.slowdown)

    def _ended_badly(self, outcome: Outcome, moment: Moment) -> Iterator[str]:
        if outcome.left_processes:
            yield f"left running: {outcome.left_processes[0]}"
        if outcome.killed:
            yield f"killed for {outcome.killed}"
        if moment.number == signal.SIGKILL or outcome.code == 0:
            return
        if outcome.signal == moment.number and moment.kind != "operation":
            # Before the command's first lines it ends as any process does.
            if (
                outcome.stderr
                or outcome.left
                or self.found()
                or outcome.seconds > _BEGUN_S * outcome.slowdown
            ):
                yield f"ended by signal {outcome.signal} after {outcome.seconds:.1f} s"
            return
        if outcome.code != 128 + moment.number:
            yield f"exit code {outcome.code}, signal {outcome.signal}: {outcome.stderr[-300:]!r}"
        said = _HEARTBEAT.sub("", outcome.stderr)
        if said.count("\n") != 1 or "Traceback" in said:
            yield f"stderr: {outcome.stderr[-300:]!r}"
        if outcome.left:
            yield f"left in TMPDIR: {outcome.left[0]}"
        took = outcome.seconds - moment.at
        if moment.kind != "operation" and took > PROMPT_S * outcome.slowdown:
            yield f"ended {took:.1f} s after the signal, slowed {outcome.slowdown:.1f} times"
        for name in self.found():
            if name.endswith(".part") or "voxelbeam-" in name:
                yield f"left: {name}"


def run(
    name: str, count: int, seed: int, place: Path, made: Made, zygotes: Zygotes, kinds: str = ""
) -> tuple[list[str], str]:
    """Signals for one command; what was wrong, and its line of the table."""
    subject = Subject(name, place, made, zygotes)
    ended: Counter[str] = Counter()
    faults: list[str] = []
    slowest = 0.0
    for moment in subject.moments(count, random.Random(f"{seed} {name}")):
        if kinds and moment.kind not in kinds:
            continue
        how, wrong, took = subject.meets(moment)
        ended[how] += 1
        if moment.number != signal.SIGKILL:
            slowest = max(slowest, took)
        at = (
            f"{moment.at:.2f} s"
            if moment.kind != "operation"
            else subject.operations[min(int(moment.at), len(subject.operations)) - 1]
        )
        what = f"{sum(ended.values())}. {moment.number.name} {moment.kind} {at}: {how}"
        print(f"{name} {what}, {took:.1f} s", file=sys.stderr, flush=True)
        for line in wrong:
            faults.append(f"{name}: {moment.number.name} {moment.kind} {at}: {line}")
            print(faults[-1], flush=True)
    codes = ", ".join(f"{number} x {how}" for how, number in sorted(ended.items()))
    return faults, (
        f"| {name} | {subject.seconds:.1f} s, {len(subject.operations)} operations | "
        f"{sum(ended.values())} | {codes} | {slowest:.1f} s | {len(faults)} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--signals", type=int, default=40, help="a command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="only of these: time, operation, cold")
    flags = parser.parse_args()
    table, faults = [], []
    with tempfile.TemporaryDirectory() as directory, Zygotes() as zygotes:
        (Path(directory) / "made").mkdir()
        made = Made(Path(directory) / "made", zygotes)
        for name in flags.commands.split(","):
            place = Path(directory) / name
            place.mkdir()
            wrong, line = run(name, flags.signals, flags.seed, place, made, zygotes, flags.kinds)
            faults += wrong
            table.append(line)
            print(line, flush=True)
    print(
        "| command | a run | signals | ended with | slowest | faults |\n|---|---|---|---|---|---|"
    )
    print("\n".join(table))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
