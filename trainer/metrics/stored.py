"""Estimates read back from a file: what `estimate.estimate_of` wrote, and nothing else."""

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
from trainer.metrics.wording import REASONS

MOST = 2**31 - 1  # of a fold, a seed, an epoch
NO_CLAIM = ListOf(OneOf(tuple(REASONS)))
_SHARE = Within(float, 0, 1)
_SHARE_OR_NULL = Within(float, 0, 1, null=True)
_KINDS: dict[str, Kind] = {
    **{"auc": _SHARE, "n": Within(int, 1), "positive": Within(int, 0), "level": _SHARE},
    **{"no_claim": NO_CLAIM, "estimator": OneOf((WITHIN_FOLDS, ALL_PAIRS))},
    **dict.fromkeys(("p_value", "auc_told_from_chance"), _SHARE_OR_NULL),
    "decided_by": OneOf((BY_INTERVAL, BY_PERMUTATIONS, None)),
    **dict.fromkeys(("better_than_chance", "worse_than_chance"), bool),
    "permutations": dict | None,
}
_PERMUTATIONS: dict[str, Kind] = {
    **{"count": Within(int, 1), "as_high": Within(int, 0), "p_value": _SHARE}
}
_FOLD: dict[str, Kind] = {"fold": Within(int, 0, MOST), "seed": Within(int, 0, MOST)}
_EPOCHS: dict[str, Kind] = {"epoch": Within(int, 1, MOST), "epochs": Within(int, 1, MOST)}


def require_estimate(data: Mapping[str, Any], *, where: str) -> None:
    """Refuses what `estimate_of` would not have given.

    Args:
      data: JSON.
      where: its place, put before a member's name in messages.

    Raises:
      ContractError: names the member.
    """
    require_kinds(data, _KINDS, where=where)
    require_kinds(data, {"auc_interval": list | None}, where=where)
    if data["auc_interval"] is not None:
        require_kinds(data, {"auc_interval": ListOf(_SHARE)}, where=where)
        fits = len(data["auc_interval"]) == 2
        require_that(fits, data, "auc_interval", "[low, high]", where=where)
    # Where a claim may be made, what it is made of is there.
    silent = bool(data["no_claim"])
    for name in ("auc_interval", "p_value", "auc_told_from_chance", "decided_by"):
        required = "null beside a no_claim" if silent else "a value where no_claim is empty"
        require_that((data[name] is None) == silent, data, name, required, where=where)
    fits = data["positive"] <= data["n"]
    require_that(fits, data, "positive", f"at most n, {data['n']},", where=where)
    if data["permutations"] is not None:
        require_kinds(data["permutations"], _PERMUTATIONS, where=f"{where}permutations.")


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
