"""Ids and names that lead elsewhere, and outputs in which other people's files lie."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pydicom

from beam_jobs.core.manifest import read_manifest
from tests.hostile.cases import Case
from tests.hostile.made import SHAPE, SMALL
from tests.hostile.sandbox import Sandbox
from tests.hostile.zygote import Outcome

_ELSEWHERE = {
    "up": "../../../state/state",
    "neighbour": "../neighbour/manifest",
    "absolute": "/tmp/state",
    "dots": "..",
    "hidden": ".ssh",
    "backslash": "..\\..\\notes",
    "drive": "C:notes",
    "url": "s3://bucket/x",
    "member": "x.zip!/y",
    "long": "n" * 64,
    "format": "{0}%s%2e%2e%2f",
    "shell": "$(touch pwned)`id`;*",
    "tilde": "~root",
    "option": "--output",
}


def _cohort_of(patient_id: str) -> Callable[[Sandbox], list[object]]:
    """Every file of a cohort's first patient, as a heap, with another PatientID."""

    def make(sandbox: Sandbox) -> list[object]:
        cohort = sandbox.put("cohort", "input/sound")
        first = min((cohort / "train").iterdir())
        for number, path in enumerate(sorted(first.rglob("*.dcm"))):
            header = pydicom.dcmread(path)
            header.PatientID = patient_id
            place = sandbox.path(f"input/heap/s{number // 8}/{number}.dcm")
            place.parent.mkdir(parents=True, exist_ok=True)
            header.save_as(place)
        source = sandbox.path("input/heap")
        return ["--input", source, "--output", "output", "--format", "npz", *SHAPE]

    return make


def _only_below(outcome: Outcome, sandbox: Sandbox) -> Iterable[str]:
    """Of a conversion that ended well: npz files lie where the layout has them."""
    if outcome.code == 0:
        found = list(sandbox.output.rglob("*.npz"))
        if not found:
            yield "no npz file was written"
        for path in found:
            if len(path.relative_to(sandbox.output).parts) != 3:
                yield f"{path} does not lie in <split>/<modality>/"


def _into(what: str, place: str, arguments: Sequence[object]) -> Callable[[Sandbox], list[object]]:
    """A sound output with somebody's file in it, and the command that writes there."""

    def make(sandbox: Sandbox) -> list[object]:
        if what:
            sandbox.put(what, "work/output")
        for source in ("cohort", "dataset", "run", "model", "forest"):
            if any(f"input/{source}" in str(one) for one in arguments):
                sandbox.put(source, f"work/input/{source}")
        sandbox.write(f"work/{place}", "precious")
        return list(arguments)

    return make


def _kept(place: str) -> Callable[[Outcome, Sandbox], Iterable[str]]:
    def expect(outcome: Outcome, sandbox: Sandbox) -> Iterable[str]:
        path = sandbox.path(f"work/{place}")
        if not path.is_file() or path.read_text() != "precious":
            yield f"{place} is not what it was"
        yield from _refused(outcome, sandbox)

    return expect


_CONVERT: list[object] = [
    *("--input", "input/cohort/train", "--labels", "input/cohort/train_labels.csv"),
    *("--output", "output", "--patients_per_shard", "2", *SHAPE),
]
_IN_DATASETS = (
    *("notes.txt", ".hidden", "train/T1w/00000.npz", "train/T1w/deep/in/x.npz", "test/x.npz"),
    *(
        ".state/notes.json",
        ".state/deep/x",
        "fold-0-00000-of-00001.tfrecord.json",
        "models/a.keras",
    ),
    *("fold-00-0-of-1.tfrecord", "manifest.json.bak", "train.npz", "test/T2w/.x"),
)
_IN_EMPTY = ("manifest.json", "report.html", "series.csv", "train/T1w/a.npz", ".state/x", "a.dcm")
_EXPORT: list[object] = ["--runs", "input/run", "--output", "output", "--overwrite"]
_SALIENCY: list[object] = [*("--run", "input/run", "--data", "input/dataset", "--output", "output")]
_PREDICT: list[object] = [
    *("--model", "input/model", "--input", "input/dataset", "--output", "output/table.csv")
]
_EVALUATE: list[object] = [
    *("--predictions", "input/run/oof_predictions.csv", "--output", "output")
]
_TRAIN: list[object] = [
    *("--data", "input/dataset", "--output_dir", "output", "--overwrite", "--cross_validate"),
    *SMALL,
]


def _in_the_way_of_a_map(sandbox: Sandbox) -> list[object]:
    """Somebody's image of the patient whose map is to be written, by the patient's id."""
    sandbox.put("run", "work/input/run")
    dataset = sandbox.put("dataset", "work/input/dataset")
    patient_id = read_manifest(dataset).patients[0][0]
    sandbox.write(f"work/output/{patient_id}.nii.gz", "precious")
    return [*_SALIENCY, "--patients", patient_id]


