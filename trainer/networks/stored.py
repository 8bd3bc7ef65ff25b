"""Networks in .keras files, which may be a stranger's."""

from __future__ import annotations

import io
import json
import math
import random
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import keras

from beam_jobs.common.contract_json import ContractError
from trainer.config.unpacked import require_unpackable

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
# Numbers that a network may hold besides what its file stores.
_UNSTORED = 1 << 20


def load_network(file: Path) -> keras.Model:
    """A network as `keras.Model.save` wrote it, without its optimizer.

    Args:
      file: a .keras file, on a disk.

    Raises:
      ContractError: it would take far more memory than it holds.
      Exception: Keras', zipfile's or h5py's own, where it is none.
    """
    require_unpackable(file)
    _require_stored(file)
    return keras.saving.load_model(file, compile=False)


def read_weights(model: keras.Model, file: Path) -> None:
    """Gives a network the weights that `keras.Model.save_weights` wrote of one like it.

    Args:
      model: built anew.
      file: a .weights.h5 file, on a disk; optimizers' states in it do not count.

    Raises:
      ContractError: it holds too few or too many numbers, or would take far more memory.
      Exception: Keras' or h5py's own, where it is none or another network's.
    """
    require_unpackable(file)
    stored = _numbers(file.read_bytes(), without="optimizer")
    needed = sum(math.prod(weight.shape) for weight in model.weights)  # seeds' states are not kept
    if stored != needed:
        raise ContractError(f"it holds {stored} numbers, the network takes {needed}")
    model.load_weights(file)


def _require_stored(file: Path) -> None:
    """Refuses a network whose layers ask for more weights than its file holds.

    Keras makes each layer as large as `config.json` says, and reads its weights afterwards: some
    bytes of text would take all memory there is.
    """
    with zipfile.ZipFile(file) as archive:
        config = json.loads(archive.read(_CONFIG))
        stored = 0
        if _WEIGHTS in archive.namelist():
            stored = _numbers(archive.read(_WEIGHTS))
    # What Keras counts, names and leaves to be made is a thread's own; random's state is not.
    state = random.getstate()
    try:
        with ThreadPoolExecutor(1) as thread:
            claimed = thread.submit(_claimed, config).result()
    finally:
        random.setstate(state)
    if claimed > stored + _UNSTORED:
        raise ContractError(f"its layers ask for {claimed} weights, it holds {stored}")


def _claimed(config: Any) -> int:
    """How many numbers a network's variables hold, none of which is made."""
    with keras.StatelessScope(initialize_variables=False):
        network = keras.saving.deserialize_keras_object(config)
    return sum(math.prod(variable.shape) for variable in network.variables)


def _numbers(data: bytes, *, without: str | None = None) -> int:
    """How many numbers an HDF5 file holds, but for what lies in groups of a name."""
    found = 0

    def add(name: str, held: Any) -> None:
        nonlocal found
        if isinstance(held, h5py.Dataset) and without not in name.split("/"):
            found += held.size

    with h5py.File(io.BytesIO(data), "r") as opened:
        opened.visititems(add)
    return found
