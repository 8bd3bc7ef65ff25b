"""A worker's view of the model: one load a process, however often Beam copies who asks for it."""

import pickle

import pytest

from serving.model.loaded_model import LoadedModel
from serving.predict import transforms


def test_a_process_loads_a_model_once(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def load(*_: object, **given: str) -> LoadedModel:
        loads.append(given["sha256"])
        return loaded

    monkeypatch.setattr(transforms, "load_model", load)
    model = transforms.ModelInWorker("nowhere", loaded.sha256)
    copies = [pickle.loads(pickle.dumps(model)) for _ in range(3)]
    assert all(copy.get() is loaded for copy in copies)
    assert loads == [loaded.sha256]
