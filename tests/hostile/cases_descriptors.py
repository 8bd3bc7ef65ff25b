"""Hundreds of files under a limit of 64 descriptors; and limits under which nothing can be done."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice, repeat
from pathlib import Path

from tests.archives import make
from tests.datasets import write_dataset
from tests.hostile.cases import Case
from tests.hostile.commands import COMMANDS
from tests.hostile.sandbox import Sandbox
from tests.hostile.zygote import Outcome

_FILES = 200
_LIMIT = {"RLIMIT_NOFILE": 64}


def _archives(sandbox: Sandbox, suffix: str, count: int = _FILES) -> Path:
    """A directory of archives with a file each."""
    train = sandbox.made.get("cohort") / "train"
    found = sorted(train.rglob("*.dcm"))
    for number, path in enumerate(islice(found, count)):
        name = str(path.relative_to(train))
        make(sandbox.path(f"input/packed/{number:04}{suffix}"), {name: path.read_bytes()})
    return sandbox.path("input/packed")


def _shards(sandbox: Sandbox) -> Path:
    data = sandbox.path("input/dataset")
    write_dataset(data, patients=_FILES, folds=2, shards=_FILES // 2)
    return data


def _converted(suffix: str, sandbox: Sandbox) -> list[str]:
    # Each archive would be a patient otherwise.
    packed = {"--input": _archives(sandbox, suffix), "--patient_from": "patient_id"}
    return COMMANDS["convert"].line(sandbox, packed)


def _from_shards(subject: str, changes: dict[str, object], sandbox: Sandbox) -> list[str]:
    option = "" if "" in COMMANDS[subject].arguments else "--data"
    return COMMANDS[subject].line(sandbox, {option: _shards(sandbox), **changes})


def _evaluated(sandbox: Sandbox) -> list[str]:
    rows = (sandbox.made.get("run") / "oof_predictions.csv").read_text()
    table = list(csv.DictReader(rows.splitlines()))
    files = []
    for number in range(_FILES):
        lines = [
            "patient_id,probability",
            *(f"{r['patient_id']},{r['probability']}" for r in table),
        ]
        files.append(sandbox.write(f"input/{number}.csv", "\n".join(lines) + "\n"))
    labels = sandbox.made.get("cohort") / "train_labels.csv"
    return ["--predictions", *map(str, files), "--labels", str(labels)]


def _many_directories(sandbox: Sandbox) -> list[str]:
    """A tree of 2,000 files in 200 directories; one file again and again, so a few are used."""
    source = next(iter(sorted((sandbox.made.get("cohort") / "train").rglob("*.dcm"))))
    for number, _ in enumerate(repeat(None, 2000)):
        path = sandbox.path(f"input/many/{number // 10:05}/T1w/{number}.dcm")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
    return COMMANDS["survey"].line(sandbox, {"": sandbox.path("input/many")})


def _done(outcome: Outcome, sandbox: Sandbox) -> Iterable[str]:
    if "Too many open files" in outcome.stderr + outcome.stdout:
        yield "descriptors ran out"


_PLENTY: dict[tuple[str, str], Callable[[Sandbox], list[str]]] = {
    **{
        ("convert", f"200 {suffix}"): partial(_converted, suffix)
        for suffix in (".zip", ".tar", ".tar.gz")
    },
    ("convert", "a directory"): lambda sandbox: COMMANDS["convert"].line(sandbox, {}),
    ("survey", "200 .tar.gz"): lambda sandbox: COMMANDS["survey"].line(
        sandbox, {"": _archives(sandbox, ".tar.gz")}
    ),
    ("survey", "2,000 files"): _many_directories,
    ("report", "200 shards"): partial(_from_shards, "report", {}),
    ("verify", "200 shards"): partial(_from_shards, "verify", {}),
    **{
        ("train", f"200 shards, cache {cache}"): partial(
            _from_shards, "train", {"--cache": cache, "--batch_size": "50"}
        )
        for cache in ("none", "memory", "file")
    },
    ("baseline", "200 shards"): partial(_from_shards, "baseline", {}),
    ("evaluate", "200 tables"): _evaluated,
    ("predict", "200 .zip"): lambda sandbox: COMMANDS["predict"].line(
        sandbox, {"--input": _archives(sandbox, ".zip"), "--patient_from": "patient_id"}
    ),
}
CASES = [
    Case(
        attack="64 descriptors",
        subject=subject,
        name=name,
        make=arguments,
        codes=(0,),
        expect=_done,
        limits=_LIMIT,
        timeout=120.0,
        may_change=lambda name: name == "work/output.csv" or name.startswith("work/output."),
    )
    for (subject, name), arguments in _PLENTY.items()
] + [
    Case(
        attack="too few descriptors",
        subject=subject,
        name=str(limit),
        make=partial(COMMANDS[subject].line, changes={}),
        codes=(0, 1),
        limits={"RLIMIT_NOFILE": limit},
        may_change=lambda name: name.startswith("work/output"),
        quick=subject == "report",
    )
    for subject in ("convert", "report", "verify", "train", "export", "predict", "evaluate")
    for limit in (16, 24)
]
