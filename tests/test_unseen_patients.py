"""The whole chain with a test set: folds given, trained, exported, predicted, judged."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from beam_jobs import dicom_to_tfrecord
from beam_jobs.common.contract_json import ContractError
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from serving import batch_predict, export
from trainer import evaluate, task


@pytest.mark.slow
def test_patients_of_no_fold_are_the_headline_and_all_others_are_refused(tmp_path: Path) -> None:
    cohort, data, run, model = (tmp_path / name for name in ("cohort", "data", "run", "model"))
    phantoms = PhantomConfig(
        patients=20, test_patients=0, matrix=(16, 20), slices=(10, 12), modalities=("T1wCE",)
    )
    write_cohort(phantoms, cohort)
    labels = cohort / "train_labels.csv"
    table = pd.read_csv(labels, dtype=str)
    place = table.groupby("MGMT_value").cumcount()  # 0 .. 9 of each label
    table["fold"] = (place % 2).astype(str).where(place < 6, "test")
    table[["BraTS21ID", "fold"]].to_csv(tmp_path / "folds.csv", index=False)
    test = table[table.fold == "test"]

    convert = ["--input", str(cohort / "train"), "--labels", str(labels), "--output", str(data)]
    convert += ["--shape", "12,12,10", "--modalities", "T1wCE"]
    assert dicom_to_tfrecord.main([*convert, "--folds_csv", str(tmp_path / "folds.csv")]) == 0
    train = ["--data", str(data), "--output_dir", str(run), "--cross_validate", "--epochs", "2"]
    train += ["--model", "seed_cnn", "--width", "0.25", "--precision", "float32"]
    assert task.main([*train, "--batch_size", "4"]) == 0
    assert export.main(["--runs", str(run), "--data", str(data), "--output", str(model)]) == 0

    def judged(records: Path) -> Path:
        """metrics.json of the model's answers, held against its run."""
        answers = tmp_path / "answers.csv"
        predict = ["--model", str(model), "--input", str(records), "--output", str(answers)]
        assert batch_predict.main(predict) == 0
        argv = ["--predictions", str(answers), "--labels", str(labels), "--run", str(run)]
        assert evaluate.main([*argv, "--output", str(tmp_path / "out")]) == 0
        return tmp_path / "out" / "metrics.json"

    found = json.loads(judged(data / "test-*.tfrecord").read_text())
    answers = pd.read_csv(tmp_path / "answers.csv", dtype={"BraTS21ID": str})
    both = answers.merge(test, on="BraTS21ID", suffixes=("", "_true"))
    assert len(both) == len(answers) == len(test) == 8
    expected = roc_auc_score(both.MGMT_value_true.astype(int), both.MGMT_value)
    assert found["auc"] == pytest.approx(expected)
    assert (found["n"], found["positive"]) == (8, 4)
    assert (found["estimator"], found["variance_factor"]) == ("all pairs", 1)
    assert (found["out_of_fold"]["n"], found["out_of_fold"]["variance_factor"]) == (12, 2)
    with pytest.raises(ContractError, match=r"no test set: .* trained on 12 of its patients"):
        judged(data)
