"""Patients' ids: their spelling, and what of them may be written."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files


def normalised_id(patient_id: str) -> str:
    """The id without leading zeros where it is a number: `00005` and `5` are one patient."""
    text = patient_id.strip()
    return (text.lstrip("0") or "0") if is_number(text) else text


def is_number(patient_id: str) -> bool:
    """Whether an id is of digits alone: then leading zeros do not count."""
    return patient_id.isascii() and patient_id.isdigit()


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdPolicy:
    """How patient ids stand in what is written.

    Attributes:
      key: None keeps ids as they are; else ids become HMAC-SHA256 under this key, 32 hex digits.
    """

    key: bytes | None = None

    @property
    def name(self) -> str:
        """ "keep" or "hmac"."""
        return "keep" if self.key is None else "hmac"

    def apply(self, patient_id: str) -> str:
        """The id to write; the same for every spelling of a number under `hmac`."""
        if self.key is None:
            return patient_id
        return self.token(normalised_id(patient_id))

    def token(self, text: str) -> str:
        """`text` itself, or a keyed token for it that gives nothing away."""
        if self.key is None:
            return text
        return hmac.new(
            self.key, text.encode(errors="surrogateescape"), hashlib.sha256
        ).hexdigest()[:32]


def read_id_policy(name: str, key_file: files.StrPath | None) -> IdPolicy:
    """Keep ids, or hash them with the key in a file.

    Raises:
      UsageError: `hmac` without a key file, a key file that cannot be read or is too short, or a
        key without `hmac`.
    """
    if name == "keep":
        if key_file is not None:
            raise UsageError("--id_key is given, but --id_policy is keep")
        return IdPolicy()
    if key_file is None:
        raise UsageError("--id_policy hmac needs --id_key FILE")
    try:
        key = files.read(key_file).strip()
    except OSError as error:
        raise UsageError(f"--id_key {key_file}: {error.strerror or error}") from error
    if len(key) < 16:
        raise UsageError(f"--id_key {key_file} holds {len(key)} bytes, at least 16 required")
    return IdPolicy(key=key)
