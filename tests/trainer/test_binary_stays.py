"""What runs of labels 0 and 1 write is what version 0.7 wrote, byte for byte.

The digests are of what commit ebd5286 writes, before records knew other labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.common.contract_json import canonical_json, fingerprint
from tests.datasets import make_run, make_schema, write_dataset
from trainer.config.run import TrainConfig
from trainer.config.run_layout import HISTORY_COLUMNS, OOF_COLUMNS
from trainer.data.split import permuted_labels
from trainer.training.fold_result import FoldResult, HeldOutLogits

SPEC = {"shape": [1, 2, 3]}


def _config(directory: Path) -> str:
    configs = [TrainConfig(), TrainConfig(fold=1, modalities=("T1w",)).resolve(("T1w",))]
    return fingerprint([config.to_json() for config in configs])


def _permuted(directory: Path) -> str:
    labels = permuted_labels(write_dataset(directory, patients=24, folds=3), 3)
    return canonical_json(list(labels.values()))


def _dataset(directory: Path) -> str:
    return write_dataset(directory, patients=24, folds=3, unlabelled=1).dataset_fingerprint


def _result(directory: Path) -> str:
    FoldResult(
        fold=0,
        seed=1,
        epochs=(3,),
        optimistic={"epoch": 1, "auc": 0.5},
        step_seconds=0.1,
        input_wait=0.1,
        seconds=1.0,
        held_out=HeldOutLogits(
            patient_ids=("1", "2"), labels=np.array([0, 1]), logits=np.array([[0.1, 0.2]])
        ),
    ).save(directory)
    return hashlib.sha256((directory / "result.json").read_bytes()).hexdigest()


def _run(directory: Path) -> str:
    make_run(
        directory,
        schema=make_schema(spec=SPEC),
        spec=SPEC,
        config=TrainConfig().to_json(),
        dataset_fingerprint="a",
        modalities=("T1wCE",),
        trained_on={"patients": 80, "positive": 40},
        trained_ids=tuple(map(str, range(80))),
    ).save()
    return hashlib.sha256((directory / "run.json").read_bytes()).hexdigest()


def _columns(directory: Path) -> str:
    return ",".join((*OOF_COLUMNS, *HISTORY_COLUMNS))


WRITTEN: dict[Callable[[Path], str], str] = {
    _config: "0d78b1a64f0a3dc7d447b51813fbefa88b285041a7598b13bbb2f31cd7009287",
    _permuted: "[0,1,0,1,0,1,1,0,0,0,0,1,1,0,1,1,0,0,0,1,1,1,0,1]",
    _dataset: "867a23b2f1f22713d830a9f8a5c351d7904806cd81021858b0ee8916cedab92e",
    _result: "c08091b23d3b344242ca3b6850388fc469b323b6e9692188d6bb1f4e4c2623f4",
    _run: "1a96c39219e7ce4d4d9bd6e7fd7ee62cb2969a04fe26a68acd961b4f8e114bb2",
    _columns: "patient_id,label,fold,seed,logit,probability,epoch,epoch_choice,no_claim,"
    "epoch,loss,val_loss,val_auc,learning_rate,step_seconds,input_wait,epoch_seconds",
}


@pytest.mark.parametrize("what", list(WRITTEN), ids=lambda what: str(what.__name__[1:]))
def test_what_is_written_is_what_was(what: Callable[[Path], str], tmp_path: Path) -> None:
    assert what(tmp_path) == WRITTEN[what]
