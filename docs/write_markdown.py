"""Markdown of the generated pages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

MADE = "*Generated from the code when this site was built.*"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; a bar may stand in code only."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        lines.append("| " + " | ".join(row) + " |")
    return lines


def code(text: str) -> str:
    """Text as code; nothing stays nothing."""
    return f"`{text}`" if text else ""


def plain(text: str) -> str:
    """Help text in one line, its options, names and patterns marked as code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.replace("%%", "%").split()))
    return "".join(part if part.startswith("`") else _marked(part) for part in parts)


def _marked(text: str) -> str:
    words = []
    for word in text.split(" "):
        core = word.strip("(),;:.")
        if core.startswith("--") or re.search(r"[_<*{]", core):
            word = word.replace(core, f"`{core}`", 1)
        words.append(word)
    return " ".join(words)


def text_block(text: str) -> list[str]:
    """A docstring as it is laid out."""
    return ["```text", inspect.cleandoc(text), "```"]
