"""Patients' ids: their spelling, and what of them may be written."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import hmac
import re
import unicodedata
from collections.abc import Collection
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files


def normalised_id(patient_id: str) -> str:
    """The id without leading zeros where it is a number: `00005` and `5` are one patient."""
    text = patient_id.strip()
    return (text.lstrip("0") or "0") if is_number(text) else text


def require_apart(ids: Collection[str]) -> None:
    """Refuses ids of patients of which two became one, by a file that spells them otherwise.

    Raises:
      UsageError: there are such.
    """
    if len(set(ids)) < len(ids):
        raise UsageError(
            "one id of the labels is of several patients found, such as 1 of sub-1 and sub-01: "
            "spell ids there as the input does"
        )


def is_number(patient_id: str) -> bool:
    """Whether an id is of digits alone: then leading zeros do not count."""
    return patient_id.isascii() and patient_id.isdigit()


# What makes a patient, where a user says so by the flag of every command that reads DICOM.
PATIENT_FROM = ("directory", "study", "patient_id", "file_name")
PATIENT_FROM_FLAG: dict[str, Any] = {
    "choices": PATIENT_FROM,
    "help": "what makes a patient: the first directory below the input, the study, PatientID, or "
    "what names of NIfTI files begin with (default: <patient>/<modality>/ directories where there "
    "are any, else PatientID; of NIfTI the directory)",
}

# What tools and people write into PatientID where they took the id away; without accents.
PLACEHOLDERS = frozenset(
    {
        *("anon", "anonym", "anonyme", "anonymous", "anonymised", "anonymized", "anonymisiert"),
        *("anonymise", "anonymize", "anonimo", "anonimizado", "anonimizzato", "anonimato"),
        *("anoniem", "geanonimiseerd", "anonymiseret", "anonymiserad", "anonimowy", "匿名"),
        *("deidentified", "deid", "unidentified", "pseudonymised", "pseudonymized"),
        *("unknown", "unk", "unbekannt", "inconnu", "inconnue", "desconocido", "desconhecido"),
        *("sconosciuto", "onbekend", "notknown", "unnamed", "undefined", "unspecified", "nobody"),
        *("none", "null", "nil", "nan", "na", "notavailable", "notapplicable", "empty", "blank"),
        *("noid", "noname", "nopatientid", "novalue", "novalueavailable", "id", "patientid"),
        *("patientname", "patient", "subject", "default", "dummy", "test"),
        *("removed", "deleted", "redacted", "masked", "hidden", "withheld", "confidential"),
        *("entfernt", "geloscht", "geloescht", "supprime", "eliminado", "verwijderd"),
    }
)
# They say nothing beside a placeholder, and are no placeholders by themselves.
_BESIDE = frozenset({"de", "identified", "female", "male", "by", "ctp", "phi"})
_WORD = re.compile(r"[^\W_]+")
_YEARS = re.compile(r"[0-9]{1,4}y")


@functools.lru_cache(maxsize=4096)  # it is looked at for every file
def is_placeholder(patient_id: str) -> bool:
    """Whether what stands in PatientID is nobody's id, so that it must not bring people together.

    It is without letters and digits, of zeros or X alone, or made of `PLACEHOLDERS`, also with
    zeros behind them, a sex or an age; case, width, accents, spaces and punctuation do not count. A
    number other than zero, and a placeholder with one behind it (`ANON007`), are ids.

    >>> [is_placeholder(text) for text in ("", "***", "000", "N/A", "Patient^Anonymous")]
    [True, True, True, True, True]
    >>> [is_placeholder(text) for text in ("5", "00050", "ANON007", "Patient 1", "X1")]
    [False, False, False, False, False]
    """
    plain = unicodedata.normalize("NFKD", patient_id.casefold())
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    words = _WORD.findall(plain.casefold())
    text = "".join(words)
    if not text.strip("0") or not text.strip("x") or text.rstrip("0") in PLACEHOLDERS:
        return True
    said = {word.rstrip("0") for word in words if not _YEARS.fullmatch(word)} - {""}
    return not said.isdisjoint(PLACEHOLDERS) and said <= PLACEHOLDERS | _BESIDE


def may_be_number_zero(patient_id: str) -> bool:
    """Whether a placeholder is also how a cohort spells the first of its patients.

    They may be numbered from `00000`, or from `ANON000`.
    """
    return len(patient_id) > 1 and patient_id.endswith("0") and is_placeholder(patient_id)


def study_id(study_uid: str) -> str:
    """The id of a patient who is known by a study alone, the same in every input and run.

    A hash of StudyInstanceUID, because the UID itself leads back to the person in any archive that
    has the study. Whoever has the UID can make the hash, too: `hmac` keys it.
    """
    return f"study-{hashlib.sha256(study_uid.encode(errors='surrogateescape')).hexdigest()[:16]}"


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
