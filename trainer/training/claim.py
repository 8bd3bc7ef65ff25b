"""A run's places, kept to one process and brought to this machine's disks."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from beam_jobs.common.files import interface as files
from trainer.training.environment import RunAddresses, RunDirectories
from trainer.training.run_files import LOCK_NAME, claim, request_of


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
      ContractError: it holds a run of another request; the message names each differing value.
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
        if overwrite:
            for folder in directories.checkpoints.glob("fold-*"):
                shutil.rmtree(folder)
        yield directories, finished
