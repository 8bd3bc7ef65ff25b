"""What every command prints: rows under a name, bars with rate and time left, or nothing.

    auc         AUC 0.58 (95 % interval 0.46 to 0.69, n = 87: 44 positive)
    report      run/report.html

stdout has what the command found, stderr bars, hints and errors. On a terminal names are bold and
long rows hang under their text; in a pipe or a file a row is one plain line, unless it belongs to a
listing, and there are no bars. `--quiet` leaves files, hints and errors. What headers and file
names say is shown without control characters. rich is imported where something is drawn with it: in
a pipe that is a listing alone.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from beam_jobs.common.cli import is_quiet
from beam_jobs.common.printable import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, Task

Item = TypeVar("Item")

_NAMES = 12  # characters of a row's name, the blanks behind it included


def say(text: str) -> None:
    """Prints a line, at once: whoever reads a pipe sees how far the work is."""
    if not is_quiet():
        print(printable(text, keep="\n"), flush=True)


def say_parts(*parts: str) -> None:
    """Prints a line of parts, two blanks apart; those beyond `width` hang below it.

    Args:
      parts: "" is left out. One that is longer than a line is broken at its blanks.
    """
    lines, room = [""], width()
    for part in filter(None, map(printable, parts)):
        between = "  " if lines[-1].strip() else ""
        if len(lines[-1] + between + part) <= room:
            lines[-1] += between + part
        else:
            lines += textwrap.wrap(
                part, room, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
            )
    say("\n".join(filter(None, lines)))


def row(name: str, text: str, *, folded: bool = False) -> None:
    """Prints a row: what it is about, and what there is to say.

    Args:
      name: what it is about.
      text: what there is to say.
      folded: for people only: it fits `width` in a pipe too.
    """
    if is_quiet():
        return
    name, text = printable(name), printable(text)
    if not sys.stdout.isatty():
        for line in _folded(text) if folded else [text]:
            print(f"{name:<{_NAMES - 1}} {line}", flush=True)
            name = ""
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column(style="bold", no_wrap=True, min_width=_NAMES - 1)
    grid.add_column(overflow="fold")
    grid.add_row(Text(name), Text(text))
    show(grid)


def _folded(text: str) -> list[str]:
    from rich.console import Console
    from rich.text import Text

    room = width() - _NAMES
    return [line.plain.rstrip() for line in Text(text).wrap(Console(width=room), room)]


def width() -> int:
    """Columns that lines have: those of the terminal, of `COLUMNS`, or 100."""
    return max(shutil.get_terminal_size((100, 24)).columns, 40)


def show_lines(lines: Iterable[tuple[str, str]]) -> None:
    """Prints lines of a listing, which its maker has cut to `width`.

    Args:
      lines: text, and rich's style of it ("" for none).
    """
    if is_quiet():
        return
    plain = not sys.stdout.isatty()
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    for text, style in lines:
        if plain:
            print(printable(text))
        else:
            console.print(Text(printable(text), style=style), no_wrap=True, crop=True)


def show(what: RenderableType, *, width: int | None = None) -> None:
    """Prints a table of rich's.

    Args:
      what: the table.
      width: columns where stdout is no terminal; None for 80.
    """
    if is_quiet():
        return
    from rich.console import Console

    Console(file=sys.stdout, width=None if sys.stdout.isatty() else width, highlight=False).print(
        what
    )


def progress(*, shown: bool = True) -> Progress:
    """Bars on stderr, gone when their block ends; nothing off a terminal or when quiet."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """ "12.3/s", or for what takes longer "4.1 s each"."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            if not speed:
                return Text("")
            if speed < 1:
                return Text(f"{1 / speed:.1f} s each")
            return Text(f"{speed:.1f}/s" if speed < 100 else f"{speed:,.0f}/s")

    console = Console(file=sys.stderr)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=is_quiet() or not (shown and console.is_terminal),
    )


@contextlib.contextmanager
def bar(label: str, total: int | None, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """A bar while a block runs; the function that is given moves it by one."""
    with progress(shown=shown) as bars:
        task = bars.add_task(label, total=total)
        yield lambda: bars.advance(task)


def track(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """The items, with a bar that moves as they are taken."""
    with bar(label, total) as advance:
        for item in items:
            yield item
            advance()


def duration(seconds: float) -> str:
    """ "41 s", "12 min", "3.5 h", "14 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.{0 if seconds >= 36000 else 1}f} h"
