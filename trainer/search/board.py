"""How a search is going, on the terminal: a leaderboard that moves, or in a pipe a line a trial."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from beam_jobs.common.cli import is_quiet
from beam_jobs.common.printable import printable
from beam_jobs.common.terminal import duration, say_parts
from trainer.config.hyperparameter import text_of
from trainer.config.search_space import Space
from trainer.search.study import FinishedTrial, ranking

_LEADERS = 10


class Board:
    """Shows finished trials.

    Args:
      space: of the study; its searched hyperparameters are columns.
      total: trials at most.
      rows: finished before this start.
      title: of the objective.
    """

    def __init__(
        self, space: Space, total: int, rows: Sequence[FinishedTrial], title: str = "AUC"
    ) -> None:
        self._space, self._total, self._title = space, total, title
        self._rows = list(rows)
        self._before = len(rows)
        self._shown = {row.trial for row in rows}
        self._started = time.monotonic()
        console = Console(file=sys.stdout)
        self._live = (
            Live(get_renderable=self._renderable, console=console, refresh_per_second=1)
            if console.is_terminal and not is_quiet()
            else None
        )

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, rows: Sequence[FinishedTrial]) -> None:
        """Takes the rows of `Study.write`."""
        self._rows = list(rows)
        for row in rows:
            if row.trial not in self._shown:
                self._shown.add(row.trial)
                if self._live is None:
                    say_parts(*parts_of(row, self._title), f"[{self.progress()}]")
        if self._live is not None:
            self._live.refresh()

    def progress(self) -> str:
        """ "12 of at most 30 trials, 3 failed, 14 min left"."""
        done, here = len(self._rows), len(self._rows) - self._before
        failed = sum(row.objective is None for row in self._rows)
        text = f"{done} of at most {self._total} trials"
        if failed:
            text += f", {failed} failed"
        if here > 0 and done < self._total:
            left = (time.monotonic() - self._started) / here * (self._total - done)
            text += f", {duration(left)} left"
        return text

    def _renderable(self) -> Group:
        board = leaderboard(self._space, self._rows, self._title)
        return Group(board, Text(self.progress(), style="dim"))


def leaderboard(space: Space, rows: Sequence[FinishedTrial], title: str = "AUC") -> Table:
    """The best trials."""
    names = dict.fromkeys(choice.name for choice in space.searched)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("trial", no_wrap=True)
    table.add_column(title, justify="right", no_wrap=True)
    table.add_column("epochs", justify="right")
    table.add_column("choices")
    for row in ranking(rows)[:_LEADERS]:
        assert row.objective is not None
        chosen = [f"{name} {text_of(row.values[name])}" for name in names if name in row.values]
        table.add_row(
            # As text: rich reads markup in a str.
            Text(printable(row.trial)),
            f"{row.objective:.3f}",
            Text(printable(str(row.result.get("epochs", "")))),
            Text(printable(", ".join(chosen))),
        )
    return table


def parts_of(row: FinishedTrial, title: str = "AUC") -> list[str]:
    """A finished trial, in the parts of a line."""
    seconds = row.result.get("seconds")
    return [
        f"trial {row.trial}",
        row.status if row.objective is None else f"{title} {row.objective:.3f}",
        "" if seconds is None else duration(seconds),
        f"({row.reason})" if row.reason else "",
    ]
