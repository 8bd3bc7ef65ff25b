"""Who trains where: places kept to one request and one process, on this machine's disks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, differing, shown
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import read_json, write_json
from trainer.config.code_identity import CODE, by_function
from trainer.config.run_layout import (
    CONFIG_NAME,
    RUN_NAME,
    in_run_folder,
    is_run_file,
)
from trainer.config.stack import TENSORFLOW, noted_stack, require_same_stack
from trainer.training.environment import RunAddresses, RunDirectories

CONFIG_FORMAT = "voxelbeam-run-config"
LOCK_NAME = ".lock"
_NAMED = 10  # differing values in a message


@contextlib.contextmanager
def claimed(
    addresses: RunAddresses, request: Mapping[str, Any], *, overwrite: bool
) -> Iterator[tuple[RunDirectories, bool]]:
    """Keeps a run's places to this process for the time of the block; config.json is written.

    Places in stores are mirrored, with what lies there already; what was written since the last
    push is pushed when the block ends.

    Args:
      addresses: of the run.
      request, overwrite: as `claim` takes them.

    Yields:
      The directories to write to, and whether the run lies there finished.

    Raises:
      UsageError: the place holds something that is not a run.
      ContractError: it holds a run of another request, the message names each differing value; or
        one that another TensorFlow has begun.
      LockedError: another process trains this run.
    """
    request_of(addresses.run)  # before a lock is put beside what is not ours
    message = f"{addresses.run}: another process trains this run"
    with contextlib.ExitStack() as stack:
        lock = files.lock(files.join(addresses.run, LOCK_NAME), message, wait=True)
        held = stack.enter_context(lock)
        mirrors: dict[str, files.Mirror] = {}

        def local(address: str) -> Path:
            for whole, mirror in mirrors.items():
                if address == whole or address.startswith(whole.rstrip("/") + "/"):
                    return mirror.local / address.removeprefix(whole).strip("/")
            mirrors[address] = stack.enter_context(files.mirrored(address, resume=True))
            return mirrors[address].local

        def push() -> None:
            held.require()
            for mirror in mirrors.values():
                mirror.push()

        directories = RunDirectories(
            run=local(addresses.run),
            checkpoints=local(addresses.checkpoints),
            logs=local(addresses.logs),
            push=push,
        )
        finished = claim(
            directories.run, request, overwrite=overwrite, address=addresses.run, push=push
        )
        require_no_links(directories.checkpoints, in_run_folder, address=addresses.checkpoints)
        if overwrite:
            _remove(directories.checkpoints, of=in_run_folder)
        yield directories, finished
        push()


def claim(
    directory: Path,
    request: Mapping[str, Any],
    *,
    overwrite: bool,
    address: files.StrPath = "",
    push: Callable[[], None] = lambda: None,
) -> bool:
    """Takes a directory for a run and writes config.json, or finds the same run finished there.

    Args:
      directory: made when it does not exist; an unfinished run of the same request is resumed, one
        of another, or of another TensorFlow, that has not trained yet makes room.
      request: what the run is to be (configuration, dataset fingerprint), as JSON.
      overwrite: replace whatever run lies there.
      address: what the directory is a mirror of, for messages.
      push: brings that up to date.

    Returns:
      True when the directory holds this very run, finished; nothing is touched then.

    Raises:
      UsageError: the directory holds something that is not a run.
      ContractError: as `require_this_run`.
    """
    there = request_of(directory)
    require_no_links(directory, in_run_folder, address=address or directory)
    if there is not None and overwrite:
        (directory / RUN_NAME).unlink(missing_ok=True)  # first: what is half gone is not finished
        push()
        _remove(directory)
    elif there is not None and require_this_run(directory, request, address=address):
        return (directory / RUN_NAME).is_file()
    write_json(directory / CONFIG_NAME, {**request, **noted_stack(), "format": CONFIG_FORMAT})
    push()
    return False


def require_this_run(
    directory: files.StrPath, request: Mapping[str, Any], *, address: files.StrPath = ""
) -> bool:
    """Whether this very run lies there, begun or finished; not where nothing was trained yet.

    Args:
      directory, request, address: as `claim` takes them; the directory may lie in a store.

    Raises:
      UsageError: the directory holds something that is not a run.
      ContractError: it holds a run of another request, the message names each differing value; or
        an unfinished one that another TensorFlow has begun.
    """
    there, where = request_of(directory), files.text(address or directory)
    if there is None or _is_untrained(directory):
        return False
    begun = {TENSORFLOW: there.pop(TENSORFLOW)} if TENSORFLOW in there else {}
    if differing := differences(there, request):
        raise ContractError(f"{where} holds another run ({differing}); --overwrite replaces it")
    if not files.exists(files.join(directory, RUN_NAME)):
        require_same_stack(begun, where, otherwise="begin it anew: --overwrite")
    return True


def _is_untrained(directory: files.StrPath) -> bool:
    """Whether a run was begun there and failed before its first epoch: nothing of it is lost."""
    return not any(
        is_run_file(name) and name not in (CONFIG_NAME, LOCK_NAME) for name in files.tree(directory)
    )


def _remove(directory: Path, *, of: Callable[[str], bool] = lambda name: True) -> None:
    """Deletes a run's own files, and its folders where nothing else lies in them."""
    for name in files.tree(directory):
        if is_run_file(name) and name not in (CONFIG_NAME, LOCK_NAME) and of(name):
            (directory / name).unlink(missing_ok=True)
    for folder in sorted(directory.rglob("*/"), reverse=True):
        if in_run_folder(f"{folder.relative_to(directory).as_posix()}/"):
            with contextlib.suppress(OSError):  # something else lies there
                folder.rmdir()


