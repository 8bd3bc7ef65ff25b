"""Stands for trials and trainings in tests: learns something in milliseconds, without TensorFlow.

`python -m tests.trainer.search.toy_recipe REQUEST` is a trial's process, with `--data ...` it is
`trainer.task`. A patient has five features that follow from the id, the first two with the label in
them; hyperparameters choose features, and training takes the difference of the classes' means. So a
test can nest loops around `logits_of` itself. What else it does environment variables say:

    TOY_SEEN      a file that gets a JSON line a run: its place, who was trained on and scored
    TOY_SECONDS   a run takes so long
    TOY_FAILS     a run whose directory has this name ends with an error
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.csv_table import write_table
from beam_jobs.common.json_file import read_json, write_json
from beam_jobs.core.manifest import Manifest, read_manifest
from trainer.config.provenance import split_provenance
from trainer.config.run import TrainConfig, merged
from trainer.config.run_layout import CONFIG_NAME, OOF_COLUMNS, OOF_NAME
from trainer.data.split import folds_in_use, folds_to_train, labels_of, permuted_labels
from trainer.metrics.ensemble import Scored, metrics_of_members
from trainer.search.child_process import end_with_parent
from trainer.search.objective import result_of
from trainer.search.trial import Request
from trainer.training.run_files import Member, Run

TOY = (sys.executable, "-m", "tests.trainer.search.toy_recipe")


def features_of(patient: str, label: int) -> npt.NDArray[np.float64]:
    """Five numbers, (5,)."""
    rng = np.random.default_rng(zlib.crc32(patient.encode()))
    return rng.normal(size=5) + 0.7 * label * np.array([1.0, 0.6, 0, 0, 0])


def logits_of(
    settings: Mapping[str, Any],
    labels: Mapping[str, int],
    truth: Mapping[str, int],
    trained: Sequence[str],
    scored: Sequence[str],
    seed: int,
) -> npt.NDArray[np.float64]:
    """What a network of these settings says of `scored` after training on `trained`.

    Args:
      settings: `network.width`, `network.dropout` and `network.pooling` choose features.
      labels: that are learnt from.
      truth: that the features are made of.
      trained, scored: ids.
      seed: adds noise to the weights.
    """
    network = settings["network"]
    places = [0 if network["width"] > 0.7 else 2, 1 if network["dropout"] else 3]
    places += [4] if network["pooling"] == "max" else []
    known = np.array([features_of(name, truth[name])[places] for name in trained])
    positive = np.array([labels[name] == 1 for name in trained])
    weights = known[positive].mean(axis=0) - known[~positive].mean(axis=0)
    weights += 0.05 * np.random.default_rng(seed).normal(size=len(places))
    asked = np.array([features_of(name, truth[name])[places] for name in scored])
    found: npt.NDArray[np.float64] = asked @ weights
    return found


def train(directory: Path, config: TrainConfig, manifest: Manifest, folds: Sequence[int]) -> None:
    """A run's directory."""
    truth = labels_of(manifest)
    labels = permuted_labels(manifest, config.seed) if config.permute_labels else truth
    in_use = folds_in_use(manifest, config.outer_fold)
    members = []
    seen: dict[str, Any] = {"place": str(directory), "trained": [], "scored": []}
    for seed in config.seeds:
        for fold in folds:
            names = {
                part: [name for name, _, own in manifest.patients if own in chosen]
                for part, chosen in (("trained", set(in_use) - {fold}), ("scored", {fold}))
            }
            logits = logits_of(config.to_json(), labels, truth, **names, seed=seed)
            members.append(
                Scored(
                    fold=fold,
                    seed=seed,
                    patients=names["scored"],
                    labels=np.array([labels[name] for name in names["scored"]]),
                    logits=logits,
                    details={
                        "epoch": config.epochs,
                        "epochs": config.epochs,
                        "optimistic": {"epoch": 1, "auc": 0.9},
                    },
                )
            )
            for part, ids in names.items():
                seen[part] = sorted({*seen[part], *ids})
    if file := os.environ.get("TOY_SEEN"):
        with open(file, "a") as stream:
            stream.write(json.dumps(seen) + "\n")
    time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
    if directory.name == os.environ.get("TOY_FAILS"):
        sys.exit("error: the toy broke")
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / CONFIG_NAME).exists():
        write_json(directory / CONFIG_NAME, {"config": config.to_json()})
    rows = [
        (name, label, member.fold, member.seed, logit, 1 / (1 + np.exp(-logit)), config.epochs)
        for member in members
        for name, label, logit in zip(
            member.patients, member.labels.tolist(), member.logits.tolist(), strict=True
        )
    ]
    write_table(directory / OOF_NAME, OOF_COLUMNS, [(*row, "last", "") for row in rows])
    metrics = metrics_of_members(members)
    Run(
        directory=str(directory),
        config=config.to_json(),
        schema=manifest.schema,
        spec=manifest.spec,
        dataset_fingerprint=manifest.dataset_fingerprint,
        modalities=config.modalities or manifest.schema.modalities,
        model=config.network.name,
        members=tuple(
            Member(fold=m.fold, seed=m.seed, path="network.keras", epoch=config.epochs, val_auc=0.5)
            for m in members
        ),
        trained_on={"patients": len(truth), "positive": sum(truth.values())},
        trained_ids=tuple(truth),
        epoch_choice="last",
        no_claim=(),
        metrics=metrics,
        precision="float32",
        versions={},
        wall_seconds=0.1,
        step_seconds=0.1,
    ).save()


def main(argv: Sequence[str]) -> int:
    """A trial, or a run."""
    if len(argv) == 1:
        file = Path(argv[0])
        request = Request.load(file)
        config = TrainConfig.from_json(split_provenance(request.config)[0])
        place = file.parent / f"batch-{config.batch_size}"
        train(place, config, read_manifest(request.data), request.folds)
        write_json(file.parent / "result.json", result_of(Run.load(place)))
        return 0
    given = dict(zip(argv[::2], argv[1::2], strict=False))
    cross_validate = "--cross_validate" in argv
    if cross_validate:
        rest = [part for part in argv if part != "--cross_validate"]
        given = dict(zip(rest[::2], rest[1::2], strict=False))
    fold = None if cross_validate else int(given["--fold"])
    settings, _ = split_provenance(read_json(given["--hyperparameters"]))
    config = TrainConfig.from_json(merged(settings, {"fold": fold}))
    manifest = read_manifest(given["--data"])
    folds = folds_to_train(manifest, fold, config.outer_fold)
    train(Path(given["--output_dir"]), config, manifest, folds)
    return 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(sys.argv[1:]))
