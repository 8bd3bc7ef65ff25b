"""A user's own function, named as `package.module:function`: found and loaded.

It is found as Python finds any module, on the working directory too. Neither Keras nor TensorFlow
is imported here; the module itself may import what it likes. What tells one state of it from
another is `trainer.config.code_identity`'s.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import site
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import shown

_NAME = r"[^\W\d]\w*"
_REFERENCE = re.compile(rf"{_NAME}(?:\.{_NAME})*:{_NAME}(?:\.{_NAME})*")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # Keras prints its errors in colours
_LINE = re.compile(r'File "([^"]+)", line ([0-9]+)')
_LONGEST = 300
# Of the path, what every process of this Python has.
_EVERYBODYS = {*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()}
_PLACES: set[str] = set()
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def is_reference(name: object) -> bool:
    """Whether a name is meant as `module:function`, well-formed or not."""
    return isinstance(name, str) and ":" in name


def require_reference(name: str, *, flag: str) -> None:
    """Refuses what cannot be a `module:function`; imports nothing.

    Raises:
      UsageError: it is none; the message names the flag.
    """
    if not _REFERENCE.fullmatch(name):
        raise UsageError(f"{flag} {shown(name)}: package.module:function is needed")
    if name.startswith("__main__:"):
        raise UsageError(f"{flag} {name}: a module with a file of its own is needed")


def load(reference: str, *, flag: str) -> Any:
    """What `module:function` names; its module is imported.

    What the module prints while it is imported goes to stderr: it is no part of a command's output.

    Args:
      reference: the name; dots behind the colon go into a class or another object.
      flag: for messages.

    Raises:
      UsageError: no such module or function, or the module fails when it is imported.
    """
    require_reference(reference, flag=flag)
    module_name, _, path = reference.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # last: it must hide nothing that is installed
    importlib.invalidate_caches()  # a file may have come since the folder was last looked into
    try:
        with undisturbed():
            module = importlib.import_module(module_name)
        _noted(module)
    except ModuleNotFoundError as error:
        own = error.name is not None and f"{module_name}.".startswith(f"{error.name}.")
        missing = "no such module" if own else f"it imports {error.name}, which is not there"
        if module_name.endswith(".py"):
            missing = "a module's name is without .py"
        raise UsageError(f"{flag} {reference}: {missing} (looked in {here} too)") from error
    except SystemExit as error:
        raise UsageError(
            f"{flag} {reference}: its module ends the program when it is imported; what a script "
            'does belongs under if __name__ == "__main__"'
        ) from error
    except Exception as error:
        raise UsageError(f"{flag} {reference}: its module fails: {reason(error)}") from error
    found: Any = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise UsageError(
                f"{flag} {reference}: {module_name} ({_place(module)}) has no {path}"
            ) from error
        except Exception as error:  # a module may make its members when they are first asked for
            raise UsageError(f"{flag} {reference}: it fails: {reason(error)}") from error
    if not callable(found) and not callable(getattr(found, "build", None)):  # a HyperModel
        raise UsageError(f"{flag} {reference}: not a function, but {type(found).__name__}")
    return found


@contextlib.contextmanager
def undisturbed(said: TextIO | None = None) -> Iterator[None]:
    """While a user's code runs: what it prints is no part of a command's output, and it moves no
    relative path of ours.

    Args:
      said: where what it prints goes, stderr by default.
    """
    with contextlib.chdir(os.curdir), contextlib.redirect_stdout(said or sys.stderr):
        yield


def places() -> list[str]:
    """Folders, of what was loaded, on which another process would not look by itself."""
    return sorted(_PLACES)


def _noted(module: ModuleType) -> None:
    """Notes where the path leads to a module's package, where only this process's path does."""
    top = sys.modules[module.__name__.partition(".")[0]]
    files = [vars(top).get("__file__"), *vars(top).get("__path__", ())]
    for folder in map(os.path.abspath, sys.path):
        inside = any(file and os.path.abspath(file).startswith(folder + os.sep) for file in files)
        if inside and folder not in _EVERYBODYS and folder != os.getcwd():
            _PLACES.add(folder)


def accepted(function: Callable[..., Any], names: Iterable[str]) -> list[str]:
    """Those of the names that the function's signature has as parameters of their own.

    A function that does not say what it takes (some of C's, a decorator's `*args`) accepts none.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name in names if name in parameters and parameters[name].kind in kinds]


def may_take(reference: str, name: str) -> bool:
    """Whether a user's network may be given an option: it has it, or does not say what it takes.

    Raises:
      UsageError: as `load`.
    """
    function = load(reference, flag="--model")
    if not inspect.isroutine(function):  # a class passes on to its parents, a HyperModel to `hp`
        return True
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    anything = any(one.kind is one.VAR_KEYWORD for one in parameters)
    alone = sum(one.default is one.empty for one in parameters) == 1  # build(hp), by its form
    return anything or alone or bool(accepted(function, [name]))


def reason(error: BaseException) -> str:
    """An error of a user's code in one line, with the file and the line that raised it."""
    text = _ESCAPES.sub("", str(error)).partition("\n\nArguments received by")[0]
    kind, places = type(error).__name__, _LINE.findall(text)
    if text.startswith("in user code:"):  # TensorFlow's, of what it has traced
        text = text.rstrip().rpartition("\n\n")[2].strip().removeprefix(f"{kind}: ")
    heading, _, rest = text.partition("\n")
    if heading.startswith("Exception encountered when calling") and rest.strip():  # Keras's
        text = rest
    text = " ".join(text.split())
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, str(frame.lineno)) for frame in frames] + places
    places = [place for place in places if not _is_ours(place[0])]
    own = [place for place in places if not _is_installed(place[0])] or places
    where = ""
    if own and not isinstance(error, SyntaxError):  # which says its place itself
        where = f" ({os.path.basename(own[-1][0])}, line {own[-1][1]})"
    return f"{kind}{': ' if text else ''}{text}{where}"


def _is_ours(file: str) -> bool:
    """Whether a frame's file is this package's, or one that calls a user's code for it."""
    callers = {"keras", "tensorflow", "keras_tuner"} & set(Path(file).parts)
    return bool(callers) or file.startswith(("<", _OURS)) or "__autograph_generated" in file


def _is_installed(file: str) -> bool:
    return file.startswith(tuple(place + os.sep for place in _EVERYBODYS))


def _place(module: ModuleType) -> str:
    found = vars(module).get("__file__") or next(iter(vars(module).get("__path__", ())), None)
    return str(found or "built into Python")