def _refused(outcome: Outcome, sandbox: Sandbox) -> Iterable[str]:
    if not re.search(_REFUSALS, outcome.stderr):
        yield "it is refused for another reason"


_REFUSALS = (
    r"lies there, and|holds files that are no dataset|are a link, or cannot|is a link, or cannot"
    r"|is not a model|no file of a model|not empty and not a |absent or an empty"
)


def _linked(
    what: str, folder: str, arguments: Sequence[object]
) -> Callable[[Sandbox], list[object]]:
    """A sound output, a folder of which is a link to the neighbour's."""

    def make(sandbox: Sandbox) -> list[object]:
        made = _into(what, "mine.txt", arguments)(sandbox)
        link = sandbox.output / folder
        if link.is_dir():
            link.rename(sandbox.path("work/aside"))
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(sandbox.path("work/neighbour"))
        return made

    return make


def _file_linked(
    what: str, name: str, arguments: Sequence[object], *, without: Sequence[str] = ()
) -> Callable[[Sandbox], list[object]]:
    """A sound output, a file of which is a link to the neighbour's; some are taken away."""

    def make(sandbox: Sandbox) -> list[object]:
        made = _into(what, "mine.txt", arguments)(sandbox)
        for pattern in (*without, name):
            for path in sandbox.output.glob(pattern):
                path.unlink()
        (sandbox.output / name).symlink_to(sandbox.path("work/neighbour/manifest.json"))
        return made

    return make


def _with_shard(
    change: Callable[[Path, Path], object], command: list[object]
) -> Callable[..., list[object]]:
    def make(sandbox: Sandbox) -> list[object]:
        dataset = sandbox.put("dataset", "work/dataset")
        if "input/run" in command:
            sandbox.put("run", "work/input/run")
        first, second, *_ = sorted(dataset.glob("fold-*.tfrecord"))
        change(first, second)
        return list(command)

    return make


def _flip(shard: Path, _: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(bytes(data))


def _into_nowhere(shard: Path, _: Path) -> None:
    shard.unlink()
    shard.symlink_to("nowhere")


def _into_directory(shard: Path, _: Path) -> None:
    shard.unlink()
    shard.mkdir()


_CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "emptied": lambda shard, other: shard.write_bytes(b""),
    "swapped": lambda shard, other: shard.write_bytes(other.read_bytes()),
    "gone": lambda shard, other: shard.unlink(),
    "a directory": _into_directory,
    "flipped": _flip,
    "doubled": lambda shard, other: shard.write_bytes(2 * shard.read_bytes()),
    "a link to nowhere": _into_nowhere,
}
_RESUMED: list[object] = [
    *("--data", "input/dataset", "--output_dir", "output", "--cross_validate"),
    *SMALL,
]
_READERS: dict[str, list[object]] = {
    "report": ["dataset"],
    "verify": ["dataset"],
    "train": ["--data", "dataset", "--output_dir", "output", "--cross_validate", *SMALL],
    "baseline": ["--data", "dataset", "--output_dir", "output", "--trees", "5"],
    "export": ["--runs", "input/run", "--data", "dataset", "--output", "output"],
}


def _names_shard(outcome: Outcome, sandbox: Sandbox) -> Iterable[str]:
    if ".tfrecord" not in outcome.stderr:
        yield "the shard is not named"


def _with_member(path: str) -> Callable[[Sandbox], list[object]]:
    def make(sandbox: Sandbox) -> list[object]:
        run = sandbox.put("run")
        data = json.loads((run / "run.json").read_text())
        data["members"][0]["path"] = path
        (run / "run.json").write_text(json.dumps(data))
        return ["--runs", run, "--output", "output"]

    return make


