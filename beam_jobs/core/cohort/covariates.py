"""What else is known of a patient: numbers (age) and categories (site), stored beside the volume.

A record holds one float32 a covariate: the number, or the index of the category; NaN where it is
not known. What is made of them (standardised numbers, a column a category, a mark where one is not
known) is a layer of the network, whose statistics are of the training folds alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from beam_jobs.common.contract_json import (
    ContractError,
    Kind,
    ListOf,
    OneOf,
    is_unicode,
    require_kinds,
    require_known,
    shown,
)

KINDS = ("number", "category")
CATEGORIES_MOST = 50
COVARIATES_MOST = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Covariate:
    """One column of what is known of patients.

    Attributes:
      name: of the column.
      categories: what stands there, in the order of their indices; () of a number.

    Raises:
      ContractError: values that none can have.
    """

    name: str
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", tuple(self.categories))
        texts = (self.name, *self.categories)
        fits = all(isinstance(text, str) and text and is_unicode(text) for text in texts)
        if not fits or len(set(self.categories)) != len(self.categories):
            raise ContractError(f"covariate {shown(self.name)}: different texts required")
        if len(self.categories) > CATEGORIES_MOST:
            raise ContractError(
                f"covariate {shown(self.name)}: {len(self.categories)} categories, at most "
                f"{CATEGORIES_MOST} can be learnt from"
            )

    @property
    def is_number(self) -> bool:
        """Whether it is a number, and no category."""
        return not self.categories

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        kind = "number" if self.is_number else "category"
        return {"name": self.name, "kind": kind, "categories": list(self.categories)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, where: str = "covariates.") -> Covariate:
        """Reads `to_json`'s object.

        Raises:
          ContractError: a field is missing, unknown or no value that it can have.
        """
        require_kinds(data, _KINDS, where=where)
        require_known(data, _KINDS, where=where)
        if (data["kind"] == "number") == bool(data["categories"]):
            raise ContractError(f"{where}categories: some of a category, none of a number required")
        try:
            return cls(name=data["name"], categories=tuple(data["categories"]))
        except ContractError as error:
            raise ContractError(f"{where}{error}") from error


_KINDS: dict[str, Kind] = {"name": str, "kind": OneOf(KINDS), "categories": ListOf(str)}
