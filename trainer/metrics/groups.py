"""Groups of patients: by how they were scanned (series.csv), and by what else is known of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.common.printable import in_digits
from beam_jobs.core.cohort.ids import normalised_id
from trainer.metrics.predictions import read_rows

_COLUMNS = ("patient", "modality", "verdict", "plane", "field_strength")
_FIELD_STRENGTHS = (0.2, 0.35, 0.5, 1.0, 1.5, 3.0, 7.0)  # tesla, as scanners are sold
_UNKNOWN, _NOT_KNOWN = "unknown", "not known"  # some categories are called the first
_LISTED = 6  # values of a covariate that are all groups; numbers of more are cut into thirds


def read_groups(
    file: files.StrPath, keys: Sequence[str], modalities: Sequence[str] | None = None
) -> dict[str, dict[str, npt.NDArray[np.bool_]]]:
    """Groups of patients by their used series.

    Args:
      file: series.csv.
      keys: of the patients, (n,).
      modalities: those the model saw; None takes all.

    Returns:
      What is grouped by ("field strength", "plane of T1wCE") → group → which patients, (n,).
      Patients of whom nothing is known stand under "unknown".

    Raises:
      UsageError: as `read_rows`.
      ContractError: none of the patients is in it.
    """
    columns, rows = read_rows(file, *((name,) for name in _COLUMNS))
    table = pd.DataFrame(rows, columns=columns)
    used = table[table["verdict"] == "used"]
    used = used.assign(patient=used["patient"].map(normalised_id))
    used = used[used["patient"].isin(keys)]
    if modalities is not None:
        used = used[used["modality"].isin(modalities)]
    if used.empty:
        raise ContractError(f"{file}: no used series of the predicted patients: another dataset's?")
    of_patient = used.set_index("patient")
    values = {"field strength": of_patient["field_strength"].map(_field_strength)}
    for modality, series in of_patient.groupby("modality"):
        values[f"plane of {str(modality) or 'series'}"] = series["plane"]
    groups = {}
    for by in sorted(values):
        found = values[by].groupby(level=0).agg(lambda each: " and ".join(sorted({*each} - {""})))
        named = found.reindex(list(keys), fill_value="").replace("", _UNKNOWN)
        names = sorted(set(named), key=lambda name: (name == _UNKNOWN, name))
        groups[by] = {name: (named == name).to_numpy() for name in names}
    return groups


def _field_strength(text: str) -> str:
    """ "3 T" of "2.8936": the strength scanners are sold by, where one is within 10 %."""
    try:
        tesla = float(text)
    except ValueError:
        return ""
    if not math.isfinite(tesla) or tesla <= 0:
        return ""
    near = min(_FIELD_STRENGTHS, key=lambda sold: abs(sold - tesla))
    return f"{near if abs(near - tesla) <= 0.1 * near else tesla:.3g} T"


def covariate_groups(
    covariates: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, npt.NDArray[np.bool_]]]:
    """Groups of patients by covariates, as predictions files hold them.

    Args:
      covariates: name → text of each patient, (n,); "" unknown.

    Returns:
      Name → group → which patients, (n,): each value by itself; of numbers of many values thirds.
      Covariates that are the same in all patients are left out.
    """
    groups = {}
    for name, texts in covariates.items():
        known = sorted({*texts} - {""})
        unknown = _NOT_KNOWN if _UNKNOWN in known else _UNKNOWN
        try:
            numbers = [float(text) for text in known]
        except ValueError:
            numbers = []
        if len(numbers) > _LISTED:
            values = np.array([float(text or "nan") for text in texts])
            low, high = np.nanquantile(values, [1 / 3, 2 / 3])
            found = {
                f"up to {in_digits(low)}": values <= low,
                f"to {in_digits(high)}": (values > low) & (values <= high),
                f"above {in_digits(high)}": values > high,
                unknown: np.isnan(values),
            }
        else:
            each = np.array(texts)
            order = sorted(known, key=float) if numbers else known
            found = {**{text: each == text for text in order}, unknown: each == ""}
        found = {group: inside for group, inside in found.items() if inside.any()}
        if len(found) > 1:
            groups[name] = found
    return groups


def by_fold(folds: npt.NDArray[Any] | None) -> dict[str, dict[str, npt.NDArray[np.bool_]]]:
    """ "fold" → fold → which patients, (n,), as `read_groups`; nothing without folds."""
    if folds is None:
        return {}
    return {"fold": {str(fold): folds == fold for fold in np.unique(folds)}}


def spread_over_seeds(groups: Sequence[Mapping[str, Any]], key: str) -> dict[str, float] | None:
    """Mean, deviation, least and greatest of what each seed's group scores; None below two.

    Args:
      groups: of seeds, as an evaluation has them.
      key: what the score is called in them.
    """
    scores = [one[key] for one in groups if key in one]
    if len(scores) < 2:
        return None
    return {
        "mean": float(np.mean(scores)),
        "sd": float(np.std(scores, ddof=1)),
        "min": min(scores),
        "max": max(scores),
    }
