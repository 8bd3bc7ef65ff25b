"""The generated pages about Python: what users import, and what every module is for."""

from __future__ import annotations

import ast
import enum
import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from docs.write_markdown import MADE, plain, table, text_block

ROOT = Path(__file__).resolve().parents[1]
APIS = (*(f"{path.parent.name}.api" for path in sorted(ROOT.glob("*/api.py"))), "trainer.testing")


def python_page() -> str:
    """What Python users import: signatures and docstrings of everything in each `__all__`."""
    lines = ["# Python", "", "What may be imported; everything else may change.", ""]
    for name in APIS:
        api = importlib.import_module(name)
        lines += [f"## {name}", "", *text_block(inspect.getdoc(api) or ""), ""]
        named = {public: getattr(api, public) for public in api.__all__}
        for public, value in sorted(named.items(), key=lambda item: isinstance(item[1], type)):
            if callable(value):
                lines += [f"### {public}", "", *_documented(public, value), ""]
    return "\n".join([*lines, MADE, ""])


def _documented(name: str, value: Any) -> list[str]:
    """A function's or class' signature and docstring, and a class' public members."""
    if not isinstance(value, type):
        return [*_python(f"{name}{_signature(value)}"), *text_block(value.__doc__ or "")]
    lines = text_block(value.__doc__ or "")
    if issubclass(value, enum.Enum | Exception):
        return lines
    for member, thing in vars(value).items():
        function = thing.__func__ if isinstance(thing, classmethod | staticmethod) else thing
        if member.startswith("_") or not function.__doc__:
            continue
        if inspect.isfunction(function):
            call = _python(f"{name}.{member}{_signature(function)}")
            lines += ["", *call, *text_block(function.__doc__)]
        elif isinstance(thing, property | functools.cached_property):
            lines += ["", *_python(f"{name}.{member}"), *text_block(thing.__doc__ or "")]
    return lines


def _python(text: str) -> list[str]:
    return ["```python", text, "```", ""]


def _signature(function: Any) -> str:
    text = re.sub(r"((?:: |-> ))'([^']*)'", r"\1\2", str(inspect.signature(function)))
    return re.sub(r"^\((?:self|cls)(?:, )?", "(", text).removesuffix(" -> None")


def modules_page() -> str:
    """Every module of the three packages, by folder, with the first line of its docstring."""
    lines = ["# Modules", "", "What each module is for, as its docstring opens.", ""]
    for package in ("beam_jobs", "trainer", "serving"):
        folders = sorted(path.parent for path in (ROOT / package).rglob("__init__.py"))
        for folder in folders:
            rows = [
                (f"`{path.name}`", plain(_docstring(path).split("\n\n")[0]))
                for path in sorted(folder.glob("*.py"))
                if path.name != "__init__.py"
            ]
            if rows:
                name = folder.relative_to(ROOT)
                lines += [f"## {name}", "", *table(("module", "what it is for"), rows), ""]
    return "\n".join([*lines, MADE, ""])


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
