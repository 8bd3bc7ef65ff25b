"""Names that speak to a terminal, a spreadsheet, a browser or a template: shown, never obeyed."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd

from beam_jobs import api
from beam_jobs.common.csv_table import is_formula
from tests.hostile.cases import Case
from tests.hostile.commands import COMMANDS
from tests.hostile.names import IDS, TEST_IDS
from tests.hostile.sandbox import Sandbox
from tests.hostile.zygote import Outcome

_SUBMISSIONS = re.compile(r"output\.csv|sample_submission.*\.csv|.*labels\.csv|submission\.csv")


class _Page(HTMLParser):
    """What a browser would do with a page besides showing it."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name.startswith("on") and "alert" in (value or ""):
                self.faults.append(f"<{tag} {name}={value}>")
            if name in ("href", "src") and (value or "").startswith(("http", "file", "javascript")):
                self.faults.append(f"<{tag} {name}={value}>")

    def handle_data(self, data: str) -> None:
        if self.get_starttag_text() == "<script>" and "alert(1)" in data.strip()[:10]:
            self.faults.append(f"<script>{data[:40]}")


def _written(sandbox: Sandbox) -> Iterator[Path]:
    for path in sandbox.work.glob("output*"):
        yield from (path.rglob("*") if path.is_dir() else [path])


def _inert(outcome: Outcome, sandbox: Sandbox) -> Iterator[str]:
    """Faults of what was written: cells that run, pages that act."""
    for path in _written(sandbox):
        if path.suffix == ".csv" and not _SUBMISSIONS.fullmatch(path.name):
            for row in csv.reader(io.StringIO(path.read_bytes().decode(), newline="")):
                for cell in row:
                    if is_formula(cell) and not cell.startswith("'"):
                        yield f"{path.name} has a cell that runs: {cell[:60]!r}"
        if path.suffix == ".html":
            page = _Page()
            text = path.read_text()
            page.feed(text)
            yield from (f"{path.name} acts: {fault}" for fault in page.faults[:3])
            if "<script>alert" in text or "<img src=x onerror" in text:
                yield f"{path.name} has a name's markup as its own"
            if {"\x1b", "\x9b", "\u202e"} & set(text):
                yield f"{path.name} has raw control characters"


def _done(outcome: Outcome, sandbox: Sandbox) -> Iterator[str]:
    if outcome.code != 0:
        yield f"sound but for its names, and yet exit code {outcome.code}"
    yield from _inert(outcome, sandbox)


def _kept(outcome: Outcome, sandbox: Sandbox) -> Iterator[str]:
    """After a conversion: our own reading gives each id back as it was."""
    yield from _done(outcome, sandbox)
    if outcome.code == 0:
        dataset = api.open_dataset(sandbox.output)
        found = {name for name, _, _ in dataset.manifest.patients}
        if found != set(IDS):
            yield f"other ids in the manifest: {sorted(found ^ set(IDS))}"
        found = set(dataset.series["patient"])
        if found != set(IDS):
            yield f"other ids in series.csv: {sorted(found ^ set(IDS))}"


def _answered(outcome: Outcome, sandbox: Sandbox) -> Iterator[str]:
    """After a prediction: the ids stand as asked for, and a warning names the file."""
    yield from _done(outcome, sandbox)
    if outcome.code == 0:
        table = pd.read_csv(sandbox.work / "output.csv", dtype=str, keep_default_na=False)
        if set(table.iloc[:, 0]) != set(TEST_IDS):
            yield f"other ids than asked for: {list(table.iloc[:, 0])}"
        if "2 ids in" not in outcome.stdout or "formulas to a spreadsheet" not in outcome.stdout:
            yield "no warning of cells that a spreadsheet runs"


