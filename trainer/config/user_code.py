"""A user's own function, named as `package.module:function`: found, loaded, and identified by hash.

It is found as Python finds any module, on the working directory too. Neither Keras nor TensorFlow
is imported here; the module itself may import what it likes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import os
import re
import sys
from pathlib import Path
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import shown

_NAME = r"[^\W\d]\w*"
_REFERENCE = re.compile(rf"{_NAME}(?:\.{_NAME})*:{_NAME}(?:\.{_NAME})*")


def is_reference(name: str) -> bool:
    """Whether a name is meant as `module:function`, well-formed or not."""
    return ":" in name


def require_reference(name: str, *, flag: str) -> None:
    """Refuses what cannot be a `module:function`; imports nothing.

    Raises:
      UsageError: it is none; the message names the flag.
    """
    if not _REFERENCE.fullmatch(name):
        raise UsageError(f"{flag} {shown(name)}: package.module:function is needed")


def load(reference: str, *, flag: str) -> Any:
    """What `module:function` names; its module is imported.

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
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        own = error.name is not None and f"{module_name}.".startswith(f"{error.name}.")
        missing = "no such module" if own else f"it imports {error.name}, which is not there"
        raise UsageError(f"{flag} {reference}: {missing} (looked in {here} too)") from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UsageError(f"{flag} {reference}: its module fails: {said}") from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise UsageError(f"{flag} {reference}: {module_name} has no {path}") from error
    if not (callable(found) or hasattr(found, "build")):  # an instance of KerasTuner's HyperModel
        raise UsageError(f"{flag} {reference}: not a function")
    return found


def identity(reference: str) -> dict[str, str]:
    """What tells one state of a user's code from another; the module must have been loaded.

    Returns:
      "function": the reference; "sha256": of the sources of its top-level package, or of its module
      where it lies in none; "package" and "version" where a distribution has installed it.
    """
    top = reference.partition(":")[0].partition(".")[0]
    found = {"function": reference, "sha256": _source_hash(top)}
    for package in importlib.metadata.packages_distributions().get(top, [])[:1]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found |= {"package": package, "version": importlib.metadata.version(package)}
    return found


@functools.cache
def _source_hash(top: str) -> str:
    module = sys.modules[top]
    file = getattr(module, "__file__", None)
    roots = [Path(place) for place in getattr(module, "__path__", [])]
    sources = sorted((s for root in roots for s in root.rglob("*.py")), key=str)
    if not roots and file is not None:
        sources, roots = [Path(file)], [Path(file).parent]
    whole = hashlib.sha256()
    for source in sources:
        root = next(root for root in roots if source.is_relative_to(root))
        data = source.read_bytes()
        whole.update(f"{source.relative_to(root).as_posix()} {len(data)}\n".encode())
        whole.update(data)
    return whole.hexdigest()
