"""What every command does alike: --help that teaches, errors of one line, documented exit codes.

Exit codes: 0 done, 1 failed (bad data, a contract that does not fit, an I/O error), 2 wrong usage
(an unknown option, a missing file or column, a name that does not exist), 8 done but some input
was rejected and `--strict` was given, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from beam_jobs.core.record import ContractError

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_REJECTED = 8
EXIT_INTERRUPTED = 130


class UsageError(ValueError):
    """The command was asked for something that cannot be; the message is one line."""


class CommandError(RuntimeError):
    """The command failed on its way; the message is one line."""


# Flags of several values take them with commas or with blanks between; `items` reads them.
LIST: dict[str, Any] = {"nargs": "+", "metavar": "ITEM"}


def items(value: str | Sequence[str]) -> tuple[str, ...]:
    """The items of a flag given as `a,b,c` or as `a b c`."""
    text = value if isinstance(value, str) else ",".join(value)
    return tuple(item.strip() for item in text.split(",") if item.strip())


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and whose help keeps its examples' layout."""

    def __init__(self, *, prog: str, description: str, examples: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (--help explains)\n")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' line breaks and shows each option's default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        help_text = action.help
        has_default = action.default not in (None, False, "", argparse.SUPPRESS)
        if help_text and action.option_strings and has_default:
            help_text += " (default: %(default)s)"
        return help_text


def run(main: Callable[[Sequence[str]], int], prog: str) -> NoReturn:
    """Runs a command's `main(argv)` and exits with its code; expected errors become one line."""
    try:
        code = main(sys.argv[1:])
    except UsageError as error:
        code = _fail(prog, error, EXIT_USAGE)
    except (ContractError, CommandError, OSError) as error:
        code = _fail(prog, error, EXIT_FAILURE)
    except KeyboardInterrupt:
        code = _fail(prog, "interrupted", EXIT_INTERRUPTED)
    sys.stdout.flush()
    sys.stderr.flush()
    if code and threading.active_count() > 1:
        # A runner's threads may wait for ever for a worker that is gone.
        os._exit(code)
    sys.exit(code)


def _fail(prog: str, error: object, code: int) -> int:
    line = " ".join(str(error).split())
    print(f"{prog}: error: {line}", file=sys.stderr)
    return code
