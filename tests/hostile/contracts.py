"""Files that commands read back, each with the function that reads it, in this process.

No TensorFlow and no Beam job: thousands of damaged copies of a file cost seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from beam_jobs.common.csv_table import write_table
from beam_jobs.common.json_file import write_json
from beam_jobs.common.named_file import read_named
from beam_jobs.convert.resume import StateStore
from beam_jobs.convert.series_table import REJECT_COLUMNS, SERIES_COLUMNS
from beam_jobs.core import drift
from beam_jobs.core.cohort.labels import read_folds, read_groups, read_labels
from beam_jobs.core.cohort.rules import read_rules_file
from beam_jobs.core.manifest import MANIFEST_NAME, read_manifest
from beam_jobs.core.tfrecord import read_cases
from beam_jobs.report import data as report_data
from beam_jobs.report.cases import as_levels, facts_of
from serving.model.calibration import Calibration
from serving.model.cohort_statistics import STATISTICS_NAME, of_series_table
from serving.model.contract import CONTRACT_NAME, Contract, load_contract, load_statistics
from serving.model.out_of_fold import out_of_fold
from serving.predict.check import problems
from serving.predict.submission import read_ids
from tests.datasets import make_metrics, make_run, make_schema, write_dataset
from tests.hostile.damage import Damaged, damaged, damaged_csv, damaged_json
from trainer.config.provenance import split_provenance
from trainer.config.run import TrainConfig
from trainer.config.run_layout import (
    CONFIG_NAME,
    FOLD_RESULT_NAME,
    HISTORY_COLUMNS,
    HISTORY_NAME,
    OOF_COLUMNS,
    OOF_NAME,
    PERMUTATIONS_NAME,
    RUN_NAME,
)
from trainer.config.space_file import read_space
from trainer.forest import baseline
from trainer.metrics.ensemble import summary_rows
from trainer.metrics.predictions import read_predictions
from trainer.metrics.run_facts import read_histories, read_null, run_facts
from trainer.metrics.wording import verdict
from trainer.search import permutations
from trainer.search.study import best_of, claimed
from trainer.search.trial import Request
from trainer.training.checkpoint import FoldState, load_state, save_state
from trainer.training.claim import claim
from trainer.training.fold_result import FoldResult, HeldOutLogits
from trainer.training.run_files import Run

SPEC = {"shape": [12, 12, 10], "modalities": ["T1w", "FLAIR"], "dtype": "uint8"}
MODALITIES = ("T1w", "FLAIR")
SCHEMA = make_schema(modalities=MODALITIES, spec=SPEC)
_SERIES = (
    "00000,00000/T1w/1.dcm,T1w,10,used,,,axial,0.0,26,25,10,7.6,7.6,17.5,35.0,3.0,x,True,True,1,2",
    "00001,00001/FLAIR/1.dcm,FLAIR,8,unused,duplicate_file,,axial,0.0,26,25,8,7.6,7.6,17.5,35.0,"
    "1.5,x,True,True,1,0",
)


class File(NamedTuple):
    """A sound file, how it is read, and in which ways it is damaged."""

    path: Path
    read: Callable[[], object]
    damage: Callable[[bytes, int], Iterator[Damaged]]


def _run(directory: Path) -> Run:
    return make_run(
        directory,
        schema=SCHEMA,
        spec=SPEC,
        config=TrainConfig(modalities=MODALITIES, epochs=3).to_json(),
        dataset_fingerprint="a" * 64,
        modalities=MODALITIES,
        trained_on={"patients": 3, "positive": 1},
        trained_ids=("1", "2", "3"),
    )


def manifest(directory: Path) -> File:
    write_dataset(directory, patients=8, folds=2, unlabelled=1, modalities=MODALITIES)

    def read() -> None:
        found = read_manifest(directory)
        assert [len(found.patients), list(range(found.folds)), found.dumps()]
        found.shards_of(range(found.folds))

    return File(directory / MANIFEST_NAME, read, damaged_json)


def run_json(directory: Path) -> File:
    _run(directory).save()

    def read() -> None:
        found = Run.load(directory)
        assert [found.prevalence, found.to_json(), verdict(found.metrics)]
        list(summary_rows(found.metrics))
        run_facts(directory)

    return File(directory / RUN_NAME, read, damaged_json)


def facts_of_a_run(directory: Path) -> File:
    _run(directory).save()
    return File(directory / RUN_NAME, lambda: run_facts(directory), damaged_json)


def config_json(directory: Path) -> File:
    request = {"config": TrainConfig().to_json(), "dataset_fingerprint": "a"}
    claim(directory, request, overwrite=False)
    return File(
        directory / CONFIG_NAME,
        lambda: claim(directory, request, overwrite=False),
        damaged_json,
    )


def fold_result(directory: Path) -> File:
    held_out = HeldOutLogits(
        patient_ids=("1", "2"), labels=np.array([0, 1]), logits=np.array([[0.1, 0.2]])
    )
    FoldResult(
        fold=0,
        seed=0,
        epochs=(3,),
        optimistic={"epoch": 1, "auc": 0.5},
        step_seconds=0.1,
        input_wait=0.1,
        seconds=1.0,
        held_out=held_out,
    ).save(directory)

    def read() -> None:
        found = FoldResult.load(directory)
        assert found is not None
        found.at(0)

    return File(directory / FOLD_RESULT_NAME, read, damaged_json)


def state_npz(directory: Path) -> File:
    rows = [{**dict.fromkeys(HISTORY_COLUMNS, 0.5), "epoch": 1}]
    save_state(directory, FoldState(epoch=1, history=rows), [np.zeros(9)], request="a")
    return File(directory / "state.npz", lambda: load_state(directory, request="a"), damaged)


def contract(directory: Path) -> File:
    metrics = make_metrics([(0, 1)])
    text = Contract(
        schema=SCHEMA,
        spec=SPEC,
        modalities=MODALITIES,
        members=({"run": "run", "fold": 0, "seed": 1},),
        ensemble="logits",
        calibration=Calibration(method="isotonic", knots=((-1.0, -2.0), (1.0, 2.0))),
        prior=(0.5,),
        cohort={"patients": 8, "positive": 4},
        training=({"name": "run", "no_claim": [], "metrics": {"auc": metrics["auc"]}},),
        versions={"keras": "3"},
    ).dumps()
    (directory / "assets").mkdir()
    (directory / CONTRACT_NAME).write_text(text)

    def read() -> None:
        found = load_contract(directory)
        assert [found.channels, found.calibration.apply(np.zeros(1)), found.calibration.steepness]
        found.dumps()

    return File(directory / CONTRACT_NAME, read, damaged_json)


def statistics(directory: Path) -> File:
    found = drift.of_levels({"T1w": np.arange(256), "FLAIR": None})
    found += found
    found += drift.of_series(
        [dict(zip(SERIES_COLUMNS, row.split(","), strict=True)) for row in _SERIES], MODALITIES
    )
    (directory / "assets").mkdir()
    (directory / STATISTICS_NAME).write_text(found.dumps())

    def read() -> None:
        known = load_statistics(directory)
        assert known is not None
        drift.compare(known, found, MODALITIES)

    return File(directory / STATISTICS_NAME, read, damaged_json)


def search_space(directory: Path) -> File:
    file = directory / "space.json"
    rate = {"min": 1e-5, "max": 1e-2, "log": True}
    epochs = {"min": 5, "max": 50, "step": 5}
    told = {"network": "seed_cnn", "width": [0.25, 0.5], "fusion": "early"}
    write_json(file, {**told, "learning_rate": rate, "epochs": epochs, "ema": None})

    def read() -> None:
        found = read_space(read_named(file), MODALITIES, source=str(file))
        assert [found.rows(), found.to_json(), found.count(), found.count(grid=True)]
        assert found.settings(next(found.combinations(grid=True)))

    return File(file, read, damaged_json)


def series_rules(directory: Path) -> File:
    file = directory / "rules.json"
    rules = [
        {"modality": "T1w", "text": "t1", "slices": [1, 50], "contrast": True, "comment": "x"},
        {"modality": None, "plane": "axial", "dicom_modality": "MR", "echo_time": [0, None]},
    ]
    file.write_text(json.dumps(rules))
    return File(file, lambda: [r.to_json() for r in read_rules_file(file)], damaged_json)


def forest_json(directory: Path) -> File:
    request = {"config": {"trees": 5}, "dataset_fingerprint": "a"}
    made = {"features": 3, "top_features": ["x"], "wall_seconds": 1.5, "format": baseline.FORMAT}
    file = directory / baseline.BASELINE_NAME
    write_json(file, {**request, **made, "metrics": make_metrics([(0, 1)])})

    def read() -> None:
        found = baseline.claim(str(directory), request, overwrite=False)
        assert found is not None
        list(summary_rows(found["metrics"]))
        assert f"{found['wall_seconds']:.0f}" + ", ".join(found["top_features"])

    return File(file, read, damaged_json)


def _study(directory: Path) -> Callable[[], object]:
    """Two trials, one finished."""
    asked = {"tuner": "random", "folds": [0, 1]}
    with claimed(str(directory), asked, 2):
        pass
    for number in range(2):
        trial = directory / "trials" / str(number)
        trial.mkdir(parents=True)
        Request(
            trial=str(number),
            values={"width": 0.25},
            config=TrainConfig().to_json(),
            data="dataset",
            dataset_fingerprint="a",
            folds=(0, 1),
            cache="auto",
            memory=None,
            logs="logs",
            round={"bracket": "0.1", "round": 0, "epochs": 2, "next": 1, "from": ""},
        ).save(trial)
    result = {"status": "completed", "objective": 0.5, "epochs": 3, "batch_size": 8}
    write_json(trial.parent / "0" / "result.json", {**result, "seconds": 1.0, "parameters": 9})

    def read() -> None:
        with claimed(str(directory), asked, 2) as study:
            rows = study.write(["width"], {"patients": ["1"]}, finished=True)
            assert [best_of(rows), study.is_over]
            study.finish()

    return read


def study_json(directory: Path) -> File:
    return File(directory / "study.json", _study(directory), damaged_json)


def trial_request(directory: Path) -> File:
    return File(directory / "trials/0/request.json", _study(directory), damaged_json)


def trial_result(directory: Path) -> File:
    return File(directory / "trials/0/result.json", _study(directory), damaged_json)


def a_permutation(directory: Path) -> File:
    file = directory / "0001.json"
    write_json(file, {"permutation": 1, "seed": 3, "auc": 0.5})
    return File(file, lambda: permutations._finished(directory, "auc"), damaged_json)


def hyperparameters(directory: Path) -> File:
    file = directory / "settings.json"
    provenance = {"study": "a", "patients": ["1"], "folds": [0]}
    write_json(file, {**TrainConfig(modalities=MODALITIES).to_json(), "provenance": provenance})

    def read() -> None:
        from trainer.task import _config, _parser

        line = f"--data x --output_dir y --cross_validate --hyperparameters {file}"
        settings, _ = split_provenance(_config(_parser().parse_args(line.split())))
        TrainConfig.from_json(settings)

    return File(file, read, damaged_json)


def job_json(directory: Path) -> File:
    job = {"folds": 5, "seed": 0, "spec": {"shape": [1, 2, 3]}}
    store = StateStore(output=str(directory), job=job)
    store.begin(overwrite=False)
    return File(directory / ".state/job.json", lambda: store.begin(overwrite=False), damaged_json)


def permutations_csv(directory: Path) -> File:
    file = directory / PERMUTATIONS_NAME
    file.write_text("permutation,seed,auc\n1,1,0.5\n2,2,0.25\n")
    return File(file, lambda: read_null(directory), damaged_csv)


def history_csv(directory: Path) -> File:
    file = directory / "fold-0" / HISTORY_NAME
    file.parent.mkdir()
    rows = [[epoch, *(0.5,) * (len(HISTORY_COLUMNS) - 1)] for epoch in (1, 2)]
    write_table(file, HISTORY_COLUMNS, rows)
    return File(file, lambda: read_histories(directory), damaged_csv)


def _oof(directory: Path) -> Path:
    rows = [
        (number, number % 2, fold, 0, 0.5, 0.6, 2, "last", "")
        for number, fold in enumerate((0, 0, 1, 1), 1)
    ]
    write_table(directory / OOF_NAME, OOF_COLUMNS, rows)
    return directory / OOF_NAME


def oof_predictions(directory: Path) -> File:
    file = _oof(directory)
    return File(file, lambda: read_predictions(file), damaged_csv)


def oof_of_export(directory: Path) -> File:
    file = _oof(directory)
    return File(
        file,
        lambda: out_of_fold(read_named(file), {(0, 0), (1, 0)}, source=str(file)),
        damaged_csv,
    )


def series_csv(directory: Path) -> File:
    found = write_dataset(directory, patients=4, folds=2, modalities=MODALITIES)
    (directory / "series.csv").write_text("\n".join([",".join(SERIES_COLUMNS), *_SERIES, ""]))
    cases = [
        facts_of(case, as_levels(case))
        for shard in found.shards
        for case in read_cases(directory / shard.name, found.schema)
    ]

    def read() -> None:
        report_data.summarise(report_data.gather(str(directory), found, cases))
        known = of_series_table(str(directory), MODALITIES, {"00000"})
        drift.compare(known, known, MODALITIES)

    return File(directory / "series.csv", read, damaged_csv)


def rejects_csv(directory: Path) -> File:
    found = series_csv(directory)
    row = ["file", "a.dcm", "00001", "T1w", "unreadable", "it is", "1"]
    write_table(directory / "rejects.csv", REJECT_COLUMNS, [row])
    return File(directory / "rejects.csv", found.read, damaged_csv)


def _table(directory: Path, text: str, read: Callable[[str, str], object]) -> File:
    file = directory / "table.csv"
    file.write_text(text)
    return File(file, lambda: read(read_named(file), str(file)), damaged_csv)


def labels_csv(directory: Path) -> File:
    def read(text: str, name: str) -> object:
        return read_labels(text, name=name, id_column="id", label_column="y")

    return _table(directory, "id,y\n00001,1\n00002,0\n", read)


def groups_csv(directory: Path) -> File:
    def read(text: str, name: str) -> object:
        return read_groups(text, name=name, id_columns=("id",), group_column="site")

    return _table(directory, "id,site\n00001,a\n00002,b\n", read)


def folds_csv(directory: Path) -> File:
    def read(text: str, name: str) -> object:
        return read_folds(text, name=name, id_columns=("id",))

    return _table(directory, "id,fold\n00001,0\n00002,1\n00003,test\n", read)


def sample_csv(directory: Path) -> File:
    return _table(
        directory,
        "id,y\n00001,0.5\n00002,0.5\n",
        lambda text, name: read_ids(text, "id", source=name),
    )


def submission_csv(directory: Path) -> File:
    return _table(
        directory,
        "id,y\n00001,0.5\n00002,0.5\n",
        lambda text, name: problems(text, ["00001", "00002"], id_column="id", value_column="y"),
    )


FILES: dict[str, Callable[[Path], File]] = {
    make.__name__: make
    for make in (
        *(manifest, run_json, facts_of_a_run, config_json, fold_result, state_npz, contract),
        *(statistics, search_space, series_rules, forest_json, study_json, trial_request),
        *(trial_result, a_permutation, hyperparameters, job_json, permutations_csv, history_csv),
        *(oof_predictions, oof_of_export, series_csv, rejects_csv, labels_csv, groups_csv),
        *(folds_csv, sample_csv, submission_csv),
    )
}
