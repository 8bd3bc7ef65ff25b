"""What every command does alike: --help that teaches, errors of one line, documented exit codes.

Exit codes: 0 done, 1 failed (bad data, a contract that does not fit, an I/O error), 2 wrong usage
(an unknown option, a missing file or column, a name that does not exist), 8 done but some input
was rejected and `--strict` was given, 129, 130 and 143 ended by SIGHUP, Ctrl-C and SIGTERM
(`beam_jobs.common.interrupts`).

An error is one line on stderr, "python -m <module>: error: <what>"; `Parser` and `run` get that
name as `prog`. `--quiet` and `--log_level` are every command's: what prints reads `is_quiet`
(`beam_jobs.common.terminal` does), and what imports a library that logs reads `log_level`.

A reader that closes its pipe (`| head`) is no error: the command ends without a word, with its own
code where the work was done and with 1 where it was cut short.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import select
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TextIO

from beam_jobs.common import interrupts
from beam_jobs.common.contract_json import ContractError, is_unicode
from beam_jobs.common.files import scratch
from beam_jobs.common.printable import printable

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_REJECTED = 8
EXIT_HUNG_UP = 129
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
EXIT_CODES = {
    EXIT_OK: "done",
    EXIT_FAILURE: "failed: bad data, a contract that does not fit, an I/O error",
    EXIT_USAGE: "wrong usage",
    EXIT_HUNG_UP: "hung up: the terminal was closed (SIGHUP)",
    EXIT_INTERRUPTED: "interrupted (Ctrl-C)",
    EXIT_TERMINATED: "terminated (SIGTERM)",
}
_LONGEST = 1500  # characters of an error's line

LOG_LEVELS = ("error", "warning", "info", "debug")
# Processes that a command starts inherit it.
_LOG_LEVEL = "VOXELBEAM_LOG_LEVEL"


class UsageError(ValueError):
    """Something was requested that cannot be; the message is one line."""


class CommandError(RuntimeError):
    """The command failed on its way; the message is one line."""


class StillRunningError(CommandError):
    """A job of this command goes on elsewhere, and could not be ended; the message is one line."""


# Flags of several values take them with commas or with blanks between; `items` reads them.
LIST: dict[str, Any] = {"nargs": "+", "metavar": "ITEM"}


def items(value: str | Sequence[str]) -> tuple[str, ...]:
    """The items of a flag given as `a,b,c` or as `a b c`."""
    text = value if isinstance(value, str) else ",".join(value)
    return tuple(item.strip() for item in text.split(",") if item.strip())


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and whose help keeps its examples' layout.

    Args:
      prog: "python -m <module>".
      description: what the command does.
      examples: command lines, indented by two.
      exit_codes: code → meaning, where it says more than `EXIT_CODES`.
      output: offer `--quiet` and `--log_level`, and obey them from the parsing on.
    """

    def __init__(
        self,
        *,
        prog: str,
        description: str,
        examples: str,
        exit_codes: Mapping[int, str] | None = None,
        output: bool = True,
    ) -> None:
        codes = sorted({**EXIT_CODES, **(exit_codes or {})}.items())
        listed = "\n".join(f"  {code:<4} {meaning}" for code, meaning in codes)
        super().__init__(
            prog=_as_called(prog),
            description=_as_called(description),
            epilog=f"examples:\n{_as_called(examples).rstrip()}\n\nexit codes:\n{listed}",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self._output = output

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """argparse's; what it finds of `--quiet` and `--log_level` holds from here on."""
        if self._output:
            self._output = False
            group = self.add_argument_group("output")
            group.add_argument("--quiet", action="store_true", help="print hints and errors only")
            group.add_argument(
                "--log_level",
                choices=LOG_LEVELS,
                help="let TensorFlow, Beam and other libraries talk on stderr, from this level on "
                "(default: only of what the command itself could not tell)",
            )
        known, unknown = super().parse_known_args(args, namespace)
        _Output.quiet = getattr(known, "quiet", False)
        if level := getattr(known, "log_level", None):
            os.environ[_LOG_LEVEL] = level
        return known, unknown

    def error(self, message: str) -> NoReturn:
        line = _one_line(f"{self.prog}: error: {message} (--help explains)")
        self.exit(EXIT_USAGE, f"{line}\n")


class _Output:
    """What the command line said of output, and how commands are called in it."""

    quiet = False
    names: Mapping[str, str] = {}


def name_commands(names: Mapping[str, str]) -> None:
    """Lets help and errors speak of commands by other names (`voxelbeam` does).

    Args:
      names: module -> what stands in place of "python -m <module>".
    """
    _Output.names = dict(names)


def _as_called(text: str) -> str:
    """A text with each "python -m <module>" as `name_commands` has it."""
    return re.sub(
        r"python -m ([\w.]*\w)", lambda found: _Output.names.get(found[1], found[0]), text
    )


def is_quiet() -> bool:
    """Whether `--quiet` was given: then only hints and errors are printed."""
    return _Output.quiet


def log_level() -> str | None:
    """The level from which libraries may log, of `LOG_LEVELS`; None where none was requested."""
    level = os.environ.get(_LOG_LEVEL)
    return level if level in LOG_LEVELS else None


def require_utf8(path: str) -> None:
    """Refuses a path that TensorFlow or a JSON file would be given: both take UTF-8 alone.

    Raises:
      UsageError: the path has bytes that are none.
    """
    if not is_unicode(path):
        raise UsageError(f"{path}: not UTF-8, and this command takes no other names")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' line breaks and shows each option's default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        help_text = action.help
        has_default = action.default not in (None, False, "", argparse.SUPPRESS)
        if help_text and action.option_strings and has_default:
            help_text += " (default: %(default)s)"
        return help_text


def run(main: Callable[[Sequence[str]], int], prog: str) -> NoReturn:
    """Runs a command's `main(argv)` and exits with its code; expected errors become one line.

    Args:
      main: takes the arguments, gives the exit code.
      prog: "python -m <module>", as its `Parser` has it.
    """
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's encoding lacks stands in escapes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    armed = interrupts.expect(_as_called(prog))
    try:
        interrupts.begin()
        with _own_temporary_directory(prog):
            code = _code_of(main, prog)
        interrupts.end()
    except KeyboardInterrupt:  # amid the last of it
        interrupts.end()
        code = _interrupted(prog)
    if interrupts.received() is not None:
        interrupts.stop_work()
        scratch.remove_all()
    elif armed:  # by none of a command's first lines: the process may have other things to do
        interrupts.withdraw()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # closed by the caller (`>&-`)
                stream.flush()
        except OSError as error:
            # What is left in the buffer is lost, without the interpreter complaining of it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if not isinstance(error, BrokenPipeError):  # a full disk
                code = _fail(prog, error, EXIT_FAILURE)
    if code and interrupts.other_threads():
        # A runner's threads may wait for ever for a worker that is gone.
        os._exit(code)
    sys.exit(code)


@contextlib.contextmanager
def _own_temporary_directory(prog: str) -> Iterator[None]:
    """What libraries put into the directory for temporary files goes when the command is done.

    Where none can be made they get what there is.
    """
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            # A command that another command started has its parent's.
            if not scratch.is_scratch(scratch.temporary_directory()):
                what = re.sub(r"[^a-z_]", "", prog.rpartition(".")[2].rpartition(" ")[2])
                directory = stack.enter_context(scratch.scratch(what))
                tempfile.tempdir = os.environ["TMPDIR"] = str(directory)
        try:
            yield
        finally:
            # Behind a signal the process ends, and its threads until then have nowhere to write.
            if interrupts.received() is None:
                tempfile.tempdir = before[0]
                os.environ.pop("TMPDIR", None)
                if before[1] is not None:
                    os.environ["TMPDIR"] = before[1]


def _code_of(main: Callable[[Sequence[str]], int], prog: str) -> int:
    try:
        return main(sys.argv[1:])
    except BaseException as error:
        if interrupts.received() is not None:  # whatever a library made of it
            return _interrupted(prog, error if isinstance(error, StillRunningError) else None)
        if isinstance(error, SystemExit):  # the parser's: --help, or wrong flags
            return error.code if isinstance(error.code, int) else EXIT_OK
        if isinstance(error, UsageError):
            return _fail(prog, error, EXIT_USAGE)
        if isinstance(error, BrokenPipeError) and _is_unread(sys.stdout):
            return EXIT_FAILURE
        if isinstance(error, ContractError | CommandError | OSError):
            return _fail(prog, error, EXIT_FAILURE)
        if isinstance(error, RecursionError):  # a path of thousands of folders, such brackets
            return _fail(prog, "something is nested too deep", EXIT_FAILURE)
        if isinstance(error, MemoryError):
            return _fail(prog, f"out of memory: {error}", EXIT_FAILURE)
        if isinstance(error, ImportError):  # a broken installation
            told = f"a library does not import ({error}): voxelbeam doctor says what to mend"
            return _fail(prog, told, EXIT_FAILURE)
        if isinstance(error, KeyboardInterrupt):
            return _interrupted(prog)
        raise


def _interrupted(prog: str, still: StillRunningError | None = None) -> int:
    # What threads have to say of it is of no use.
    threading.excepthook = lambda _: None
    # Where a KeyboardInterrupt that is no signal's came amid an `exec` of text, CPython would still
    # end `python -m` by the signal, although it is caught here. The next `exec` forgets that.
    exec("")
    code = interrupts.received() or EXIT_INTERRUPTED
    word = interrupts.word()
    if word and still is not None:
        word = f"{word}: {still}"
    return _fail(prog, word, code) if word else code


def _fail(prog: str, error: object, code: int) -> int:
    if isinstance(error, OSError) and error.strerror:  # without its number
        place = f"{error.filename}: " if error.filename is not None else ""
        error = f"{place}{error.strerror}"
    line = _as_called(_one_line(f"{prog}: error: {error}"))
    with contextlib.suppress(OSError):  # stderr is closed too
        print(line, file=sys.stderr)
    return code


def _one_line(message: str) -> str:
    """A message as one line that can be read, whatever a stranger's text in it holds."""
    words = printable(" ".join(message.split()))
    words = re.sub(r"\S{301,}", lambda word: f"{word[0][:200]}...{word[0][-60:]}", words)
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}..."


def _is_unread(stream: TextIO | None) -> bool:
    """Whether a stream is a pipe whose reader is gone (other pipes break too: a store's)."""
    if stream is None:
        return False
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
