"""Large libraries are imported without the garbage collector, which leaves them alone then."""

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from beam_jobs.common.imports import lasting


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.enable()


def test_what_is_made_meanwhile_is_never_looked_at_again() -> None:
    with lasting("not_there"):
        assert not gc.isenabled()
        kept = [[number] for number in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(kept)
    assert not any(each is kept[0] for each in gc.get_objects())


def test_a_second_time_nothing_is_kept_and_a_failure_turns_the_collector_on() -> None:
    with lasting("pytest"):
        assert gc.isenabled()
    assert not gc.get_freeze_count()
    with pytest.raises(ImportError), lasting("not_there"):
        raise ImportError
    assert gc.isenabled()


@pytest.mark.slow
def test_beam_is_imported_so() -> None:
    code = (
        "import gc; from beam_jobs.runners.options import pipeline_options; pipeline_options([]);"
        "print(gc.get_freeze_count())"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    assert int(subprocess.check_output(command, text=True)) > 100_000
