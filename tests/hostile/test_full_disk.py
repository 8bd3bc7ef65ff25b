"""Disks that fill, of output and TMPDIR: one line, no halves, and the rest once there is room.

Every command writes to a disk that takes its first, a middle or all but its last file, or too few
files; then the disk gets room, and the same command has to leave what it leaves on a roomy one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hostile.cases import MODULES
from tests.hostile.made import SHAPE, SMALL, Made
from tests.hostile.sandbox import Sandbox
from tests.hostile.small_disk import PAGE, make_read_only, make_room, small_disk, used
from tests.hostile.zygote import Outcome, Zygotes

# What holds times, or the date at which Keras wrote it.
VOLATILE = re.compile(
    r"(lock|log\.txt|history\.csv|\.keras|result\.json|run\.json|metrics\.json|trials\.csv"
    r"|state\.json|baseline\.json|study\.html|report\.html|oracle\.json|importance\.csv"
    r"|\.skew\.json)$"
)
NOT_COMPARED = re.compile(r"tfevents|/workers/")
HALF = re.compile(r"\.part$|\.rows-|voxelbeam-|\.state\.npz$|\.network\.keras$")
SPACE = '{"network": "seed_cnn", "width": 0.25, "fusion": "early", "precision": "float32"}'


def convert(box: Sandbox, disk: Path, *more: str) -> list[str]:
    cohort = box.made.get("cohort")
    return [
        *("--input", str(cohort / "train"), "--labels", str(cohort / "train_labels.csv")),
        *("--output", str(disk / "out"), "--patients_per_shard", "2", *SHAPE, *more),
    ]


def train(box: Sandbox, disk: Path, *more: str) -> list[str]:
    data = str(box.made.get("dataset"))
    return ["--data", data, "--output_dir", str(disk / "out"), "--fold", "0", *SMALL, *more]


def tune(box: Sandbox, disk: Path) -> list[str]:
    space = box.path("input/space.json")
    space.write_text(SPACE)
    return [
        *("--data", str(box.made.get("dataset")), "--output_dir", str(disk / "out")),
        *("--tuner", "random", "--max_trials", "1", "--folds", "1", "--epochs", "1"),
        *("--space", str(space)),
    ]


def export(box: Sandbox, disk: Path) -> list[str]:
    run, data = box.made.get("run"), box.made.get("dataset")
    return ["--runs", str(run), "--data", str(data), "--output", str(disk / "out")]


def predict(box: Sandbox, disk: Path, name: str = "out/table.csv", *more: str) -> list[str]:
    (disk / "out").mkdir(exist_ok=True)
    model, cohort = box.made.get("model"), box.made.get("cohort")
    return [
        *("--model", str(model), "--input", str(cohort / "train")),
        *("--output", str(disk / name), *more),
    ]


def evaluate(box: Sandbox, disk: Path) -> list[str]:
    rows = box.made.get("run") / "oof_predictions.csv"
    labels = box.made.get("cohort") / "train_labels.csv"
    return ["--predictions", str(rows), "--labels", str(labels), "--output", str(disk / "out")]


@dataclasses.dataclass(frozen=True)
class Writes:
    """A command, and where it writes."""

    subject: str
    arguments: Callable[[Sandbox, Path], list[str]]


COMMANDS = {
    "convert": Writes("convert", convert),
    "convert-npz": Writes("convert", lambda box, disk: convert(box, disk, "--format", "npz")),
    "report": Writes(
        "report",
        lambda box, disk: [str(box.made.get("dataset")), "--output", str(disk / "out.html")],
    ),
    "survey": Writes(
        "survey",
        lambda box, disk: [
            *(str(box.made.get("cohort")), "--output", str(disk / "out.csv")),
            *("--write_rules", str(disk / "rules.json")),
        ],
    ),
    "phantoms": Writes(
        "phantoms",
        lambda box, disk: [
            *("--output", str(disk / "out"), "--patients", "2", "--test_patients", "1"),
            *("--matrix", "16,16", "--slices", "4,4", "--workers", "1"),
        ],
    ),
    "train": Writes("train", train),
    "train-cache-file": Writes("train", lambda box, disk: train(box, disk, "--cache", "file")),
    "tune": Writes("tune", tune),
    "export": Writes("export", export),
    "predict": Writes("predict", predict),
    "predict-shards": Writes(
        "predict",
        lambda box, disk: predict(box, disk, "out/table.jsonl", "--output_shards", "3"),
    ),
    "evaluate": Writes("evaluate", evaluate),
    "baseline": Writes(
        "baseline",
        lambda box, disk: [
            *("--data", str(box.made.get("dataset")), "--output_dir", str(disk / "out")),
            *("--trees", "5"),
        ],
    ),
    "saliency": Writes(
        "saliency",
        lambda box, disk: [
            *("--run", str(box.made.get("run")), "--data", str(box.made.get("dataset"))),
            *("--output", str(disk / "out"), "--patients", "00000,00002"),
        ],
    ),
}
QUICK = ("report",)
EACH = [
    pytest.param(name, id=name, marks=[] if name in QUICK else [pytest.mark.slow])
    for name in COMMANDS
]


@pytest.fixture
def box(tmp_path: Path, made: Made) -> Sandbox:
    (tmp_path / "box").mkdir()
    return Sandbox(root=tmp_path / "box", made=made)


@pytest.fixture
def run(box: Sandbox, zygotes: Zygotes) -> Callable[[str, Path], Outcome]:
    def run(name: str, disk: Path) -> Outcome:
        command = COMMANDS[name]
        module = MODULES[command.subject]
        arguments = command.arguments(box, disk)
        return zygotes.of(module).run(
            module, arguments, cwd=box.work, env=box.environment(),
            streams=box.path("streams"), timeout=240.0,
        )  # fmt: skip

    return run


def tree(disk: Path) -> dict[str, str]:
    """Path → hash of what lies on a disk, "" where it changes from run to run."""
    found = {}
    for path in sorted(disk.rglob("*")):
        name = str(path.relative_to(disk))
        if path.is_file() and not NOT_COMPARED.search(name):
            content = "" if VOLATILE.search(name) else hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = content
    return found


def refused(outcome: Outcome, disk: Path, text: str) -> Iterator[str]:
    """What is wrong with how a command ended on a disk that refuses."""
    lines = outcome.stderr.strip().splitlines()
    errors = [line for line in lines if ": error: " in line]
    if outcome.killed or outcome.code != 1:
        yield f"exit code {outcome.code}, {outcome.killed}"
    if len(errors) != 1 or text not in errors[0] or str(disk) not in errors[0]:
        yield f"not one line of {text!r} that names a path on {disk}: {lines}"
    if "Traceback" in outcome.stderr or "Exception ignored" in outcome.stderr:
        yield "a traceback"
    if outcome.left or outcome.left_processes:
        yield f"left {outcome.left} {outcome.left_processes}"
    halves = [str(path) for path in disk.rglob("*") if HALF.search(path.name)]
    if halves:
        yield f"halves {halves}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", EACH)
def test_a_disk_that_fills_up(name: str, box: Sandbox, run: Callable[[str, Path], Outcome]) -> None:
    place = box.path("disk")
    with small_disk(place) as disk:
        before = used(disk)
        outcome = run(name, disk)
        assert outcome.code == 0, outcome
        size, inodes = (after - early for after, early in zip(used(disk), before, strict=True))
        whole = tree(disk)
    tried = [("bytes", size * part // 100 // PAGE * PAGE) for part in (0, 45, 97)]
    tried.append(("files", max(2, inodes * 70 // 100)))
    faults = []
    for kind, limit in tried:
        limits = {"size": limit} if kind == "bytes" else {"inodes": limit}
        with small_disk(place, **limits) as disk:
            outcome = run(name, disk)
            if outcome.code == 0:  # temporary files were more than what stays
                assert tree(disk) == whole, (kind, limit)
                continue
            found = [*refused(outcome, disk, "No space left on device")]
            make_room(disk)
            again = run(name, disk)
            after = tree(disk)
            if again.code != 0 or after != whole:
                differing = [n for n in {*whole, *after} if whole.get(n) != after.get(n)]
                found.append(f"with room: {again.code} {again.stderr[-300:]} {differing[:9]}")
            faults += [f"{kind} {limit}: {fault}" for fault in found]
    assert not faults, "\n".join(faults)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", EACH)
def test_a_full_directory_for_temporary_files(
    name: str, box: Sandbox, run: Callable[[str, Path], Outcome]
) -> None:
    with small_disk(box.path("disk")) as disk:
        assert run(name, disk).code == 0
        whole = tree(disk)
    faults = []
    for pages in (1, 4):
        with small_disk(box.path("disk")) as disk, small_disk(box.path("tmp"), pages * PAGE) as tmp:
            outcome = run(name, disk)
            if outcome.code == 0:
                found = [] if tree(disk) == whole else ["done, with other files"]
                found += [f"left {outcome.left}"] if outcome.left else []
            else:
                found = [*refused(outcome, tmp, "No space left on device")]
            faults += [f"{pages} pages: {fault}" for fault in found]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", EACH)
def test_a_read_only_disk(name: str, box: Sandbox, run: Callable[[str, Path], Outcome]) -> None:
    with small_disk(box.path("disk")) as disk:
        COMMANDS[name].arguments(box, disk)
        (disk / "theirs").write_text("theirs")
        make_read_only(disk)
        before = tree(disk)
        assert [*refused(run(name, disk), disk, "Read-only file system")] == []
        assert tree(disk) == before
