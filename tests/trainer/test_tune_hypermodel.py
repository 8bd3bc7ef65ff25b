"""`--hypermodel`: a study over somebody's KerasTuner code, and what of it is refused."""

# ruff: noqa: F811  fixtures come by import

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.json_file import read_json
from tests.trainer.search.searches import FAKE, dataset, rows_of  # noqa: F401
from trainer.tune import main

CODE = "tests.trainer.networks.own_hypermodels"


def argv_of(data: Path, study: Path, name: str, **space: Any) -> list[str]:
    file = study.parent / "space.json"
    file.write_text(json.dumps(space))
    return [
        *("--data", str(data), "--output_dir", str(study), "--hypermodel", f"{CODE}:{name}"),
        *("--tuner", "grid", "--max_trials", "9", "--epochs", "2", "--space", str(file)),
    ]


@pytest.mark.slow
def test_its_hyperparameters_are_searched_beside_what_the_space_adds(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    space = {"options.units": {"min": 4, "max": 8, "step": 4}, "batch_size": [4, 8]}
    assert main(argv_of(dataset, study, "Subclass", **space), command=FAKE) == 0
    rows = rows_of(study)
    assert sorted((row["options.units"], row["batch_size"]) for row in rows) == [
        *(("4", "4"), ("4", "8"), ("8", "4"), ("8", "8"))
    ]
    assert not {"learning_rate", "width", "dropout"} & rows[0].keys()
    best = read_json(study / "best_hyperparameters.json")["network"]
    assert (best["name"], best["options"]) == (f"{CODE}:Subclass", {"units": 4})
    assert re.search(r"options\.units +4 to 8, step 4", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "space", "message"),
    [
        ("Subclass", {"learning_rate": [0.1, 0.2]}, "--space: learning_rate: .* its own optimizer"),
        ("Subclass", {"network": "seed_cnn"}, "network: it is .*Subclass, whose hyperparameters"),
        ("Subclass", {"options.unit": 4}, "unknown hyperparameter options.unit: .* options.units"),
        ("Subclass", {"options.units": 4}, r"nothing is left to search \(it has options.units\)"),
        ("scoped", {}, r"takes \(8, 8, 6, 1\): \(row, column, slice, channel\) is \(12, 12, 10, 1"),
        ("OwnFit", {}, "has a fit of its own"),
        ("SHAPE", {}, "not a function, but tuple"),
        ("OwnStep", {}, r"KerasTuner's build\(hp\) or a HyperModel is needed"),
    ],
)
def test_what_no_trial_could_train_is_refused_before_the_study_begins(
    dataset: Path, tmp_path: Path, name: str, space: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        main(argv_of(dataset, tmp_path / "study", name, **space), command=FAKE)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "study").exists()
