"""Estimates read back from a file: what `tasks.estimate.estimate_of_task` gives, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beam_jobs.common.contract_json import (
    Kind,
    ListOf,
    OneOf,
    Within,
    objects_of,
    require_kinds,
    require_that,
)
from trainer.metrics.estimate import ALL_PAIRS, BY_INTERVAL, BY_PERMUTATIONS, WITHIN_FOLDS
from trainer.metrics.tasks.measure import TASK_MEASURES, measure_named
from trainer.metrics.wording import REASONS

MOST = 2**31 - 1  # of a fold, a seed, an epoch
NO_CLAIM = ListOf(OneOf(tuple(REASONS)))
_SHARE = Within(float, 0, 1)
_SHARE_OR_NULL = Within(float, 0, 1, null=True)
_KINDS: dict[str, Kind] = {
    **{"n": Within(int, 1), "level": _SHARE, "p_value": _SHARE_OR_NULL},
    **{"no_claim": NO_CLAIM, "estimator": OneOf((WITHIN_FOLDS, ALL_PAIRS))},
    "decided_by": OneOf((BY_INTERVAL, BY_PERMUTATIONS, None)),
    **dict.fromkeys(("better_than_chance", "worse_than_chance"), bool),
    "permutations": dict | None,
}
# Of a binary target's, and of any other task's.
_BINARY: dict[str, Kind] = {
    **{"auc": _SHARE, "positive": Within(int, 0), "auc_told_from_chance": _SHARE_OR_NULL}
}
_PART: dict[str, Kind] = {
    **{"name": str, "n": Within(int, 0), "positive": Within(int, 0), "better_than_chance": bool},
    **dict.fromkeys(("auc", "p_value", "p_value_holm"), _SHARE_OR_NULL),
    "interval": list | None,
}
_PERMUTATIONS: dict[str, Kind] = {
    **{"count": Within(int, 1), "as_high": Within(int, 0), "p_value": _SHARE}
}
_FOLD: dict[str, Kind] = {"fold": Within(int, 0, MOST), "seed": Within(int, 0, MOST)}
_EPOCHS: dict[str, Kind] = {"epoch": Within(int, 1, MOST), "epochs": Within(int, 1, MOST)}


def require_estimate(data: Mapping[str, Any], *, where: str) -> None:
    """Refuses what `estimate_of_task` would not have given.

    Args:
      data: JSON.
      where: its place, put before a member's name in messages.

    Raises:
      ContractError: names the member.
    """
    is_task = "measure" in data
    require_kinds(data, _KINDS if is_task else {**_BINARY, **_KINDS}, where=where)
    names = {"interval": "auc_interval", "told": "auc_told_from_chance"}
    if is_task:
        names = {"interval": "interval", "told": "told_from_chance"}
        _require_task(data, where)
        share: Kind = Within(float, measure_named(data["measure"]).least, 1)
    else:
        share = _SHARE
        fits = data["positive"] <= data["n"]
        require_that(fits, data, "positive", f"at most n, {data['n']},", where=where)
    _require_limits(data, names["interval"], share, where)
    # Where a claim may be made, what it is made of is there.
    silent = bool(data["no_claim"])
    for name in (names["interval"], "p_value", names["told"], "decided_by"):
        required = "null beside a no_claim" if silent else "a value where no_claim is empty"
        require_that((data[name] is None) == silent, data, name, required, where=where)
    if data["permutations"] is not None:
        require_kinds(data["permutations"], _PERMUTATIONS, where=f"{where}permutations.")


def _require_task(data: Mapping[str, Any], where: str) -> None:
    """Refuses members of a task's estimate that are not the measure's."""
    require_kinds(data, {"measure": OneOf(TASK_MEASURES), "counts": dict}, where=where)
    measure = measure_named(data["measure"])
    share = Within(float, measure.least, 1)
    require_kinds(data, {"task": OneOf((measure.task,)), "score": share}, where=where)
    told = Within(float, measure.least, 1, null=True)
    require_kinds(data, {"chance": float, "told_from_chance": told}, where=where)
    require_that(data["chance"] == measure.chance, data, "chance", str(measure.chance), where=where)
    require_kinds(data["counts"], dict.fromkeys(data["counts"], Within(int, 0)),
                  where=f"{where}counts.")  # fmt: skip
    for place, part in enumerate(objects_of(data, "parts", where=where)):
        within = f"{where}parts[{place}]."
        require_kinds(part, _PART, where=within)
        _require_limits(part, "interval", _SHARE, within)


def _require_limits(data: Mapping[str, Any], name: str, share: Kind, where: str) -> None:
    require_kinds(data, {name: list | None}, where=where)
    if data[name] is not None:
        require_kinds(data, {name: ListOf(share)}, where=where)
        require_that(len(data[name]) == 2, data, name, "[low, high]", where=where)


def require_metrics(data: Mapping[str, Any], *, where: str) -> None:
    """Refuses what `ensemble.metrics_of_members` would not have given.

    Raises:
      ContractError: names the member.
    """
    require_estimate(data, where=where)
    for place, fold in enumerate(objects_of(data, "folds", where=where)):
        within = f"{where}folds[{place}]."
        require_estimate(fold, where=within)
        require_kinds(fold, {**_FOLD, **(_EPOCHS if "epoch" in fold else {})}, where=within)
    for place, seed in enumerate(objects_of(data, "seeds", where=where)):
        require_estimate(seed, where=f"{where}seeds[{place}].")
