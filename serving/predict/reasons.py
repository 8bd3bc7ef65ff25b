"""Why a patient has no prediction, or one made without something.

Beside these stand the codes of what a conversion refuses (`beam_jobs.core.reasons`).
The codes are an interface (they stand in `*.failures.csv` and in flags): a code is never renamed or
given another meaning.
"""

from __future__ import annotations

import enum


class Unpredicted(enum.StrEnum):
    """Reason codes of batch prediction; `SENTENCES` explains each."""

    CORRUPT_RECORD = "corrupt_record"
    INVALID_RECORD = "invalid_record"
    MISSING_RECORD = "missing_record"
    UNREADABLE_SHARD = "unreadable_shard"
    OTHER_SHARD = "shard_differs"
    NOT_IN_INPUT = "not_in_input"
    NOT_FINITE = "not_finite"
    MISSING_COVARIATE = "missing_covariate"


SENTENCES: dict[Unpredicted, str] = {
    Unpredicted.CORRUPT_RECORD: "The record's bytes do not fit their checksum.",
    Unpredicted.INVALID_RECORD: "The record is sound, but not one that the model takes.",
    Unpredicted.MISSING_RECORD: "The manifest names the patient in a shard that lacks the record.",
    Unpredicted.UNREADABLE_SHARD: "The shard is missing or cannot be read.",
    Unpredicted.OTHER_SHARD: "The shard is not the one that the manifest lists.",
    Unpredicted.NOT_IN_INPUT: "The patient was requested and is not in the input.",
    Unpredicted.NOT_FINITE: "The model's answer is not a number.",
    Unpredicted.MISSING_COVARIATE: (
        "A covariate that the model takes is not known of the patient, who is predicted without."
    ),
}
