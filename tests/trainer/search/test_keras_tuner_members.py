"""KerasTuner's private members: one folder touches them, and they are what it takes them for."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
from pathlib import Path
from typing import Any

import keras_tuner as kt
import pytest
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.oracle import Oracle
from keras_tuner.oracles import BayesianOptimizationOracle, HyperbandOracle
from keras_tuner.src.distribute import oracle_chief, oracle_client
from keras_tuner.src.engine import conditions
from packaging.specifiers import SpecifierSet

import trainer.search.oracles.loop  # noqa: F401  it makes conditions mute

ROOT = Path(__file__).resolve().parents[3]
ORACLES = ROOT / "trainer/search/oracles"
BUILT = ROOT / "trainer/networks/hypermodel.py"  # a user's build(hp) takes KerasTuner's own
OPTIONS: dict[str, Any] = {"objective": kt.Objective("val_auc", "max"), "seed": 1}

# What the oracles call or overrides, with the names of its arguments.
METHODS: list[tuple[type, str, tuple[str, ...]]] = [
    (Oracle, "_random_values", ()),
    (Oracle, "_save_trial", ("trial",)),
    (Oracle, "_duplicate", ("values",)),
    (Oracle, "_compute_values_hash", ("values",)),
    (BayesianOptimizationOracle, "_random_populate_space", ()),
    (BayesianOptimizationOracle, "_vectorize_trials", ()),
    (HyperbandOracle, "_get_num_brackets", ()),
    (HyperbandOracle, "_get_num_rounds", ("bracket_num",)),
    (HyperbandOracle, "_get_size", ("bracket_num", "round_num")),
    (HyperbandOracle, "_get_epochs", ("bracket_num", "round_num")),
    (HyperbandOracle, "_remove_completed_brackets", ()),
    (HyperbandOracle, "_start_new_bracket", ()),
    (HyperbandOracle, "_random_trial", ("trial_id", "bracket")),
    (BaseTuner, "_try_run_and_update_trial", ("trial", "fit_args", "fit_kwargs")),
    (oracle_client.OracleClient, "__init__", ("oracle",)),
    (oracle_chief.OracleServicer, "__init__", ("oracle",)),
]
# What it reads or sets of an oracle, by type.
ATTRIBUTES: dict[str, type] = {
    "_retry_queue": list,
    "_seed_state": int,
    "_current_bracket": int,
    "_current_iteration": int,
    "_brackets": list,
}


@pytest.mark.parametrize(("owner", "name", "arguments"), METHODS)
def test_a_private_method_takes_the_arguments_it_is_given(
    owner: type, name: str, arguments: tuple[str, ...]
) -> None:
    found = list(inspect.signature(getattr(owner, name)).parameters)
    assert found == ["self", *arguments]


def test_private_attributes_are_of_the_types_that_are_saved_and_restored() -> None:
    oracle = HyperbandOracle(max_epochs=9, **OPTIONS)
    assert {name: type(getattr(oracle, name)) for name in ATTRIBUTES} == ATTRIBUTES
    # The calls' limit is read anew with each call.
    assert isinstance(oracle_client.TIMEOUT, int)


def test_every_private_member_in_use_is_among_those_that_are_checked() -> None:
    """Names of one underscore in the folder that KerasTuner's classes or oracles have."""
    nodes = [n for file in ORACLES.glob("*.py") for n in ast.walk(ast.parse(file.read_text()))]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    oracles = (
        HyperbandOracle(max_epochs=9, **OPTIONS),
        BayesianOptimizationOracle(max_trials=9, **OPTIONS),
    )
    theirs = {name for one in (*oracles, BaseTuner) for name in dir(one)}
    private = {name for name in used & theirs if re.match("_[^_]", name)}
    assert private == {m for _, m, _ in METHODS if m != "__init__"} | {*ATTRIBUTES}


def test_no_other_module_reaches_into_keras_tuner() -> None:
    for file in (ROOT / "trainer").rglob("*.py"):
        text = file.read_text()
        if file.parent != ORACLES:
            assert "keras_tuner.src" not in text, file
        if "import keras_tuner" in text or "from keras_tuner" in text:
            assert ORACLES.parent in file.parents or file == BUILT, file
    outside = (ORACLES.parent / "tuner.py").read_text()
    assert not re.search(r"oracle\._\w", outside)


def test_the_version_is_one_that_the_project_requires() -> None:
    allowed = re.search(r'"keras-tuner([^"]+)"', (ROOT / "setup.py").read_text())
    assert allowed is not None
    assert importlib.metadata.version("keras-tuner") in SpecifierSet(allowed[1])


def test_a_condition_travels_without_being_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert conditions.Parent("network", ["b"]).to_proto().parent.name == "network"
    assert capsys.readouterr() == ("", "")
