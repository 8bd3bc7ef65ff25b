"""What a killed run resumes from: a fold's state, and the networks that may become its member.

    .epoch-7.keras  →  state.npz (epoch 7)  →  ...  →  result.json  →  state.npz goes
    all folds done:  .epoch-7.keras  →  network.keras  →  every .epoch-*.keras goes

(.epoch-7.weights.h5 and network.weights.h5 where a user's own code makes the network's layers.)

A network is written before the state of its epoch, so that an epoch that is done has its network,
and an epoch that is not is trained, and its network written, again. Which epoch is kept follows
from the folds' results alone, and no candidate goes before every member has its name: a kill
between any two arrows ends in the same run. Where the directories are mirrors of a store's, each
arrow is a push or within one in that order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import shutil
import tempfile
import tokenize
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import (
    ContractError,
    Kind,
    ListOf,
    Within,
    json_object,
    require_kinds,
    require_known,
    require_that,
)
from beam_jobs.common.files import interface as files
from trainer.config.run_layout import FOLD_STATE_NAME, HISTORY_COLUMNS, NETWORK_NAME
from trainer.config.unpacked import require_unpackable
from trainer.metrics.stored import MOST

_ARRAY = "array-{}"
_KINDS: dict[str, Kind] = {
    **{"epoch": Within(int, 1, MOST), "history": ListOf(dict), "request": str},
    "seconds": Within(float, 0, MOST),
}
# What NumPy raises for a header, which is Python's text.
_NO_HEADER = (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)
_START_OVER = "delete it to begin the fold anew, its other folds stay"

if TYPE_CHECKING:
    import keras


@dataclasses.dataclass(kw_only=True)
class FoldState:
    """How far a fold's training has come.

    Attributes:
      epoch: epochs done.
      history: rows of history.csv.
      seconds: spent so far, over all starts.
    """

    epoch: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


def candidate(directory: Path, epoch: int, *, name: str = NETWORK_NAME) -> Path:
    """Where the network of an epoch lies that may become the member, a file of that name."""
    return directory / f".epoch-{epoch}.{name.partition('.')[2]}"  # Keras wants the suffix


def keep(chosen: Mapping[Path, int], push: Callable[[], None], *, name: str = NETWORK_NAME) -> None:
    """Makes members of the chosen epochs' networks, and removes all candidates.

    Args:
      chosen: a member's directory → its epoch, of all members of a run.
      name: of a member's file.
      push: brings a store up to what lies there; nothing to do on a disk.
    """
    for directory, epoch in chosen.items():
        network = candidate(directory, epoch, name=name)
        if network.is_file():  # else an earlier start came so far
            with _whole(directory / name) as temporary:
                shutil.copyfile(network, temporary)
    push()
    for directory in chosen:
        for network in directory.glob(f".epoch-*.{name.partition('.')[2]}"):
            network.unlink()


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """A hidden name to write, which becomes `file` when the block ends, and goes when it fails.

    The name is always the same: what a kill leaves is written over.
    """
    temporary = file.with_name(f".{file.name}")
    with files.refused(file):
        try:
            yield temporary
            temporary.replace(file)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def save_network(network: keras.Model, file: Path) -> None:
    """Writes a candidate's network; one that cannot be written whole goes.

    Equal networks, equal bytes.

    Args:
      network: any.
      file: a .keras file; or a .weights.h5 file, of its weights alone.

    Raises:
      OSError: the disk refuses.
    """
    with files.refused(file), files.scratch("keras") as scratch:
        kept, tempfile.tempdir = tempfile.tempdir, str(scratch)  # Keras leaves a directory there
        try:
            with _whole(file) as temporary:
                if file.suffix == ".h5":
                    network.save_weights(temporary)
                else:
                    network.save(file)
                    _copy_undated(file, temporary)
        except BaseException:
            with contextlib.suppress(OSError):
                file.unlink()
            raise
        finally:
            tempfile.tempdir = kept


def _copy_undated(saved: Path, file: Path) -> None:
    """Copies a .keras archive without the time of its making and the addresses of its objects."""
    numbers: dict[int, int] = {}

    def numbered(data: dict[str, Any]) -> dict[str, Any]:
        if "shared_object_id" in data:
            data["shared_object_id"] = numbers.setdefault(data["shared_object_id"], len(numbers))
        return data

    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(file, "w") as archive:
        for name in source.namelist():
            with (
                source.open(name) as stream,
                archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member,
            ):
                if name.endswith(".json"):
                    data = json.load(stream, object_hook=numbered)
                    data.pop("date_saved", None)
                    member.write(json.dumps(data).encode())
                else:
                    shutil.copyfileobj(stream, member, 1 << 20)


def save_state(
    directory: Path, state: FoldState, arrays: Sequence[npt.NDArray[Any]], *, request: str
) -> None:
    """Writes a state; `load_state` says what the arguments are."""
    text = json.dumps({**dataclasses.asdict(state), "request": request})
    members = {"progress": np.frombuffer(text.encode(), np.uint8)}
    members |= {_ARRAY.format(place): np.asanyarray(array) for place, array in enumerate(arrays)}
    with (
        _whole(directory / FOLD_STATE_NAME) as temporary,
        temporary.open("wb") as stream,
    ):
        # As np.savez does it, which leaves an archive open that the disk refused.
        with zipfile.ZipFile(stream, "w") as archive:
            for name, array in members.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.save(member, array, allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())  # a machine that goes down is a kill too


def load_state(
    directory: Path, *, request: str, columns: Sequence[str] = HISTORY_COLUMNS
) -> tuple[FoldState, list[npt.NDArray[Any]]] | None:
    """Reads what `save_state` wrote; None where there is nothing yet.

    Args:
      directory: of the state.
      request: of this run.
      columns: of its history.

    Raises:
      ContractError: the file is not readable, or another run's.
    """
    file = directory / FOLD_STATE_NAME
    if not file.is_file():
        return None
    try:
        require_unpackable(file)
        with file.open("rb") as stream:
            found = _arrays(stream, file.stat().st_size)
        data = json_object(found.pop("progress").tobytes())
        require_kinds(data, _KINDS)
        require_known(data, _KINDS)
        fits = len(data["history"]) == data["epoch"]
        require_that(fits, data, "history", f"a row of each of {data['epoch']} epochs")
        for place, row in enumerate(data["history"]):
            require_kinds(row, dict.fromkeys(columns, float), where=f"history[{place}].")
        arrays = [found[_ARRAY.format(place)] for place in range(len(found))]
    except (OSError, EOFError, KeyError, ContractError, zipfile.BadZipFile) as error:
        raise ContractError(f"{file}: not a readable state ({error}); {_START_OVER}") from error
    if data.pop("request") != request:
        raise ContractError(f"{file}: of another run; {_START_OVER}")
    return FoldState(**data), arrays


def _arrays(stream: IO[bytes], size: int) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz as `save_state` writes it, each no larger than what the file holds.

    NumPy would reserve what a header claims, inflate what is packed, and take the last of two
    members of one name.

    Raises:
      ContractError, EOFError, zipfile.BadZipFile: it is none, or holds objects.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    with zipfile.ZipFile(stream) as packed:
        members = packed.infolist()
        names = {member.filename for member in members}
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if len(names) < len(members) or not stored or sum(m.file_size for m in members) > size:
            raise ContractError("members that stand twice, are packed or exceed the file")
        for member in members:
            found[member.filename.removesuffix(".npy")] = _array(packed.read(member))
    return found


def _array(data: bytes) -> npt.NDArray[Any]:
    """An array in NumPy's format.

    Raises:
      ContractError: it is none, has objects, or another size than its header says.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ContractError(f"an array of NumPy's format {version}")
        header = np.lib.format.read_array_header_1_0(stream)
        shape, by_columns, dtype = header
    except _NO_HEADER as error:
        raise ContractError(f"no array: {error}") from error
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ContractError(f"an array of {dtype} {shape} in {len(data)} bytes")
    flat = np.frombuffer(data, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if by_columns else "C")