def require_no_links(
    directory: files.StrPath, inside: Callable[[str], bool], *, address: files.StrPath
) -> None:
    """Refuses a directory whose own folders lead elsewhere, or a file in them does.

    What lies there is somebody else's, and not all is written under another name and renamed.

    Args:
      directory: to write to, on a disk; a store has no links.
      inside: whether a path below it lies in a folder of its own.
      address: of the directory, for the message.

    Raises:
      UsageError: there is a link, or a folder that cannot be listed.
    """
    for name in () if files.is_remote(directory) else files.tree(directory):
        if inside(name) and (name.endswith("/") or os.path.islink(files.join(directory, name))):
            raise UsageError(
                f"{files.text(address)}: {name} is a link, or cannot be listed; it must "
                "be of the directory's own"
            )


def request_of(directory: files.StrPath) -> dict[str, Any] | None:
    """The request of the run that lies in a directory; None where nothing does.

    Raises:
      UsageError: the directory holds something that is not a run.
    """
    found = marker_of(directory, CONFIG_NAME, kind="run")
    if found is not None and found.pop("format", None) != CONFIG_FORMAT:
        raise _foreign(directory, "run")
    return found


def marker_of(
    directory: files.StrPath, name: str, *, kind: str, spared: str = ""
) -> dict[str, Any] | None:
    """The JSON file that says what lies in a directory; None where nothing does.

    Args:
      directory: local or in a store.
      name: of the file.
      kind: what it marks, for the message: "run".
      spared: a folder that may lie there without it; hidden files and halves of files may too.

    Raises:
      UsageError: the directory holds something else, or cannot be written to.
      ContractError: not a JSON object.
    """
    files.require_writable(directory)
    try:
        return read_json(files.join(directory, name))
    except (FileNotFoundError, NotADirectoryError) as error:
        if any(
            not other.startswith(".") and files.temporary_of(other) is None and other != spared
            for other in _names(directory)
        ):
            raise _foreign(directory, kind) from error
        return None


def _foreign(directory: files.StrPath, kind: str) -> UsageError:
    where = files.text(directory)
    return UsageError(f"{where}: not empty and not a {kind}; choose another --output_dir")


def _names(directory: files.StrPath) -> set[str]:
    """Names of the files and folders in a directory; its own where it is a file."""
    if not files.is_dir(directory):
        return {files.name_of(directory)} if files.exists(directory) else set()
    if not files.is_remote(directory):
        return {path.name for path in Path(directory).iterdir()}
    prefix = files.join(directory, "")
    return {entry.path.removeprefix(prefix).partition("/")[0] for entry in files.entries(directory)}


def differences(there: Mapping[str, Any], requested: Mapping[str, Any]) -> str:
    """What two requests differ in, both values of each, for a message; empty where in nothing."""
    with contextlib.suppress(ContractError):  # a stranger's: shown as it is
        there, requested = (
            {**one, CODE: by_function(one[CODE])} if CODE in one else one
            for one in (there, requested)
        )
    found = differing(there, requested)
    if any(not name.startswith(f"{CODE}.") for name, _, _ in found):
        # Of a function that only one of them has, the settings speak.
        found = [one for one in found if not one[0].startswith(f"{CODE}.") or None not in one[1:]]
    texts = [f"{name}: {shown(old)} there, {shown(new)} requested" for name, old, new in found]
    more = [f"{len(texts) - _NAMED} more"] if len(texts) > _NAMED else []
    return "; ".join(texts[:_NAMED] + more)
