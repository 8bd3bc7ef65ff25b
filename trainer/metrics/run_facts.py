"""What a training run's directory tells of it beside its predictions: settings, learning curves."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd

from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import read_json
from trainer.config.run_layout import CONFIG_NAME, RUN_NAME

HISTORY_NAME = "history.csv"


def run_facts(run: files.StrPath) -> dict[str, Any] | None:
    """What run.json, or config.json of a run not finished, says; None without either."""
    for name in (RUN_NAME, CONFIG_NAME):
        path = files.join(run, name)
        if files.stat(path) is not None:
            found = read_json(path)
            config = found.get("config") or {}
            last_epoch = (found.get("metrics") or {}).get("last_epoch") or {}
            return {
                "model": found.get("model") or config.get("model"),
                "modalities": found.get("modalities") or config.get("modalities"),
                "permute_labels": bool(config.get("permute_labels")),
                "precision": found.get("precision"),
                "dataset_fingerprint": found.get("dataset_fingerprint"),
                "last_epoch_auc": last_epoch.get("auc"),
            }
    return None


def read_histories(run: files.StrPath) -> dict[str, dict[str, list[float | None]]]:
    """Learning curves of a run: name ("fold-0") → column → value an epoch.

    Columns that are no numbers are left out; a cell that is none, or not finite, is None.
    """
    root = files.join(run, "")
    histories = {}
    for entry in files.entries(run):
        name, _, file = entry.path.removeprefix(root).rpartition("/")
        if file != HISTORY_NAME or not name.startswith("fold-"):
            continue
        table = pd.read_csv(io.BytesIO(files.read(entry.path)), float_precision="round_trip")
        numbers = table.apply(pd.to_numeric, errors="coerce").astype(np.float64)
        numbers = numbers.where(np.isfinite(numbers)).dropna(axis="columns", how="all")
        histories[name] = {
            str(column): [None if np.isnan(value) else value for value in values.tolist()]
            for column, values in numbers.items()
        }
    return histories
