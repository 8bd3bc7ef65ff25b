"""What a full disk leaves of a report is still its command's, which may be run again."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from beam_jobs.common.files import interface as files
from trainer import saliency as saliency_command
from trainer.explain.summary import FORMAT
from trainer.forest import baseline
from trainer.reports import saliency


def test_a_baseline_that_could_not_be_written_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: str, *_: object) -> None:
        Path(file).write_text("some")
        raise OSError(errno.ENOSPC, "No space left on device", file)

    monkeypatch.setattr(baseline, "write_table", full)
    request = {"config": {"trees": 3, "permute_labels": False}, "dataset_fingerprint": "f"}
    nothing: Any = None
    with pytest.raises(OSError, match="No space left"):
        baseline.write_baseline(tmp_path, request, nothing, nothing, [], time.perf_counter())
    assert (tmp_path / "oof_predictions.csv").exists()
    assert baseline.claim(tmp_path, request, overwrite=False) is None


def test_maps_that_could_not_all_be_written_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = files.write

    def full(file: str, data: bytes) -> None:
        if file.endswith("b.nii.gz"):
            raise OSError(errno.ENOSPC, "No space left on device", file)
        written(file, data)

    monkeypatch.setattr(files, "write", full)
    monkeypatch.setattr(saliency, "page", lambda *_: "")
    monkeypatch.setattr(saliency, "nifti", lambda *_: b"map")
    found: Any = [
        SimpleNamespace(
            chosen=SimpleNamespace(patient_id=name),
            found=SimpleNamespace(values=None),
            case=SimpleNamespace(affine=None),
        )
        for name in "ab"
    ]
    maps = [f"{name}.nii.gz" for name in "ab"]
    summary = {"format": FORMAT, "patients": [{"map": name} for name in maps]}
    with pytest.raises(OSError, match="No space left"):
        saliency.write_report(tmp_path, summary, found)
    assert (tmp_path / "a.nii.gz").exists()
    assert json.loads((tmp_path / "saliency.json").read_text()) == summary
    saliency_command._require_own(str(tmp_path), maps)
