"""The contract that travels with a model, and what is refused in its name."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.cohort.target import PLAIN
from beam_jobs.core.record import FEATURES
from serving.model.calibration import Calibration
from serving.model.contract import CONTRACT_NAME, Contract, load_contract
from serving.model.loaded_model import LoadedModel, load_model
from tests.serving.models import ROOT, python, schema_of, spec_of


def contract(**changes: Any) -> Contract:
    fields: dict[str, Any] = {
        "schema": schema_of(spec_of()),
        "spec": spec_of(),
        "modalities": ("T1wCE", "FLAIR"),
        "members": ({"run": "run", "fold": 0},),
        "ensemble": "logits",
        "calibration": Calibration(),
        "prior": (0.5,),
        "cohort": {},
        "training": (),
        "versions": {},
    }
    return Contract(**{**fields, **changes})


def test_a_contract_comes_back_from_its_text() -> None:
    assert Contract.from_json(json.loads(contract().dumps())) == contract()


def test_a_contract_of_labels_0_and_1_has_the_members_that_0_7_wrote() -> None:
    """In a text of version 0.7, which is read as it was written, and written so again."""
    schema = contract().schema
    old = {
        "calibration": {
            "knots": [],
            "measured": {},
            "method": "none",
            "temperature": 1.0,
            "why": "",
        },
        "cohort": {"patients": 40, "positive": 20},
        "ensemble": "logits",
        "format": "voxelbeam-model",
        "members": [{"run": "run", "fold": 0}],
        "modalities": ["T1wCE", "FLAIR"],
        "prevalence": 0.5,
        "schema": {
            "axes": ["row", "column", "slice", "channel"],
            "dtype": "uint8",
            "features": list(FEATURES),
            "modalities": ["FLAIR", "T1w", "T1wCE"],
            "shape": [6, 5, 4],
            "spec_fingerprint": schema.spec_fingerprint,
            "version": 1,
        },
        "sha256": {"saved_model.pb": "0" * 64},
        "spec": spec_of(),
        "spec_fingerprint": schema.spec_fingerprint,
        "training": [],
        "versions": {"keras": "3"},
    }
    text = json.dumps(old, indent=1, sort_keys=True) + "\n"
    found = Contract.from_json(json.loads(text))
    assert found.dumps() == text
    assert found.prior == (0.5,)
    assert found.target == PLAIN


def test_the_channels_are_where_the_schema_has_them() -> None:
    assert contract().channels == (2, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": ("T9",)}, "modalities"),
        ({"modalities": ()}, "modalities"),
        ({"members": ()}, "members"),
        ({"prior": (1.5,)}, "prevalence"),
        ({"prior": (float("nan"),)}, "prevalence"),
        ({"ensemble": "votes"}, "ensemble"),
    ],
)
def test_contracts_that_no_model_can_have_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        contract(**changes)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"spec_fingerprint": "other"}, "spec_fingerprint"),
        ({"modalities": ("T1w", "FLAIR", "T1wCE")}, "modalities"),
        ({"shape": (9, 9, 9)}, "shape"),
        ({"dtype": "uint16"}, "dtype"),
    ],
)
def test_records_that_differ_are_refused_by_field(
    changes: dict[str, Any], field: str, loaded: LoadedModel
) -> None:
    other = dataclasses.replace(loaded.contract.schema, **changes)
    with pytest.raises(ContractError, match=field) as refused:
        loaded.require(other, records="dataset d")
    assert f"model {loaded.path}" in str(refused.value)
    assert "dataset d" in str(refused.value)


def test_records_that_fit_are_let_through(loaded: LoadedModel) -> None:
    loaded.require(schema_of(spec_of()))


def test_a_directory_without_a_contract_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=f"{tmp_path} is not a voxelbeam model"):
        load_model(tmp_path)


def test_a_fetched_model_is_named_by_its_own_place(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ContractError, match=r"^s3://b/m is not a voxelbeam model"):
        load_model(tmp_path, name="s3://b/m")
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "saved_model.pb").unlink()
    with pytest.raises(ContractError, match=r"^s3://b/m: saved_model.pb is missing"):
        load_model(tmp_path / "model", name="s3://b/m")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ("[]", "not a JSON object"),
        ('{"format": "other"}', "format 'other' found"),
        ('{"format": "voxelbeam-model"}', "lacks schema"),
        (contract().dumps().replace('"dtype": "uint8"', '"dtype": "int8"'), "dtype"),
        (
            contract().dumps().replace('"prevalence": 0.5', '"prevalence": "x"'),
            "prevalence: 'x' found",
        ),
        (
            contract().dumps().replace('"training": []', '"training": [1]'),
            r"training\[0\]: 1 found",
        ),
        (contract().dumps().replace('"shape": [', '"shape": ["x", '), r"schema.shape: \['x'"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_foreign_contracts_are_refused_with_their_path(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / CONTRACT_NAME
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(ContractError, match=message) as refused:
        load_contract(tmp_path)
    assert str(file) in str(refused.value)


def test_a_contract_of_other_bytes_than_text_is_refused_with_its_path(tmp_path: Path) -> None:
    file = tmp_path / CONTRACT_NAME
    file.parent.mkdir()
    file.write_bytes(bytes(range(128, 256)))
    with pytest.raises(ContractError, match=rf"{file}: not UTF-8 text"):
        load_contract(tmp_path)


def test_a_contract_without_its_model_is_refused(tmp_path: Path, model: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    (copy / "saved_model.pb").unlink()
    with pytest.raises(ContractError, match=r"saved_model\.pb is missing"):
        load_model(copy)


def test_reading_a_contract_needs_no_tensorflow(tmp_path: Path, model: Path) -> None:
    code = (
        "import sys\n"
        "from serving.model.contract import load_contract\n"
        f"load_contract({str(model)!r})\n"
        "print([n for n in ('tensorflow', 'keras', 'apache_beam') if n in sys.modules])"
    )
    assert python(code, cwd=tmp_path, path=str(ROOT)).strip() == "[]"
