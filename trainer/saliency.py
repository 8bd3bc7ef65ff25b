"""Where in their volumes a run's networks found what they predict: maps for chosen patients.

    OUT/
      saliency.html      slices with the map laid over them; needs nothing but itself
      saliency.json      the numbers
      <id>.nii.gz        the map on the record's grid, positive towards the positive class: a volume
                         a modality, in the run's order (one volume in all for Grad-CAM where it
                         cannot tell modalities apart)

A patient is explained by the members that did not train on it: its fold's, or, without a label,
all of them; their mean logit is what is explained.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.cli import EXIT_OK, LIST, Parser, UsageError, items, quiet_tensorflow, run
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.json_file import write_json
from beam_jobs.common.terminal import bar, row
from beam_jobs.core.manifest import Manifest
from trainer.config.run_layout import OOF_NAME
from trainer.data.locations import join, read_manifest
from trainer.explain.summary import map_name, summarise, told
from trainer.metrics.predictions import key_of, read_predictions
from trainer.training.run_files import Run

if TYPE_CHECKING:
    from trainer.explain.attribution import Attribution

PROG = "python -m trainer.saliency"
JSON_NAME = "saliency.json"
PAGE_NAME = "saliency.html"
METHODS = ("integrated_gradients", "gradcam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """A patient to explain.

    Attributes:
      patient_id: as in the record.
      label: None when unknown.
      fold: None without a label.
      members: index in run.json of each network that explains it.
      oof_logit: the run's own out-of-fold prediction, mean over seeds; None without a label.
    """

    patient_id: str
    label: int | None
    fold: int | None
    members: tuple[int, ...]
    oof_logit: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """What a record holds of a patient.

    Attributes:
      volume: (row, column, slice, channel) as stored, the run's modalities in its order.
      affine: 4x4, (row, column, slice, 1) of a voxel centre to patient LPS mm.
      present: per channel, whether the modality was there.
    """

    volume: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    present: tuple[bool, ...]

    @property
    def head(self) -> npt.NDArray[np.bool_]:
        """(row, column, slice): foreground in any modality."""
        head: npt.NDArray[np.bool_] = (self.volume > 0).any(axis=-1)
        return head


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Explained:
    """A patient with its map and that of the same networks with random weights."""

    chosen: Chosen
    case: Case
    found: Attribution
    random: Attribution


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        description="Lays over patients' slices how much each voxel moved the network's logit, and "
        "checks that networks with random weights give other maps.",
        examples=(
            f"  {PROG} --run run --data dataset --output saliency\n"
            f"  {PROG} --run run --data dataset --patients 00005 00109 \\\n"
            "      --method gradcam --output cam"
        ),
    )
    add = parser.add_argument
    add("--run", required=True, type=Path, help="directory of a finished training run")
    add("--data", required=True, metavar="DIR", help="the dataset that it was trained on")
    add(
        "--patients",
        help="ids (default: of each class the most confident right and wrong out of fold)",
        **LIST,
    )
    add("--method", default=METHODS[0], choices=METHODS, help="how voxels are weighed")
    add("--output", required=True, type=Path, metavar="OUT", help="directory to write into")
    return parser


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    args = _parser().parse_args(argv)
    if args.output.exists() and not args.output.is_dir():
        raise UsageError(f"--output {args.output}: a file, a directory is needed")
    trained = Run.load(args.run)
    manifest = read_manifest(args.data)
    if trained.dataset_fingerprint != manifest.dataset_fingerprint:
        raise ContractError(
            f"--data: dataset_fingerprint: {manifest.dataset_fingerprint[:12]} in {args.data}, "
            f"{trained.dataset_fingerprint[:12]} in run {args.run}"
        )
    wanted = None if args.patients is None else items(args.patients)
    chosen = choose(trained, manifest, wanted)
    explained = explain(trained, args.data, manifest, chosen, method=args.method)
    summary = summarise(trained, explained, method=args.method)
    write(args.output, summary, explained)
    for patient in summary["patients"]:
        row(patient["patient_id"], _line(patient))
    for warning in summary["warnings"]:
        row("mind", warning)
    row("maps", f"{len(explained)} and {JSON_NAME} in {args.output}")
    row("report", str(args.output / PAGE_NAME))
    return EXIT_OK


def choose(trained: Run, manifest: Manifest, wanted: Sequence[str] | None) -> list[Chosen]:
    """The patients to explain, with the members that may.

    Args:
      trained: the run.
      manifest: of its dataset.
      wanted: ids, with or without leading zeros. None: of each class, of those predicted right and
        of those predicted wrong, the one with the largest logit.

    Raises:
      UsageError: a patient that the dataset does not hold, or that every member trained on.
      ContractError: as `read_predictions`.
    """
    known = {patient_id: (label, fold) for patient_id, label, fold in manifest.patients}
    spelt = {key_of(patient_id): patient_id for patient_id in known}
    labels = {key_of(i): str(label) for i, (label, _) in known.items() if label is not None}
    predictions = read_predictions(trained.directory / OOF_NAME, labels)
    logits = dict(zip(predictions.keys, predictions.scores.tolist(), strict=True))
    if wanted is None:
        best: dict[tuple[int, bool], str] = {}
        for key, label in zip(predictions.keys, predictions.labels.tolist(), strict=True):
            kind = (label, (logits[key] > 0) == bool(label))
            if kind not in best or abs(logits[key]) > abs(logits[best[kind]]):
                best[kind] = key
        wanted = [best[kind] for kind in sorted(best, key=lambda k: (not k[1], -k[0]))]
    chosen = []
    for text in dict.fromkeys(wanted):
        patient_id = text if text in known else spelt.get(key_of(text), "")
        if patient_id not in known:
            raise UsageError(f"--patients {text}: not among the dataset's {len(known)} patients")
        label, fold = known[patient_id]
        members = tuple(
            place
            for place, member in enumerate(trained.members)
            if fold is None or member.fold == fold
        )
        if not members:
            held_out = ", ".join(map(str, sorted({member.fold for member in trained.members})))
            raise UsageError(
                f"--patients {text}: of fold {fold}, which every member of {trained.directory} "
                f"was trained on; held out there: fold {held_out}"
            )
        chosen.append(
            Chosen(
                patient_id=patient_id,
                label=label,
                fold=fold,
                members=members,
                oof_logit=None if fold is None else logits.get(key_of(patient_id)),
            )
        )
    return chosen


def explain(
    trained: Run, data: str, manifest: Manifest, chosen: Sequence[Chosen], *, method: str
) -> list[Explained]:
    """The maps of some patients, in their order.

    Raises:
      ContractError: records or members are not what manifest and run.json say.
    """
    quiet_tensorflow()
    # TensorFlow: seconds, only from here on
    from trainer.explain.attribution import Explainer, explainable, mean_of, randomised

    cases = read_cases(data, manifest, chosen, modalities=trained.modalities)
    found: dict[str, list[Attribution]] = {one.patient_id: [] for one in chosen}
    random: dict[str, list[Attribution]] = {one.patient_id: [] for one in chosen}
    with bar("explaining", sum(len(one.members) for one in chosen)) as step:
        for place in range(len(trained.members)):
            mine = [one.patient_id for one in chosen if place in one.members]
            if not mine:
                continue
            network = explainable(trained.load_member(place))
            explain_one = Explainer(network, method)
            explain_random = Explainer(randomised(network, seed=place), method)
            for patient_id in mine:
                found[patient_id].append(explain_one(cases[patient_id].volume))
                random[patient_id].append(explain_random(cases[patient_id].volume))
                step()
    return [
        Explained(
            chosen=one,
            case=cases[one.patient_id],
            found=mean_of(found[one.patient_id]),
            random=mean_of(random[one.patient_id]),
        )
        for one in chosen
    ]


def read_cases(
    data: str, manifest: Manifest, chosen: Sequence[Chosen], *, modalities: Sequence[str]
) -> dict[str, Case]:
    """Some patients' records; their folds' shards are verified whole.

    Raises:
      ContractError: shards or records are not what the manifest says.
      CommandError: a store refuses or fails.
    """
    import tensorflow as tf

    from trainer.data.records import open_records

    schema = manifest.schema
    folds = {one.fold for one in chosen}
    open_records(data, manifest, folds, modalities=tuple(modalities)).close()
    wanted = {one.patient_id for one in chosen}
    channels = [schema.modalities.index(name) for name in modalities]
    features = {
        "patient_id": tf.io.FixedLenFeature((), tf.string),
        "volume": tf.io.FixedLenFeature((), tf.string),
        "affine": tf.io.FixedLenFeature((4, 4), tf.float32),
        "present": tf.io.FixedLenFeature((len(schema.modalities),), tf.int64),
    }
    shards = [
        join(data, shard.name)
        for shard in manifest.shards_of(folds)
        if wanted & {patient.patient_id for patient in shard.patients}
    ]
    cases = {}
    for raw in tf.data.TFRecordDataset(shards):
        record = {name: v.numpy() for name, v in tf.io.parse_single_example(raw, features).items()}
        if (patient_id := record["patient_id"].decode()) in wanted:
            stored = np.frombuffer(record["volume"], schema.dtype).reshape(schema.volume_shape)
            cases[patient_id] = Case(
                volume=stored[..., channels],
                affine=record["affine"].astype(np.float64),
                present=tuple(bool(record["present"][channel]) for channel in channels),
            )
    return cases


def write(output: Path, summary: Mapping[str, Any], explained: Sequence[Explained]) -> None:
    """Writes maps, numbers and the page."""
    from trainer.explain.nifti import write_nifti
    from trainer.reports.saliency import page

    text = page(summary, explained)
    output.mkdir(parents=True, exist_ok=True)
    for one in explained:
        values = one.found.values
        flat = values[..., 0] if values.shape[-1] == 1 else values
        write_nifti(output / map_name(one.chosen.patient_id), flat, one.case.affine)
    write_json(output / JSON_NAME, summary)
    (output / PAGE_NAME).write_text(text, encoding="utf-8")


def _line(patient: Mapping[str, Any]) -> str:
    """A patient's line on the terminal."""
    label = "no label" if patient["label"] is None else f"label {patient['label']}"
    check = patient["random_weights"]
    start = f"{label}, logit {patient['logit']:+.2f}: "
    if patient["half_in"] is None:
        return f"{start}an empty map"
    return (
        f"{start}half of the map in {100 * patient['half_in']:.1f} % of the head; rank correlation "
        f"with random weights {told(check['rank_correlation'])}, of sizes "
        f"{told(check['rank_correlation_of_sizes'])}"
    )


if __name__ == "__main__":
    run(main, PROG)
