"""Training steps beside PyTorch's: each in a process of its own, of which one runs at a time."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from _harness import ROOT, Clock, ratios

from beam_jobs.common import cli

LAYOUTS = ("plain", "channels_last_3d")
# Laid out as MONAI's, with as many parameters. The larger EfficientNets are too; slice networks
# have no twin.
NETWORKS = ("seed_cnn", "resnet10", "resnet50", "se_resnet50", "densenet121", "efficientnet_b0")
TWINS = (*NETWORKS, "resnet18", "resnet34", *(f"efficientnet_b{size}" for size in range(1, 8)))


class Grid(NamedTuple):
    """A batch of volumes."""

    rows: int
    columns: int
    slices: int
    channels: int
    batch: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.rows, self.columns, self.slices

    @property
    def name(self) -> str:
        return f"{'×'.join(map(str, self[:4]))}, batch {self.batch}"


GRIDS = (Grid(48, 48, 32, 1, 4), Grid(96, 96, 32, 4, 2))


class Beside(NamedTuple):
    """Steps of ours and of PyTorch in its faster layout, seconds each round.

    Attributes:
      ours, theirs: a step's.
      layout: PyTorch's faster one.
      version: PyTorch's.
    """

    ours: list[Clock]
    theirs: list[Clock]
    layout: str
    version: str

    @property
    def wall(self) -> list[float]:
        """PyTorch's time over ours, round by round."""
        return ratios((one.wall for one in self.theirs), (one.wall for one in self.ours))

    @property
    def cpu(self) -> list[float]:
        """The same, of the processes' CPU."""
        return ratios((one.cpu for one in self.theirs), (one.cpu for one in self.ours))


def grid_of(text: str) -> Grid:
    """ROWSxCOLUMNSxSLICESxCHANNELSxBATCH.

    Raises:
      UsageError: it is not five positive numbers.
    """
    parts = text.split("x")
    if len(parts) != len(Grid._fields) or not all(part.isdigit() and int(part) for part in parts):
        raise cli.UsageError(f"--grids: five numbers joined by x are needed: {text}")
    return Grid(*map(int, parts))


def require_torch(python: str) -> None:
    """Refuses an interpreter that has no PyTorch with MONAI.

    Raises:
      UsageError: it lacks them, or is none.
    """
    try:
        done = subprocess.run([python, "-c", "import torch, monai"], capture_output=True)
        found = done.returncode == 0
    except OSError:
        found = False
    if not found:
        raise cli.UsageError(
            f"--torch_python: {python} has no PyTorch with MONAI; docs/explanation/speed.md says "
            "how to install them beside this project"
        )


class _Torch:
    """PyTorch's process for a network."""

    def __init__(self, python: str, network: str, layout: str, grid: Grid, threads: int) -> None:
        request = {
            "name": network, "layout": layout, "threads": threads,
            "shape": grid[:4], "batch": grid.batch,
        }  # fmt: skip
        script = Path(ROOT, "benchmarks/_torch_step.py")
        self._process = subprocess.Popen(
            [python, "-W", "ignore", str(script), json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ready = self._answer()
        self.parameters, self.version = int(ready["parameters"]), str(ready["version"])

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise cli.CommandError(f"PyTorch's process ended with {self._process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def run(self, steps: int) -> Clock:
        """Seconds a step."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        taken = self._answer()
        return Clock(cpu=taken["cpu"] / steps, wall=taken["wall"] / steps)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def _ended(process: _Torch) -> Iterator[_Torch]:
    try:
        yield process
    finally:
        process.end()


def beside(
    network: str,
    grid: Grid,
    step: Callable[[], object],
    *,
    parameters: int,
    python: str,
    threads: int,
    steps: int,
    rounds: int,
) -> Beside:
    """Takes turns: a block of our steps, a block of each of PyTorch's layouts.

    Args:
      network: one of `TWINS`.
      grid: of both.
      step: ours, waited for.
      parameters: trainable ones of ours.
      python: an interpreter with PyTorch and MONAI.
      threads: of PyTorch's.
      steps: a block.
      rounds: that are counted; one comes before.

    Raises:
      CommandError: PyTorch's network is another.
    """

    def own() -> Clock:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(steps):
            step()
        taken = time.process_time() - cpu, time.perf_counter() - wall
        return Clock(*(seconds / steps for seconds in taken))

    with contextlib.ExitStack() as stack:
        torch = {
            layout: stack.enter_context(_ended(_Torch(python, network, layout, grid, threads)))
            for layout in LAYOUTS
        }
        for process in torch.values():
            if process.parameters != parameters:
                raise cli.CommandError(
                    f"{network} has {parameters} parameters, PyTorch's {process.parameters}"
                )
        ways: dict[str, Callable[[], Clock]] = {"": own}
        for layout, process in torch.items():
            ways[layout] = lambda process=process: process.run(steps)  # type: ignore[misc]
        times: dict[str, list[Clock]] = {way: [] for way in ways}
        for number in range(-1, rounds):
            for way, run in ways.items():
                clock = run()
                if number >= 0:
                    times[way].append(clock)
        best = min(LAYOUTS, key=lambda way: statistics.median(one.wall for one in times[way]))
        return Beside(times[""], times[best], best, torch[best].version)
