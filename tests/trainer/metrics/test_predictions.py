"""Predictions joined with labels and groups, whatever way ids are spelt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from trainer.metrics.groups import read_groups
from trainer.metrics.predictions import read_predictions
from trainer.metrics.run_facts import read_histories
from trainer.metrics.tasks.labels_file import read_column

OOF = "patient_id,label,fold,seed,logit,probability"
SERIES = "patient,path,modality,files,verdict,reason,plane,field_strength"


def _write(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_score_is_the_mean_logit_over_seeds_and_each_seed_stays(tmp_path: Path) -> None:
    file = _write(
        tmp_path / "run" / "oof_predictions.csv", OOF,
        "00002,1,0,10,3,0.9", "00001,0,1,2,-1,0.3", "00002,1,0,2,1,0.7", "00001,0,1,10,0,0.5",
    )  # fmt: skip
    found = read_predictions(file)
    assert found.name == "run"
    assert found.keys == ("1", "2")
    assert found.scores.tolist() == [-0.5, 2.0]
    assert found.labels.tolist() == [0, 1]
    assert found.folds is not None
    assert found.folds.tolist() == [1, 0]
    assert {seed: scores.tolist() for seed, scores in found.seeds.items()} == {
        2: [-1.0, 1.0],
        10: [0.0, 3.0],
    }
    assert list(found.seeds) == [2, 10]
    assert found.probabilities == pytest.approx([0.377541, 0.880797], abs=1e-6)


def test_ids_of_letters_that_differ_in_leading_zeros_are_two_patients(tmp_path: Path) -> None:
    """As conversion and training take them; only numbers are one patient in every spelling."""
    oof = _write(tmp_path / "oof.csv", OOF, "0A12,0,0,0,-1,0.3", "A12,1,0,0,2,0.9")
    labels = read_column(
        _write(tmp_path / "labels.csv", "id,label", "0A12,1", "A12,0"), ("id",), ("label",)
    )
    found = read_predictions(oof, labels)
    assert (found.keys, found.labels.tolist()) == (("0A12", "A12"), [1, 0])
    assert found.scores.tolist() == [-1.0, 2.0]


def test_a_seed_that_a_patient_lacks_is_not_counted_as_zero(tmp_path: Path) -> None:
    file = _write(tmp_path / "oof.csv", OOF, "1,0,0,0,-1,0", "2,1,0,0,1,0", "2,1,0,1,3,0")
    found = read_predictions(file)
    assert found.scores.tolist() == [-1.0, 2.0]
    assert np.isnan(found.seeds[1]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (("1,0,0,0,1,0.5", "1,0,0,0,2,0.5"), "ambiguous ids '1' and '1'"),
        (("1,0,0,0,1,0.5", "001,0,0,1,2,0.5"), "ambiguous ids '1' and '001'"),
        (("1,0,0,0,1,0.5", "1,1,0,1,2,0.5"), "label of 1 is both 0 and 1"),
        (("1,0,0,0,1,0.5", "1,0,2,1,2,0.5"), "fold of 1 is both 0 and 2"),
        (("1,0,0,0,,0.5",), "logit of 1: '' is no finite number"),
        (("1,0,0,0,nan,0.5",), "logit of 1: 'nan' is no finite number"),
        (("1,0,0,0,1,1", "1,0,0,,1,1"), "seed '' is no whole number"),
        (("1,2,0,0,1,0.5",), "label of 1: 0 or 1 required, 2 found"),
        (("1,0,0,0,1,0.5", "2,1,,0,2,0.5"), "fold '' is no whole number"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(
    tmp_path: Path, rows: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ContractError, match=said):
        read_predictions(_write(tmp_path / "oof.csv", OOF, *rows))


@pytest.mark.parametrize("choice", ["best_auc_own", ""])
def test_an_unknown_choice_of_epochs_is_refused(tmp_path: Path, choice: str) -> None:
    file = _write(tmp_path / "oof.csv", f"{OOF},epoch_choice", f"1,0,0,0,1,0.5,{choice}")
    with pytest.raises(ContractError, match=f"epoch_choice '{choice}': one of last, crossfit, no"):
        read_predictions(file)


@pytest.mark.parametrize("row", ["1,0,0,0,1", "1,0,0,0,1,0.5,x"])
def test_a_row_that_is_not_as_long_as_the_header_is_wrong_usage(tmp_path: Path, row: str) -> None:
    file = _write(tmp_path / "oof.csv", OOF, "2,1,0,0,1,0.5", row)
    with pytest.raises(UsageError, match=r"oof\.csv: line 3: \d fields, the header has 6"):
        read_predictions(file)


def test_without_a_seed_column_a_patient_stands_once(tmp_path: Path) -> None:
    file = _write(tmp_path / "p.csv", "BraTS21ID,MGMT_value", "5,0.1", "00005,0.2")
    with pytest.raises(ContractError, match="ambiguous ids '5' and '00005'"):
        read_predictions(file, {"5": "1"})


def test_without_labels_there_is_nothing_to_measure(tmp_path: Path) -> None:
    file = _write(tmp_path / "p.csv", "BraTS21ID,MGMT_value", "5,0.1")
    with pytest.raises(UsageError, match="--labels FILE is needed"):
        read_predictions(file)


def test_scores_that_are_no_probabilities_have_none(tmp_path: Path) -> None:
    file = _write(tmp_path / "p.csv", "patient_id,MGMT_value,label", "1,0.1,0", "2,1.5,1")
    found = read_predictions(file)
    assert found.probabilities is None
    assert found.logits is None


def test_labels_other_than_the_files_own_are_reported(tmp_path: Path) -> None:
    file = _write(tmp_path / "oof.csv", OOF, "1,0,0,0,1,0.5", "2,1,0,0,2,0.5", "3,1,0,0,2,0.5")
    found = read_predictions(file, {"1": "1.0", "2": "1.0", "9": "0", "3": ""})
    assert found.relabelled == ("1",)
    assert found.without_label == ("3",)
    assert found.without_prediction == ("9",)


def test_groups_come_from_used_series_across_leading_zeros(tmp_path: Path) -> None:
    file = _write(
        tmp_path / "series.csv", SERIES,
        "00001,a,T1wCE,30,used,,axial,2.8936", "00001,b,FLAIR,30,used,,sagittal,2.8936",
        "00001,c,T1wCE,30,unused,duplicate,coronal,1.5", "00002,d,T1wCE,30,used,,coronal,1.494",
        "00003,e,T1wCE,30,used,,axial,", "00004,f,T1wCE,30,used,,axial,1.5",
        "00004,g,FLAIR,30,used,,axial,3", "00099,h,T1wCE,30,used,,axial,7",
    )  # fmt: skip
    keys = ["1", "2", "3", "4"]
    groups = read_groups(file, keys)
    members = {
        by: {name: inside.nonzero()[0].tolist() for name, inside in of.items()}
        for by, of in groups.items()
    }
    assert members == {
        "field strength": {"1.5 T": [1], "1.5 T and 3 T": [3], "3 T": [0], "unknown": [2]},
        "plane of FLAIR": {"axial": [3], "sagittal": [0], "unknown": [1, 2]},
        "plane of T1wCE": {"axial": [0, 2, 3], "coronal": [1]},
    }
    seen = read_groups(file, keys, ["T1wCE"])
    assert set(seen) == {"field strength", "plane of T1wCE"}
    assert seen["field strength"]["1.5 T"].tolist() == [False, True, False, True]


def test_series_of_another_dataset_are_refused(tmp_path: Path) -> None:
    file = _write(tmp_path / "series.csv", SERIES, "7,a,T1wCE,30,used,,axial,3")
    with pytest.raises(ContractError, match="another dataset"):
        read_groups(file, ["1"])


def test_histories_are_read_for_each_member_and_what_is_no_number_is_none(tmp_path: Path) -> None:
    _write(tmp_path / "fold-0-seed-1" / "history.csv", "epoch,val_auc,best", "1,0.5,", "2,nan,")
    _write(tmp_path / "fold-1" / "history.csv", "epoch,val_auc", "1,0.6")
    assert read_histories(tmp_path) == {
        "fold-0-seed-1": {"epoch": [1.0, 2.0], "val_auc": [0.5, None]},
        "fold-1": {"epoch": [1.0], "val_auc": [0.6]},
    }
