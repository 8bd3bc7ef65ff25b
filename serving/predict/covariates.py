"""What else is known of patients, as a model takes it: from their records, or from a table.

A record holds the index of a category among its own dataset's; the model knows others, or the same
in another order. Categories are therefore matched by name, and one that the model does not know is
not known of the patient.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, shown
from beam_jobs.common.printable import counted
from beam_jobs.core.cohort.covariates import Covariate, read_covariates
from beam_jobs.core.cohort.ids import IdPolicy, normalised_id
from beam_jobs.core.record import PreparedCase, RecordSchema
from serving.model.contract import Contract


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taken:
    """How a case's covariates become those that a model takes.

    Attributes:
      places: of each that the model takes its index among the record's.
      categories: of each the model's index of every category of the record's, NaN where the model
        does not know it; () of a number.
      table: normalised id -> what the model takes, where it does not stand in the records.
      count: how many the model takes.
    """

    count: int = 0
    places: tuple[int, ...] = ()
    categories: tuple[tuple[float, ...], ...] = ()
    table: Mapping[str, tuple[float, ...]] | None = None

    def of(self, case: PreparedCase) -> PreparedCase:
        """The case with the model's covariates in place of its own."""
        if self.table is not None:
            unknown = (math.nan,) * self.count
            found = self.table.get(normalised_id(case.patient_id), unknown)
            return dataclasses.replace(case, covariates=found)
        if not (self.places or case.covariates):
            return case
        found = tuple(
            indices[int(value)] if indices and not math.isnan(value) else value
            for value, indices in zip(
                (case.covariates[place] for place in self.places), self.categories, strict=True
            )
        )
        return dataclasses.replace(case, covariates=found)

    def unlisted(self, patient_ids: Iterable[str], *, source: str) -> list[str]:
        """A line where a table is of other patients than those that are predicted."""
        if self.table is None or any(normalised_id(name) in self.table for name in patient_ids):
            return []
        return [f"{source} lists none of these patients: is it theirs, and are ids written alike?"]


NOTHING = Taken()


def of_records(contract: Contract, schema: RecordSchema, *, model: str, records: str) -> Taken:
    """What a model takes of records.

    Args:
      contract: the model's.
      schema: of the records.
      model: the model's path, for messages.
      records: what to call the records.

    Raises:
      ContractError: they do not hold what the model asks for at all.
    """
    named = {one.name: place for place, one in enumerate(schema.covariates)}
    places, categories = [], []
    for wanted in contract.known_covariates:
        if wanted.name not in named:
            raise ContractError(
                f"model {model} takes the covariate {shown(wanted.name)[1:-1]} of each patient, "
                f"which {records} does not hold: convert it with --covariates"
            )
        found = schema.covariates[named[wanted.name]]
        if found.is_number != wanted.is_number:
            kinds = ["a number" if one.is_number else "a category" for one in (wanted, found)]
            raise ContractError(
                f"covariate {shown(wanted.name)[1:-1]}: {kinds[0]} in model {model}, {kinds[1]} in "
                f"{records}"
            )
        places.append(named[wanted.name])
        categories.append(_indices(wanted, found))
    return Taken(count=len(places), places=tuple(places), categories=tuple(categories))


def of_table(
    contract: Contract, text: str, *, source: str, id_column: str, id_policy: IdPolicy
) -> tuple[Taken, list[str]]:
    """What a model takes of a CSV of patients.

    Args:
      contract: the model's.
      text: the CSV.
      source: what to call it in messages.
      id_column: its column of ids; `patient_id` where it has none of that name.
      id_policy: how the input's ids are written.

    Returns:
      What is taken, and lines on categories that the model does not know.

    Raises:
      UsageError: not such a CSV, or it lacks a column; the message says which.
    """
    found = read_covariates(
        text,
        name=source,
        id_columns=(id_column, "patient_id"),
        covariates=contract.known_covariates,
    )
    table = {
        normalised_id(id_policy.apply(patient)): values
        for patient, values in found.by_spelling.items()
    }
    unknown = [
        _unknown(name, sorted(cells), sum(cells.values())) for name, cells in found.strange.items()
    ]
    return Taken(count=len(contract.covariates), table=table), unknown


def _unknown(name: str, categories: Sequence[str], patients: int | None = None) -> str:
    listed = ", ".join(shown(one)[1:-1] for one in categories[:5])
    more = ", ..." if len(categories) > 5 else ""
    of = "" if patients is None else f" of {counted(patients, 'patient')}"
    return f"{name} {listed}{more}{of}: the model does not know it, so it is not known of them"


def _indices(wanted: Covariate, found: Covariate) -> tuple[float, ...]:
    return tuple(
        float(wanted.categories.index(name)) if name in wanted.categories else math.nan
        for name in found.categories
    )


def unknown_categories(contract: Contract, schema: RecordSchema) -> list[str]:
    """Lines on categories of records that the model does not know."""
    named = {one.name: one for one in schema.covariates}
    lines = []
    for wanted in contract.known_covariates:
        found = named[wanted.name].categories if wanted.name in named else ()
        if unknown := [name for name in found if name not in wanted.categories]:
            lines.append(_unknown(wanted.name, unknown))
    return lines


def require_table(contract: Contract, *, model: str) -> None:
    """Refuses DICOM, which does not tell what the model takes beside a volume, without a table.

    Raises:
      UsageError: the model takes covariates.
    """
    if contract.covariates:
        names = ", ".join(shown(name)[1:-1] for name in contract.covariates)
        raise UsageError(
            f"model {model} takes {names} of each patient, which DICOM does not tell: "
            "--covariates CSV, with a column of each"
        )
