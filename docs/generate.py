"""The reference pages, made from the code that they describe whenever the site is built.

Nothing of it is kept in a file, so no page can differ from what the code does.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import os
import re
from collections.abc import Sequence
from typing import Any, NoReturn
from unittest import mock

from beam_jobs.common import cli, console
from beam_jobs.core import record
from beam_jobs.core.manifest import Manifest, ShardEntry
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.reasons import SENTENCES, UNUSED_BY_RULE
from beam_jobs.report.advice import ADVICE
from docs.python_pages import ROOT, modules_page, python_page
from docs.write_markdown import MADE, code, plain, table
from serving.predict.reasons import SENTENCES as UNPREDICTED

COMMANDS = {verb: module for verb, (module, _) in console.VERBS.items()}


def pages() -> dict[str, str]:
    """Every generated page: its path below `docs/`, and its Markdown."""
    parsers = {verb: parser_of(module) for verb, module in COMMANDS.items()}
    made = {f"reference/commands/{verb}.md": command_page(verb, parsers[verb]) for verb in COMMANDS}
    made["reference/commands/index.md"] = commands_page(parsers)
    made["reference/exit-codes.md"] = exit_codes_page(parsers)
    made["reference/reasons.md"] = reasons_page()
    made["reference/record.md"] = record_page()
    made["reference/modules.md"] = modules_page()
    made["reference/python.md"] = python_page()
    return made


# Commands.


class _ShownError(Exception):
    """Carries the parser out of a command that was requested to show its help."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def _show(parser: argparse.ArgumentParser, file: object = None) -> NoReturn:
    raise _ShownError(parser)


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser whose help the command prints, every option in it, as `voxelbeam VERB`.

    Raises:
      LookupError: the command shows no help.
    """
    command: Any = importlib.import_module(module)
    if hasattr(command, "__path__"):
        command = importlib.import_module(f"{module}.__main__")
    names = {name: f"{console.PROG} {verb}" for verb, name in COMMANDS.items()}
    try:
        with mock.patch.object(cli.Parser, "print_help", _show):
            cli.name_commands(names)
            command.main(["--help"])
    except _ShownError as shown:
        return shown.parser
    finally:
        cli.name_commands({})
    raise LookupError(f"{module} shows no help")


def command_page(verb: str, parser: argparse.ArgumentParser) -> str:
    """What the command does, its options by group, its examples and exit codes."""
    examples, codes = _epilog(parser)
    lines = [
        f"# voxelbeam {verb}",
        "",
        plain(parser.description or ""),
        "",
        f"The same command: `python -m {COMMANDS[verb]}`.",
        "",
    ]
    for title, actions in option_groups(parser):
        lines += [f"## {title.capitalize()}", "", *_options_table(actions), ""]
    lines += ["## Examples", "", "```text", examples, "```", "", "## Exit codes", ""]
    lines += table(("code", "meaning"), [(f"`{code}`", meaning) for code, meaning in codes])
    return "\n".join([*lines, "", MADE, ""])


def commands_page(parsers: dict[str, argparse.ArgumentParser]) -> str:
    """What all commands do alike, and one row each."""
    rows = [
        (f"[`voxelbeam {verb}`]({verb}.md)", f"`python -m {COMMANDS[verb]}`", _first(parser))
        for verb, parser in parsers.items()
    ]
    return "\n".join(
        [
            "# Commands",
            "",
            "Every command explains itself with `--help`: what it does, its options, examples, "
            "exit codes. On a terminal long work shows a bar with its rate and the time left; in "
            "a pipe there is none. Each ends with a table of what was found and where it lies. "
            "`--quiet` leaves errors and hints; `--log_level info` (or `warning`, `debug`) shows "
            "the messages of TensorFlow, Beam and the other libraries, which are silent "
            "otherwise. Options of several values take them with commas or with blanks between "
            "(`--shape 64,64,32` or `--shape 64 64 32`).",
            "",
            *table(("command", "the same", "what it does"), rows),
            "",
            MADE,
            "",
        ]
    )


def exit_codes_page(parsers: dict[str, argparse.ArgumentParser]) -> str:
    """What each code means, in general and where a command says more."""
    general = cli.EXIT_CODES | {
        cli.EXIT_USAGE: "wrong usage: an unknown option, a missing file or column",
        cli.EXIT_REJECTED: "done, but some input was rejected and `--strict` was given",
    }
    own = [
        (f"[{verb}](commands/{verb}.md)", f"`{code}`", meaning)
        for verb, parser in parsers.items()
        for code, meaning in _epilog(parser)[1]
        if cli.EXIT_CODES.get(code) != meaning
    ]
    return "\n".join(
        [
            "# Exit codes",
            "",
            "An error is one line on stderr, `<command>: error: <what>`.",
            "",
            *table(
                ("code", "of every command"),
                [(f"`{code}`", meaning) for code, meaning in sorted(general.items())],
            ),
            "",
            "Commands that say more:",
            "",
            *table(("command", "code", "meaning"), own),
            "",
            MADE,
            "",
        ]
    )


def option_groups(
    parser: argparse.ArgumentParser,
) -> list[tuple[str, list[argparse.Action]]]:
    """(title, options) of each group that has any, `--help` left out."""
    groups = []
    for group in parser._action_groups:
        shown = [
            action
            for action in group._group_actions
            if action.dest != "help" and action.help is not argparse.SUPPRESS
        ]
        if shown:
            groups.append((group.title or "options", shown))
    return groups


def _options_table(actions: Sequence[argparse.Action]) -> list[str]:
    rows = []
    for action in actions:
        flag = bool(action.option_strings)
        shown = action.default is not argparse.SUPPRESS and action.default not in ("", None)
        default = str(action.default) if shown and action.default is not False else ""
        if action.dest == "workers" and action.default == (os.cpu_count() or 1):
            default = "one a core"  # the reader's machine is another
        rows.append(
            (
                code(action.option_strings[-1] if flag else _metavar(action)),
                code(_metavar(action)) if flag and action.nargs != 0 else "",
                "required" if action.required else code(default),
                plain((action.help or "").replace("%(default)s", default)),
            )
        )
    return table(("option", "takes", "default", "what it does"), rows)


def _metavar(action: argparse.Action) -> str:
    if action.choices and action.metavar is None:
        return " | ".join(map(str, action.choices))
    named = action.metavar or action.dest.upper()
    return named if isinstance(named, str) else " ".join(named)


def _epilog(parser: argparse.ArgumentParser) -> tuple[str, list[tuple[int, str]]]:
    """The examples' text, and (code, meaning) of each exit code, as `cli.Parser` lays them."""
    examples, _, codes = (parser.epilog or "").partition("\n\nexit codes:\n")
    found = re.findall(r"^  (\d+) +(.+)$", codes, re.MULTILINE)
    return inspect.cleandoc(examples.removeprefix("examples:")), [
        (int(code), meaning) for code, meaning in found
    ]


