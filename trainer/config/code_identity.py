"""What tells one state of a user's code from another: hashes of its source, versions of packages.

    {"function": "net:build", "sha256": ..., "imports": {"medicai": "0.0.4"}}   in no package
    {"function": "einops:repeat", "sha256": ..., "package": "einops", "version": "0.8.1"}

It stands in a run's config.json and run.json and in a model's contract. A run is not resumed with
other code than it was begun with, and the processes that it starts are held to it too: whoever
edits a file while a run goes on would otherwise have half of it trained with either.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import (
    ContractError,
    Kind,
    differing,
    require_kinds,
    require_known,
)
from trainer.config.user_code import load

CODE = "code"
_SUFFIXES = (
    *importlib.machinery.SOURCE_SUFFIXES,
    *importlib.machinery.EXTENSION_SUFFIXES,
    *importlib.machinery.BYTECODE_SUFFIXES,  # of a package that comes without source
)
_TEXT: dict[str, Kind] = dict.fromkeys(("function", "sha256", "package", "version"), str)
# Whose versions every run.json has.
_THE_RUNS_OWN = ("keras", "numpy", "tensorflow")
# What was loaded, as it was when its identity was first asked for: Python keeps the old code.
_LOADED: dict[str, tuple[object, str]] = {}


def identities(references: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """The identity of each function that a run uses, once; they are loaded for it.

    Args:
      references: (flag, `module:function`).

    Raises:
      UsageError: as `load`, or a function without a file that tells what it is.
    """
    flags = {reference: flag for flag, reference in references}
    return [identity(reference, flag=flag) for reference, flag in flags.items()]


def identity(reference: str, *, flag: str) -> dict[str, Any]:
    """What tells this state of a user's function from another.

    Returns:
      "function": the reference. "sha256": of the sources of its package; of a file that lies in
      none, and of those beside it that it imports. "package" and "version" where a distribution has
      installed it; else "imports": name → version of what it imports of installed ones.

    Raises:
      UsageError: as `load`; it has no file; or the file was changed since Python loaded it.
    """
    load(reference, flag=flag)
    unit = _unit(reference.partition(":")[0])
    if unit is None:
        raise UsageError(f"{flag} {reference}: its module has no file that could be identified")
    found: dict[str, Any] = {"function": reference}
    distribution = _distribution(unit)
    try:
        sources, imports = _sources(unit, alone=distribution is not None)
        found["sha256"] = _sha256(sources)
    except OSError as error:
        where = error.filename or unit.__name__
        raise UsageError(f"{flag} {reference}: {where}: {error.strerror}") from error
    spec, before = _LOADED.setdefault(reference, (unit.__spec__, found["sha256"]))
    if spec is not unit.__spec__:  # it was loaded anew
        _LOADED[reference] = (unit.__spec__, found["sha256"])
    elif before != found["sha256"]:
        raise UsageError(
            f"{flag} {reference}: its source was changed after Python had loaded it; start anew"
        )
    if distribution is not None:
        return {**found, "package": distribution.name, "version": distribution.version}
    versions = {name: one.version for name in sorted(imports) if (one := _installed(name))}
    return {**found, "imports": versions} if versions else found


def require_code(found: object, *, where: str) -> None:
    """Refuses what is no list of identities, read from a file.

    Raises:
      ContractError: names the member.
    """
    require_kinds({where: found}, {where: list})
    assert isinstance(found, list)
    for place, one in enumerate(found):
        inside = f"{where}[{place}]."
        require_kinds({inside[:-1]: one}, {inside[:-1]: dict})
        kinds = {name: _TEXT[name] for name in ("function", "sha256", *one) if name in _TEXT}
        require_kinds(one, kinds, where=inside)
        require_known(one, (*_TEXT, "imports"), where=inside)
        imports = one.get("imports", {})
        require_kinds({"imports": imports}, {"imports": dict}, where=inside)
        require_kinds(imports, dict.fromkeys(imports, str), where=f"{inside}imports.")


def require_same(
    begun_with: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]
) -> None:
    """Refuses to go on with other code than a run or a study was begun with.

    Args:
      begun_with: their identities.
      found: identities of what there is; those of functions that are not among them are not looked
        at, and need not all be there.

    Raises:
      ContractError: names the first function that differs.
    """
    here = {one["function"]: one for one in found}
    for old in begun_with:
        new = here.get(old["function"])
        if new is not None and old != new:
            told = "; ".join(
                f"{name} {str(then)[:12]} then, {str(now)[:12]} now"
                for name, then, now in differing(old, new)
            )
            raise ContractError(
                f"{old['function']} is not what the run was begun with ({told}); put that back, or "
                "train anew"
            )


def by_function(code: object) -> dict[str, dict[str, Any]]:
    """Identities under their functions' names, so that what differs is named by them.

    Args:
      code: as read from a file.

    Raises:
      ContractError: no identities.
    """
    require_code(code, where=CODE)
    assert isinstance(code, list)
    return {
        str(one["function"]): {name: value for name, value in one.items() if name != "function"}
        for one in code
    }


def _unit(module_name: str) -> ModuleType | None:
    """The outermost package or module of a dotted name that is a file's; none of C's built-ins."""
    parts = module_name.split(".")
    for end in range(1, len(parts) + 1):
        module = sys.modules[".".join(parts[:end])]
        if vars(module).get("__file__"):
            return module
    return None


@functools.cache
def _packages() -> Mapping[str, Sequence[str]]:
    """Top-level name → distributions that bring it."""
    return importlib.metadata.packages_distributions()


def _installed(top: str) -> importlib.metadata.Distribution | None:
    """The distribution that brings a top-level name; none for those that every run names."""
    for name in _packages().get(top, [])[:1]:
        if top not in _THE_RUNS_OWN:
            return importlib.metadata.distribution(name)
    return None


def _distribution(unit: ModuleType) -> importlib.metadata.Distribution | None:
    """The distribution that installed a module; none where a file of one's own has its name."""
    file = Path(str(unit.__file__)).resolve()
    for name in _packages().get(unit.__name__.partition(".")[0], []):
        found = importlib.metadata.distribution(name)
        told = json.loads(found.read_text("direct_url.json") or "{}")
        if told.get("dir_info", {}).get("editable"):
            return found
        if file.is_relative_to(Path(str(found.locate_file(""))).resolve()):
            return found
    return None


