"""One dataset and one model for all tests of serving; no test changes them."""

from pathlib import Path

import pytest

from serving import export
from serving.model.loaded_model import LoadedModel, load_model
from tests.datasets import make_cases, write_cases
from tests.serving.models import schema_of, spec_of, write_run


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two members that look at two of the three channels, in another order."""
    directory = tmp_path_factory.mktemp("serving") / "run"
    write_run(directory, modalities=("T1wCE", "FLAIR"))
    return directory


@pytest.fixture(scope="session")
def model(run_directory: Path) -> Path:
    """That run, exported."""
    output = run_directory.parent / "model"
    export.main(["--runs", str(run_directory), "--output", str(output)])
    return output


@pytest.fixture(scope="session")
def loaded(model: Path) -> LoadedModel:
    """That model, loaded."""
    return load_model(model)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven patients, 00000 to 00010, in five shards; the last three have no label."""
    directory = tmp_path_factory.mktemp("serving") / "dataset"
    spec = spec_of()
    schema = schema_of(spec)
    cases = make_cases(schema, patients=8, folds=2, unlabelled=3)
    write_cases(directory, cases, schema, folds=2, shards=2, spec=spec)
    return directory
