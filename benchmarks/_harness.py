"""What the benchmarks share: ways in turn, whole commands measured, limits judged, figures written.

Ways that are compared take turns within every round, so that whatever else the machine does falls
on all of them; ratios are taken within a round, and their median is the figure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

ROOT = Path(__file__).resolve().parents[1]
# The project's own tests lend their datasets and their browser.
sys.path.insert(0, str(ROOT))

from beam_jobs.common import cli  # noqa: E402

Way = TypeVar("Way")


class Clock(NamedTuple):
    """What a run took: seconds of this process' CPU, and of the wall's clock."""

    cpu: float
    wall: float


class Ran(NamedTuple):
    """A finished command: seconds with its start, CPU seconds, peak MB of its largest process."""

    wall: float
    cpu: float
    peak_mb: float
    stdout: str


def take_turns(
    ways: Mapping[Way, Callable[[], object]],
    rounds: int,
    *,
    warm_up: bool = True,
    only_first: Mapping[Way, int] | None = None,
) -> dict[Way, list[Clock]]:
    """Runs every way once a round.

    Args:
      ways: name → what is run; its result is thrown away outside the clock.
      rounds: that are counted.
      warm_up: one further round comes first and is not counted.
      only_first: a slow way's name → the rounds it takes part in, from the first; it is not
        warmed up.

    Returns:
      Name → a clock a round.
    """
    few = dict(only_first or {})
    times: dict[Way, list[Clock]] = {way: [] for way in ways}
    for number in range(-int(warm_up), rounds):
        for way, function in ways.items():
            if way in few and not 0 <= number < few[way]:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            result = function()
            clock = Clock(time.process_time() - cpu, time.perf_counter() - wall)
            del result
            if number >= 0:
                times[way].append(clock)
    return times


def ratios(one: Iterable[float], other: Iterable[float]) -> list[float]:
    """Ratios round by round, as far as both have rounds."""
    return [a / b for a, b in zip(one, other, strict=False)]


def ratio(one: Iterable[float], other: Iterable[float]) -> float:
    """The median of `ratios`."""
    return statistics.median(ratios(one, other))


def run(command: Sequence[str], **environment: str) -> Ran:
    """Runs a command of one BLAS thread, its stdout kept.

    Raises:
      CommandError: it failed; what it wrote to stderr has been shown.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile() as stdout:
        # A process between, so that the largest of the command's own children is counted alone.
        process = subprocess.Popen(
            [sys.executable, "-c", _BETWEEN, *command],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment},
            text=True,
        )
        _, stderr = process.communicate()
        wall = time.perf_counter() - start
        stdout.seek(0)
        text = stdout.read().decode()
    if process.returncode:
        sys.stderr.write(stderr)
        raise cli.CommandError(f"{' '.join(command[:4])} ... ended with {process.returncode}")
    peak_kb, cpu = stderr.splitlines()[-1].split()
    return Ran(wall=wall, cpu=float(cpu), peak_mb=float(peak_kb) / 1024, stdout=text)


_BETWEEN = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss, used.ru_utime + used.ru_stime, file=sys.stderr)
sys.exit(done.returncode)
"""


def git(*arguments: str, **environment: str) -> bytes:
    """What a git command prints of this repository.

    Raises:
      CommandError: it failed.
    """
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
    )
    if done.returncode:
        line = " ".join(done.stderr.decode().split())
        raise cli.CommandError(f"git {arguments[0]}: {line}")
    return done.stdout


@contextlib.contextmanager
def code_of(tree: str, *folders: str) -> Iterator[Path]:
    """A revision's or a tree's files, all or those of some folders, in a temporary directory.

    Raises:
      CommandError: it is not in this repository.
    """
    with tempfile.TemporaryDirectory() as scratch:
        packed = git("archive", tree, *folders)
        subprocess.run(["tar", "-x", "-C", scratch], input=packed, check=True)
        yield Path(scratch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """A figure beside the bound that it is held to.

    Attributes:
      figure: what it says.
      value: as measured.
      at_least, at_most: the bound, one of them.
      rounds: what `value` is the median of; empty where there was one measurement.
    """

    figure: str
    value: float
    at_least: float | None = None
    at_most: float | None = None
    rounds: tuple[float, ...] = ()

    @classmethod
    def of_median(cls, figure: str, rounds: Iterable[float], **bound: float) -> Limit:
        """The limit of a median over rounds."""
        found = tuple(rounds)
        return cls(figure=figure, value=statistics.median(found), rounds=found, **bound)

    @property
    def holds(self) -> bool:
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    @property
    def bound(self) -> str:
        return (
            f"at most {self.at_most:g}" if self.at_least is None else f"at least {self.at_least:g}"
        )

    @property
    def spread(self) -> str:
        """The least and the most of the rounds, "" where there was one measurement."""
        if not self.rounds:
            return ""
        low, high = min(self.rounds), max(self.rounds)
        return f"; {low:.3g} to {high:.3g} in {len(self.rounds)} rounds"

    def to_json(self) -> dict[str, Any]:
        return {
            "figure": self.figure, "value": self.value, "limit": self.bound, "holds": self.holds,
            "rounds": list(self.rounds),
        }  # fmt: skip


def parser(
    name: str,
    description: str,
    *,
    examples: str = "",
    rounds: int | None = 5,
) -> cli.Parser:
    """A benchmark's parser: `--json`, and `--rounds` where ways take turns.

    Args:
      name: of the script, without its directory.
      description: what is measured against what; the module's docstring.
      examples: further ones.
      rounds: default of `--rounds`; None: no such flag.
    """
    prog = f"python benchmarks/{name}"
    made = cli.Parser(
        prog=prog,
        description=description,
        examples=f"  {prog}\n{examples}",
        exit_codes={cli.EXIT_FAILURE: "a limit was missed"},
        output=False,
    )
    if rounds is not None:
        made.add_argument("--rounds", type=_positive, default=rounds, metavar="N", help="counted")
    made.add_argument("--json", type=Path, metavar="FILE", help="write every figure there as well")
    return made


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def on_one_core(core: int | None = None) -> None:
    """Keeps this process to one core (default: the first of those it may use).

    Raises:
      UsageError: there is no such core.
    """
    core = min(os.sched_getaffinity(0)) if core is None else core
    try:
        os.sched_setaffinity(0, {core})
    except OSError:
        raise cli.UsageError(f"--core {core}: no such core here") from None


def show(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a Markdown table, as it stands in the documentation."""
    print("| " + " | ".join(titles) + " |")
    print("|" + "---|" * len(titles))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def conclude(limits: Sequence[Limit], figures: Mapping[str, Any], file: Path | None) -> int:
    """Prints the verdicts, writes the figures, and gives the exit code.

    Args:
      limits: what was promised.
      figures: everything measured, as JSON.
      file: where they go, None for nowhere.
    """
    if limits:
        print("\nlimits:")
    for limit in limits:
        word = "holds " if limit.holds else "MISSED"
        print(f"  {word}  {limit.figure}: {limit.value:.3g} ({limit.bound}{limit.spread})")
    if file is not None:
        judged = [limit.to_json() for limit in limits]
        file.write_text(json.dumps({**figures, "limits": judged}, indent=1) + "\n")
    return cli.EXIT_OK if all(limit.holds for limit in limits) else cli.EXIT_FAILURE
