"""Large libraries are imported without the garbage collector, which leaves them alone then."""

import gc
from collections.abc import Iterator

import pytest

from beam_jobs.common.imports import lasting
from beam_jobs.runners.options import pipeline_options


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.enable()


def test_what_is_made_meanwhile_is_never_looked_at_again() -> None:
    with lasting():
        assert not gc.isenabled()
        kept = [[number] for number in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(kept)
    assert not any(each is kept[0] for each in gc.get_objects())


def test_a_collector_that_was_off_stays_off_and_an_import_that_fails_turns_it_on() -> None:
    with pytest.raises(ImportError), lasting():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    with lasting():
        pass
    assert not gc.isenabled()


def test_beam_is_imported_so() -> None:
    pipeline_options([])
    assert gc.get_freeze_count()