Check = Callable[[Outcome, Sandbox], Iterable[str]]
# Command, what is done with it, changes to its arguments, and what to look at.
_RUNS: tuple[tuple[str, str, Mapping[str, str], Check], ...] = (
    ("convert", "records", {}, _kept),
    ("convert", "dry run", {"--dry_run": ""}, _inert),
    ("convert", "npz", {"--format": "npz"}, _kept),
    ("convert", "hashed", {"--id_policy": "hmac", "--id_key": "{space.json}"}, _done),
    ("convert", "no labels fit", {"--labels": "{cohort}/train_labels.csv"}, _inert),
    ("convert", "modalities of it", {"--modalities": IDS[2]}, _inert),
    ("survey", "listing", {}, _done),
    ("survey", "table", {"--output": "{output}.csv"}, _done),
    ("survey", "rules", {"--write_rules": "{output}.json"}, _done),
    ("verify", "sound", {}, _done),
    ("report", "page", {"--output": "{output}.html"}, _done),
    ("report", "drift", {"--output": "{output}.html", "--against": "{dataset}"}, _done),
    ("train", "a fold", {}, _done),
    ("baseline", "a forest", {}, _done),
    ("evaluate", "a run", {}, _done),
    ("evaluate", "series", {"--series": "{odd_dataset}/series.csv"}, _done),
    ("evaluate", "labels", {"--labels": "{odd_cohort}/train_labels.csv"}, _done),
    ("evaluate", "no labels fit", {"--labels": "{cohort}/train_labels.csv"}, _inert),
    ("saliency", "all", {}, _done),
    ("saliency", "one patient", {"--patients": IDS[4]}, _inert),
    ("export", "a run", {"--data": "{odd_dataset}"}, _done),
    ("predict", "submission", {"--ids": "{odd_cohort}/sample_submission.csv"}, _answered),
    ("predict", "lines", {"--output": "{output}.jsonl"}, _done),
    ("predict", "ids of others", {"--ids": "{cohort}/sample_submission.csv"}, _inert),
    ("check", "sound", {}, _done),
    ("check", "ids of others", {"--sample": "{cohort}/sample_submission.csv"}, _inert),
    ("tune", "a study", {}, _done),
)


def _line(sandbox: Sandbox, *, subject: str, changes: Mapping[str, str]) -> list[str]:
    command = COMMANDS[subject]
    values = {
        option: re.sub(r"\{(cohort|dataset|run|model|submission\.csv)\}", r"{odd_\1}", value or "")
        for option, value in command.arguments.items()
    }
    values.update(changes)
    filled = {option: command.filled(value, sandbox) for option, value in values.items()}
    return command.line(sandbox, {key: value or None for key, value in filled.items()})


_ODD = "$x^$[_b]<i>\x1b[2J\u202e=1"


def _modality(sandbox: Sandbox) -> list[str]:
    """A conversion whose fourth modality, and every directory of it, has such a name."""
    line = _line(sandbox, subject="convert", changes={})
    for path in sandbox.path("input/odd_cohort/train").glob("*/T2w"):
        path.rename(path.with_name(_ODD))
    return [*line, "--modalities", "FLAIR", "T1w", _ODD]


def _compared(sandbox: Sandbox) -> list[str]:
    """Two runs whose directories have such names."""
    runs = [sandbox.put("run", f"input/{number} {_ODD}") for number in range(2)]
    return [
        *("--predictions", *(str(run / "oof_predictions.csv") for run in runs)),
        *("--output", str(sandbox.output)),
    ]


def _ruled(sandbox: Sandbox, *, subject: str) -> list[str]:
    """Rules of such names, which say nothing of the input."""
    rules = [{"modality": _ODD, "text": _ODD}, {"modality": "T1w", "text": "="}]
    path = sandbox.write("input/rules.json", json.dumps(rules))
    return [*_line(sandbox, subject=subject, changes={}), "--series_rules", str(path)]


_Line = tuple[str, str, Callable[[Sandbox], list[str]], Check]
_LINES: tuple[_Line, ...] = (
    *(
        (subject, name, partial(_line, subject=subject, changes=changes), expect)
        for subject, name, changes, expect in _RUNS
    ),
    ("convert", "a modality", _modality, _done),
    ("evaluate", "two runs", _compared, _done),
    ("convert", "rules of it", partial(_ruled, subject="convert"), _inert),
    ("survey", "rules of it", partial(_ruled, subject="survey"), _inert),
)
CASES = [
    Case(
        attack=f"names that speak to {'a terminal' if terminal else 'whoever reads them'}",
        subject=subject,
        name=name,
        make=make,
        expect=expect,
        terminal=terminal,
        may_change=lambda name: name.startswith("work/output"),
        quick=(subject, name, terminal) == ("convert", "records", False),
        timeout=300 if subject == "tune" else 120,
    )
    for subject, name, make, expect in _LINES
    for terminal in (False, True)
]
