"""What tests of the page share: making it, and reading it and the tables beside it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from beam_jobs.common import cli
from beam_jobs.report.__main__ import main

MODALITIES = ("FLAIR", "T1w", "T1wCE", "T2w")


def facts_in(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'id="facts">(.*?)</script>', page, re.DOTALL)
    found: dict[str, Any] = json.loads(text)
    return found


def make(directory: Path, *more: str) -> str:
    assert main([str(directory), "--quiet", *more]) == cli.EXIT_OK
    output = more[more.index("--output") + 1] if "--output" in more else directory / "report.html"
    return Path(output).read_text()


def table(dataset: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(dataset / name, dtype={"patient": str})


def without_blank_slices(dataset: Path, copy: Path) -> Path:
    """The dataset as versions wrote it that did not count blank slices."""
    shutil.copytree(dataset, copy)
    table(copy, "series.csv").drop(columns="blank_slices").to_csv(copy / "series.csv", index=False)
    return copy
