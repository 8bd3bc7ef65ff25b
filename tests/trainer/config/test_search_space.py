"""What a search may choose from, how a file narrows it, and what becomes of a choice."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from typing import Any

from trainer.config.hyperparameter import Choice, Condition, Range
from trainer.config.run import TrainConfig
from trainer.config.search_space import Space, usable
from trainer.config.space_file import space_of

MODALITIES = ("FLAIR", "T1wCE")
SMALL = {
    "network": ["seed_cnn", "slice_cnn"],
    "width": [1, 0.5],
    "depth": 1,
    "dropout": None,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "batch_size": [8, 4],
    "augment": "none",
}


def test_the_size_of_a_space_counts_each_meaningful_combination_once():
    space = space_of(MODALITIES, SMALL)
    combinations = [json.dumps(one, sort_keys=True) for one in space.combinations()]
    # seed_cnn: 3 poolings; slice_cnn: 4 heads. Early, late, or one of two modalities alone.
    assert space.count() == (3 + 4) * 4 * 2 * 2
    assert len(combinations) == len(set(combinations)) == space.count()


def test_every_combination_makes_a_run_that_the_trainer_accepts():
    space = space_of(MODALITIES, {**SMALL, "depth": [1, 2]})
    runs = set()
    for values in space.combinations():
        assert space.complete(values) == values
        settings = space.settings(values)
        config = TrainConfig.from_json(settings).resolve(MODALITIES)
        runs.add(json.dumps(config.to_json()))
        assert ("head" in values) == (values["network"] == "slice_cnn") != ("pooling" in values)
        assert ("depth" in values) == (values["network"] == "slice_cnn")
        if values["fusion"] == "single":
            assert config.modalities == (values["modality"],)
        else:
            assert config.modalities == MODALITIES
            assert config.network.fusion == values["fusion"]
        assert (config.batch_size, config.network.width) == (values["batch_size"], values["width"])
    assert len(runs) == space.count()  # no two choices mean the same run


def test_each_value_of_the_whole_table_can_be_trained():
    space = space_of(MODALITIES)
    for choice in space.choices:
        for value in choice.ends:
            values = next(v for v in _varied(space) if v.get(choice.name) == value)
            TrainConfig.from_json(space.settings(values))


def _varied(space):
    """Combinations in which every parent's value occurs with each child's."""
    names = {"network", "fusion"}
    for network, fusion in itertools.product(
        *(c.every() for c in space.choices if c.name in names)
    ):
        for place in range(5):
            values = {"network": network, "fusion": fusion}
            for choice in space.choices:
                if choice.name not in names and choice.is_active(values):
                    values[choice.name] = choice.at(place / 5)
            yield values


def test_numbers_that_lost_precision_on_the_way_become_the_listed_ones():
    space = space_of(MODALITIES, {**SMALL, "learning_rate": [1e-4, 1e-3]})
    values = {**next(space.combinations()), "learning_rate": 9.999999747378752e-05}
    assert space.complete(values)["learning_rate"] == 1e-4


def _own(*choices):
    return Space(choices=usable(choices), modalities=MODALITIES)


def _nested():
    """As a KerasTuner function declares: layers, whose sizes hang on their number, and a kind."""
    return _own(
        Choice(name="kind", values=("dense", "sparse")),
        Choice(name="norm", values=(False, True)),
        Choice(name="fixed", values=(7,)),
        Range(name="layers", low=1, high=3, kind=int),
        *(
            Range(
                name=f"units_{n}",
                low=8,
                high=32,
                step=8,
                kind=int,
                conditions=(Condition(parent="layers", when=tuple(range(n, 4))),),
            )
            for n in (1, 2, 3)
        ),
        Choice(
            name="gate",
            values=("soft", "hard"),
            conditions=(Condition(parent="kind", when=("sparse",)),),
        ),
        Choice(
            name="slope",
            values=(1, 2, 3),
            conditions=(
                Condition(parent="kind", when=("sparse",)),
                Condition(parent="gate", when=("soft",)),
                Condition(parent="norm", when=(True,)),
            ),
        ),
        # One name twice, as in two scopes of a KerasTuner function.
        Range(
            name="rank",
            low=1,
            high=4,
            kind=int,
            conditions=(Condition(parent="kind", when=("dense",)),),
        ),
        Choice(name="rank", values=(64,), conditions=(Condition(parent="kind", when=("sparse",)),)),
        Choice(name="never", values=(1, 2), conditions=(Condition(parent="fixed", when=(8,)),)),
    )


def test_nested_conditions_count_as_many_combinations_as_there_are():
    space = _nested()
    found = [json.dumps(one, sort_keys=True) for one in space.combinations()]
    assert len(found) == len(set(found)) == space.count() == space.count(grid=True)
    assert "never" not in space.names
    assert space.count() == (4 + 16 + 64) * (2 * 4 + (3 + 1 + 1 + 1))


def test_a_count_does_not_walk_what_is_independent():
    switches = [Choice(name=f"on_{n}", values=(False, True)) for n in range(60)]
    sizes = [
        Range(
            name=f"size_{n}",
            low=1,
            high=10**6,
            kind=int,
            conditions=(Condition(parent=f"on_{n}", when=(True,)),),
        )
        for n in range(60)
    ]
    space = _own(*switches, *sizes)
    assert space.count() == space.count(grid=True) == (1 + 10**6) ** 60


def test_a_fraction_of_any_size_has_no_count_and_ten_points_in_a_grid():
    space = _own(
        Range(name="rate", low=1e-5, high=1e-1, scale="log"),
        Choice(name="extra", values=(1, 2, 3), conditions=(Condition(parent="rate", when=(0.5,)),)),
    )
    assert math.isinf(space.count())
    assert space.size_text(grid=False) == "unlimited combinations"
    assert space.count(grid=True) == len(list(space.combinations(grid=True))) == 10
    assert space.size_text(grid=True) == "10 combinations"


def test_draws_are_combinations_and_so_are_their_neighbours():
    space = _nested()
    every = {json.dumps(one) for one in space.combinations()}
    rng = random.Random(1)
    seen: Counter[Any] = Counter()
    for _ in range(300):
        drawn = space.drawn(rng)
        near = space.near(drawn, rng, 0.1)
        assert {json.dumps(drawn), json.dumps(near)} <= every
        assert space.complete(space.chosen(drawn)) == drawn
        assert "fixed" not in space.chosen(drawn)
        assert (drawn["rank"] in space.chosen(drawn).values()) or drawn["kind"] == "sparse"
        seen.update([drawn["layers"]])
    assert min(seen[n] for n in (1, 2, 3)) > 60  # a parent's values come alike often


def test_a_space_says_where_a_choice_counts_and_what_it_is():
    space = _nested()
    rows = space.rows()
    assert ("layers", "1 to 3") in rows
    assert ("units_2", "8 to 32, step 8  (where layers is 2 or 3)") in rows
    slope = "1, 2, 3  (where kind is sparse and gate is soft and norm is True)"
    assert ("slope", slope) in rows
    many = Range(name="layers", low=1, high=20, kind=int)
    condition = Condition(parent="layers", when=tuple(range(2, 21)))
    units = Choice(name="units", values=(8, 16), conditions=(condition,))
    assert _own(many, units).where(units) == "layers is 2 to 20"
    told = space.to_json()
    assert told["units_1"] == {"min": 8, "max": 32, "step": 8}
    assert (told["rank"], told["rank where kind is sparse"]) == (
        {"min": 1, "max": 4, "step": 1},
        [64],
    )
