"""One sha256 for a whole model, and a refusal of a model that is not as it was exported.

A model's sha256 is that of the lines which `sha256sum` prints for its files, in the order of their
names. In a shell:

    cd MODEL && find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum

The contract lists the sha256 of every other file, so that a file that was swapped, added or lost
since the export is refused before TensorFlow opens anything.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, shown
from beam_jobs.common.files import interface as files
from beam_jobs.core.manifest import digest
from serving.model.contract import CONTRACT_NAME, Contract, load_contract

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Checked(NamedTuple):
    """A model whose files are those of its export.

    Attributes:
      contract: the model's.
      sha256: of the whole model.
    """

    contract: Contract
    sha256: str

    @property
    def note(self) -> str:
        """What could not be checked, for a person; "" where all was."""
        if self.contract.sha256:
            return ""
        return (
            "its contract, of a version before 0.5, does not list its files: whether one was "
            "changed since its export cannot be told; export it again"
        )


def check_model(path: files.StrPath, *, name: str = "", sha256: str = "") -> Checked:
    """Reads a model's bytes, then its contract, and refuses what is not as it was exported.

    Args:
      path: of the model.
      name: what to call it in messages; default `path`.
      sha256: of the only model that is let through; "" lets every one.

    Raises:
      UsageError: `sha256` is none.
      ContractError: no model of ours, another one, or one that was changed; of another one
        nothing but its bytes was read.
    """
    name = name or files.text(path)
    if sha256 and not _SHA256.fullmatch(sha256):
        raise UsageError(f"require_sha256: {shown(sha256)} found, 64 digits of 0-9a-f required")
    if files.stat(files.join(path, CONTRACT_NAME)) is None:
        raise ContractError(f"{name} is not a voxelbeam model: no {CONTRACT_NAME}")
    hashes = file_hashes(path)
    found = model_sha256(hashes)
    if sha256 and found != sha256:
        raise ContractError(f"{name}: sha256 {found} found, {sha256} required: another model")
    contract = load_contract(path, name=name)
    if contract.sha256:
        _require_listed(hashes, contract.sha256, name)
    return Checked(contract, found)


def file_hashes(path: files.StrPath) -> dict[str, str]:
    """Name within the model -> sha256 (hex) of every file; hidden files are none of its."""
    root = files.join(path, "")
    return {entry.path.removeprefix(root): digest(entry.path)[1] for entry in files.entries(path)}


def model_sha256(hashes: Mapping[str, str]) -> str:
    """The model's sha256 (hex) of its files' (`file_hashes`)."""
    lines = [f"{hashes[name]}  {name}\n" for name in sorted(hashes)]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _require_listed(found: Mapping[str, str], listed: Mapping[str, str], name: str) -> None:
    """Refuses a model whose files are not those that its contract lists, naming the first."""
    ours = {file: sha256 for file, sha256 in found.items() if file != CONTRACT_NAME}
    for file in sorted({*ours, *listed}):
        if file not in ours:
            raise ContractError(f"{name}: {file} is missing, which its contract lists")
        if file not in listed:
            raise ContractError(f"{name}: {shown(file)} is not of this model: not in its contract")
        if ours[file] != listed[file]:
            raise ContractError(
                f"{name}: {file} was changed since the export: sha256 {ours[file][:12]}... found, "
                f"{listed[file][:12]}... in its contract"
            )
