"""Provenance of settings: whose patients a search has seen."""

import pytest

from beam_jobs.common.cli import UsageError
from trainer.config.provenance import split_provenance


def test_settings_without_a_provenance_were_searched_on_nobody() -> None:
    assert split_provenance({"epochs": 3}) == ({"epochs": 3}, frozenset())


def test_a_provenance_is_taken_out_of_the_settings() -> None:
    settings = {"epochs": 3, "provenance": {"patients": ["00001", "00003"], "trials": 9}}
    assert split_provenance(settings) == ({"epochs": 3}, frozenset({"1", "3"}))
    assert "provenance" in settings


@pytest.mark.parametrize(
    "odd",
    [None, [], "study", {}, {"patients": "00001"}, {"patients": [1]}, {"patients": []}],
)
def test_a_provenance_that_names_no_patients_is_refused(odd: object) -> None:
    with pytest.raises(UsageError, match="provenance: an object with the list of its patients"):
        split_provenance({"provenance": odd})
