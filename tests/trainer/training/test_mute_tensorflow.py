"""Notes of compiled libraries are dropped; whatever else is said arrives."""

from __future__ import annotations

import os

import pytest

from trainer.training.mute_tensorflow import without_notes

NOTES = (
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n",
    b"I0000 00:00:1795456895.429440   26804 service.cc:146] XLA service initialized\n",
    b"W1123 18:01:06.123456   26804 ptxas.cc:3] older than the driver\n",
)
TOLD = (
    b"E0000 00:00:1795456895.429440   26804 cuda.cc:1] out of memory\n",
    b"Initialised 4 devices, I0000 and all\n",
    b"no line end",
)


def test_notes_are_dropped_and_errors_arrive(capfd: pytest.CaptureFixture[str]) -> None:
    with without_notes():
        for line in (NOTES[0], TOLD[0], NOTES[1], TOLD[1], NOTES[2], TOLD[2]):
            os.write(2, line)
    os.write(2, NOTES[1])  # outside it nothing is kept back
    assert capfd.readouterr().err.encode() == b"".join((*TOLD, NOTES[1]))


def test_what_was_said_before_a_failure_arrives_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with without_notes():
            os.write(2, TOLD[0] + NOTES[0])
            raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        fail()
    assert capfd.readouterr().err.encode() == TOLD[0]