def _sources(unit: ModuleType, *, alone: bool) -> tuple[dict[str, Path], set[str]]:
    """The files that are hashed, by their names, and the other top-level names they import.

    Args:
      unit: a package, or a module in none.
      alone: leave out what lies beside it.
    """
    file = Path(str(unit.__file__))
    if not file.is_file():  # in an archive, which is then the source
        archive = next((above for above in file.parents if above.is_file()), file)
        return {archive.name: archive}, set()
    start = file.parent if file.name.startswith("__init__.") else file
    root = start.parents[unit.__name__.count(".")]  # from where its dotted name leads
    waiting, found, imports = [start], dict[str, Path](), set[str]()
    while waiting:
        one = waiting.pop()
        files = {path.relative_to(root).as_posix(): path for path in _files_of(one)}
        found |= files
        if alone:
            break
        for path in files.values():
            for name in _imported(path):
                beside = _beside(root, name)
                if beside is None or name.partition(".")[0] in sys.stdlib_module_names:
                    imports.add(name.partition(".")[0])
                elif not any(path.is_relative_to(beside) for path in found.values()):
                    waiting.append(beside)
    return found, imports


def _files_of(start: Path) -> Iterator[Path]:
    if start.is_file():
        yield start
        return
    for folder, below, names in os.walk(start):
        below[:] = [name for name in below if name != "__pycache__"]
        yield from (Path(folder, name) for name in names if name.endswith(_SUFFIXES))


def _imported(file: Path) -> frozenset[str]:
    """Dotted names that a source imports, from its package's outside, at any depth."""
    if file.suffix not in importlib.machinery.SOURCE_SUFFIXES:
        return frozenset()
    return _imported_by(file.read_bytes())


@functools.lru_cache(maxsize=4096)  # a network is made again for each member
def _imported_by(source: bytes) -> frozenset[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # nobody could import it
        return frozenset()
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def _beside(root: Path, name: str) -> Path | None:
    """The package or module of that dotted name below a folder; None where there is none."""
    if name.partition(".")[0] in _packages():
        return None
    place = root
    for part in name.split("."):
        if (place / f"{part}.py").is_file():
            return place / f"{part}.py"
        place = place / part
        if (place / "__init__.py").is_file():
            return place
    return None


def _sha256(sources: Mapping[str, Path]) -> str:
    whole = hashlib.sha256()
    for name, path in sorted(sources.items()):
        data = path.read_bytes()
        whole.update(f"{name} {len(data)}\n".encode(errors="surrogateescape"))
        whole.update(data)
    return whole.hexdigest()