def _first(parser: argparse.ArgumentParser) -> str:
    return plain(re.split(r"(?<=\.)\s", plain(parser.description or ""), maxsplit=1)[0])


# Reasons and the record.


def reasons_page() -> str:
    """Every reason code with its sentence and what to do about it."""
    lines = [
        "# Reasons",
        "",
        "Every file, series and patient that is not used has one of these codes in `rejects.csv` "
        "or `series.csv`. A code is never renamed or given another meaning.",
        "",
    ]
    for title, unused in (("Rejected", False), ("Unused by rule: nothing is wrong", True)):
        rows = [
            (f"`{reason.value}`", sentence, ADVICE[reason])
            for reason, sentence in SENTENCES.items()
            if (reason in UNUSED_BY_RULE) == unused
        ]
        lines += [f"## {title}", "", *table(("code", "what it means", "what to do"), rows), ""]
    lines += [
        "## Not predicted",
        "",
        "Batch prediction has these besides, in `*.failures.csv` and in the column `flags`.",
        "",
        *table(
            ("code", "what it means"),
            [(f"`{reason.value}`", sentence) for reason, sentence in UNPREDICTED.items()],
        ),
        "",
    ]
    return "\n".join([*lines, MADE, ""])


def record_features() -> list[tuple[str, str, str, str]]:
    """(feature, kind, shape, meaning), from the table that `core.record` opens with."""
    rows: list[list[str]] = []
    for line in (record.__doc__ or "").splitlines():
        cells = re.match(r"    (.{17})  (.{10})  (.{20})  ?(.*)$", line.ljust(56))
        if not cells or cells[1].startswith("---") or cells[1].strip() == "feature":
            continue
        row = [cell.strip() for cell in cells.groups()]
        if row[0]:
            rows.append(row)
        elif rows:
            rows[-1][3] += f" {row[3]}"
    return [(name, kind, shape, meaning.strip()) for name, kind, shape, meaning in rows]


def record_page() -> str:
    """The contract: features of a record, the recipe, and the manifest."""
    rows = [(f"`{name}`", *rest) for name, *rest in record_features()]
    return "\n".join(
        [
            "# The record",
            "",
            "One `tf.train.Example` is one patient. Its features are an allow-list: nothing else "
            f"leaves the DICOM. Schema versions {' and '.join(map(str, record.SCHEMA_VERSIONS))}; "
            "voxels are stored as "
            f"{', '.join(f'`{dtype}`' for dtype in record.DTYPES)}; the axes of a volume are "
            f"({', '.join(record.AXES)}).",
            "",
            *table(("feature", "kind", "values", "meaning"), rows),
            "",
            "## The recipe",
            "",
            "`spec` of `manifest.json`, and of the model: everything that decides a prepared "
            "volume's voxels, apart from the input. Its fingerprint stands in every record.",
            "",
            *_fields_table(PreprocessSpec),
            "",
            "## The manifest",
            "",
            "`manifest.json` is written last, so that it marks a complete dataset.",
            "",
            *_fields_table(Manifest),
            "",
            "Each shard:",
            "",
            *_fields_table(ShardEntry),
            "",
            MADE,
            "",
        ]
    )


def _fields_table(cls: type[Any]) -> list[str]:
    """A dataclass' fields with their defaults and their lines of its docstring."""
    docstring = inspect.getdoc(cls) or ""
    body = re.search(r"^Attributes:\n((?:  .*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", body[1] if body else "", re.MULTILINE)
    meanings = {name: " ".join(text.split()) for name, text in entries}
    rows = [
        (
            f"`{field.name}`",
            "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`",
            meanings[field.name],
        )
        for field in dataclasses.fields(cls)
    ]
    return table(("field", "default", "meaning"), rows)


# Pages of the repository's root.

ROOT_PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}


def root_pages() -> dict[str, str]:
    """The root's pages by their path in the site; links into `docs/` lose that part."""
    return {page: _moved((ROOT / name).read_text("utf-8")) for name, page in ROOT_PAGES.items()}


def _moved(text: str) -> str:
    text = text.replace("](docs/", "](")
    for name, page in ROOT_PAGES.items():
        text = re.sub(rf"\]\({re.escape(name)}(?=[)#])", f"]({page}", text)
    return text
