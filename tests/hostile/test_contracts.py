"""A damaged file is taken, or refused in one line that names it: nothing else, and soon."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.contract_json import ContractError
from tests.hostile.contracts import FILES, File
from tests.hostile.damage import Damaged

_MOST_SECONDS = 5.0
_MOST_TEXT = 1000  # characters of a message, paths apart


def faults(file: File, copies: Iterator[Damaged]) -> Iterator[str]:
    """What must not be, for each damaged copy."""
    sound = file.path.read_bytes()
    for what, content in copies:
        file.path.write_bytes(content)
        begun = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # NumPy's, of an overflow or a division
                file.read()
        except (CommandError, ContractError, OSError, UsageError) as error:
            text = str(error)
            if len(text) > _MOST_TEXT:
                yield f"{what}: a message of {len(text)} characters"
            if not any(str(place) in text for place in (*file.path.parents[:2], file.path.name)):
                yield f"{what}: does not name the file: {text[:200]}"
        except Exception as error:
            yield f"{what}: {type(error).__name__}: {str(error)[:200]}"
        if (took := time.monotonic() - begun) > _MOST_SECONDS:
            yield f"{what}: {took:.1f} s"
        file.path.parent.mkdir(exist_ok=True)
    file.path.write_bytes(sound)


@pytest.mark.parametrize("name", FILES)
def test_some_damaged_copies_are_taken_or_refused_in_a_line(name: str, tmp_path: Path) -> None:
    file = FILES[name](tmp_path)
    file.read()
    sound = file.path.read_bytes()
    assert list(faults(file, file.damage(sound, 29 + len(sound) // 30))) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_damaged_copy_is_taken_or_refused_in_a_line(name: str, tmp_path: Path) -> None:
    file = FILES[name](tmp_path)
    assert list(faults(file, file.damage(file.path.read_bytes(), 1))) == []
