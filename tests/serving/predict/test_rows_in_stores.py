"""A job's rows in a store: of a run that is over none is left, whatever its workers do."""

from collections.abc import Callable
from typing import Any

import pytest

from beam_jobs.common.files import interface as files
from beam_jobs.common.files import objects
from beam_jobs.common.owner import LostOutputError
from serving.predict.spool import rows_beside
from tests.beam_jobs.common.conftest import emulator, root, store  # noqa: F401  fixtures
from tests.serving.predict.test_spool import ANSWER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.emulator,
    pytest.mark.filterwarnings("ignore"),  # moto's own
]


def test_a_worker_that_outlives_its_run_leaves_no_rows(
    root: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with rows_beside(f"{root}/a.csv") as rows:
        rows.write("00000", [ANSWER])
        assert rows.read()[0] == [ANSWER]
    with pytest.raises(LostOutputError):
        rows.write("00001", [ANSWER])
    assert files.tree(root) == []

    put: Callable[..., Any] = objects.put
    with rows_beside(f"{root}/a.csv") as rows:

        def late(path: str, data: bytes) -> None:
            rows.owner.leave()  # the run ends while the request is under way
            put(path, data)

        with monkeypatch.context() as patched:
            patched.setattr(objects, "put", late)
            with pytest.raises(LostOutputError):
                rows.write("00000", [ANSWER])
    assert files.tree(root) == []