CASES = [
    *(
        Case(
            attack="a PatientID that leads elsewhere",
            subject="convert",
            name=name,
            make=_cohort_of(patient_id),
            expect=_only_below,
            quick=name == "up",
        )
        for name, patient_id in _ELSEWHERE.items()
    ),
    *(
        Case(
            attack="somebody's file in a dataset",
            subject="convert",
            name=f"{place} {' '.join(more)}",
            make=_into("dataset", f"output/{place}", [*_CONVERT, *more]),
            codes=(2,),
            expect=_kept(f"output/{place}"),
            quick=place == "train/T1w/00000.npz" and not more,
        )
        for place in _IN_DATASETS
        for more in ((), ("--overwrite", "--dtype", "uint16"), ("--format", "npz"))
    ),
    *(
        Case(
            attack="somebody's file where a dataset is to be",
            subject="convert",
            name=f"{place} {' '.join(more)}",
            make=_into("", f"output/{place}", [*_CONVERT, *more]),
            codes=(2,),
            expect=_kept(f"output/{place}"),
        )
        for place in _IN_EMPTY
        for more in ((), ("--overwrite",))
    ),
    *(
        Case(
            attack="a folder of an output that is a link to elsewhere",
            subject=subject,
            name=f"{folder} {' '.join(map(str, more))}",
            make=_linked(what, folder, [*arguments, *more]),
            codes=(2,),
            expect=_refused,
        )
        for subject, what, folders, arguments in (
            ("convert", "dataset", (".state", "train", "test"), _CONVERT),
            ("train", "run", ("fold-0", "logs", "permutations"), _TRAIN),
            ("export", "model", ("assets", "variables"), _EXPORT),
        )
        for folder in folders
        for more in ((), ("--format", "npz"))
        if subject == "convert" or not more
    ),
    *(
        Case(
            attack="somebody's file in an output",
            subject=subject,
            name=place,
            make=_into(what, f"output/{place}", arguments),
            codes=codes,
            expect=_kept(f"output/{place}"),
        )
        for subject, what, arguments, codes, places in (
            (
                "export",
                "model",
                _EXPORT,
                (2,),
                ("notes.txt", "assets/notes.md", "variables/x"),
            ),
            ("export", "", _EXPORT, (2,), ("thesis.tex", "saved_model.pb", "assets/contract.json")),
            ("saliency", "", _SALIENCY, (2,), ("saliency.html", "saliency.json")),
            (
                "predict",
                "",
                _PREDICT,
                (2,),
                ("table.failures.csv", "table.rejects.csv", "table.skew.json"),
            ),
            ("evaluate", "", _EVALUATE, (2,), ("report.html", "metrics.json")),
            ("train", "", _TRAIN, (2,), ("notes.txt", "run.json", "fold-0/network.keras")),
            (
                "tune",
                "",
                ["--data", "input/dataset", "--output_dir", "output"],
                (2,),
                ("notes.txt", "trials/00/result.json", "report.html"),
            ),
            (
                "baseline",
                "",
                ["--data", "input/dataset", "--output_dir", "output"],
                (2,),
                ("notes.txt", "importance.csv"),
            ),
            ("phantoms", "", ["--output", "output", "--patients", "1"], (2,), ("notes.txt", "a/b")),
        )
        for place in places
    ),
    *(
        Case(
            attack="a file of an output that is a link to somebody's",
            subject="convert",
            name=f"{name} {' '.join(more)}",
            make=_file_linked("dataset", name, [*_CONVERT, *more]),
        )
        for name in (
            *("manifest.json", "series.csv", "rejects.csv", "report.html", ".state/job.json"),
            *(".state/lock", ".state/fold-0-00000-of-00002.tfrecord.json"),
            *("fold-0-00000-of-00002.tfrecord", "fold-9-00000-of-00001.tfrecord"),
        )
        for more in ((), ("--overwrite", "--dtype", "uint16"))
    ),
    *(
        Case(
            attack="a file of an output that is a link to somebody's",
            subject="train",
            name=name,
            make=_file_linked("run", name, _RESUMED, without=("run.json", "fold-0/*")),
        )
        for name in (
            *("config.json", "metrics.json", "report.html", "oof_predictions.csv", ".lock"),
            *("fold-0/.epoch-1.keras", "fold-0/state.npz", "fold-0/.state.npz"),
            *("fold-0/.network.keras", "fold-0/network.keras", "fold-0/history.csv"),
            "fold-0/result.json",
        )
    ),
    Case(
        attack="somebody's file in an output",
        subject="saliency",
        name="map",
        make=_in_the_way_of_a_map,
        codes=(2,),
        expect=_refused,
    ),
    *(
        Case(
            attack="a shard that is not what the manifest says",
            subject=subject,
            name=name,
            make=_with_shard(change, command),
            codes=(1,),
            expect=_names_shard,
            quick=subject == "report" and name == "emptied",
        )
        for subject, command in _READERS.items()
        for name, change in _CHANGES.items()
    ),
    *(
        Case(
            attack="a member's path that leads elsewhere",
            subject="export",
            name=name,
            make=_with_member(path),
            codes=(1,),
        )
        for name, path in {
            "up": "../../state/state.npz",
            "absolute": "/etc/passwd",
            "url": "https://example.org/x.keras",
            "member": "x.zip!/y.keras",
            "empty": "",
            "nul": "fold-0/net\0work.keras",
            "dots": "fold-0/../../x.keras",
        }.items()
    ),
]
