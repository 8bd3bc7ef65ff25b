"""Groups of patients by what else is known of them."""

import numpy as np

from trainer.metrics.groups import covariate_groups


def test_a_category_called_unknown_is_no_patient_of_whom_nothing_is_known():
    found = covariate_groups({"smoker": ("yes", "unknown", "", "unknown")})["smoker"]
    counts = {name: int(inside.sum()) for name, inside in found.items()}
    assert counts == {"unknown": 2, "yes": 1, "not known": 1}
    assert np.sum(list(found.values())) == 4


def test_many_numbers_are_thirds_and_what_is_not_known_a_group():
    ages = (*map(str, range(40, 70)), "", "")
    found = covariate_groups({"age": ages})["age"]
    assert [int(inside.sum()) for inside in found.values()] == [10, 10, 10, 2]
    assert list(found)[-1] == "unknown"


def test_covariates_that_are_the_same_in_all_are_left_out():
    assert covariate_groups({"site": ("A", "A"), "sex": ("", "")}) == {}
