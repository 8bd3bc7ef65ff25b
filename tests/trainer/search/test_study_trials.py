"""Trials of a search: how they end, what is tried again, and what their objective is."""

# ruff: noqa: F811  fixtures come by import

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from beam_jobs.common.cli import CommandError
from beam_jobs.common.json_file import read_json
from tests.trainer.search.searches import FAKE, starts  # noqa: F401
from trainer.config.run import TrainConfig
from trainer.search.attempts import classify, run_trial
from trainer.search.objective import measured
from trainer.search.trial import Request


def _request(batch_size: int = 16, **values: object) -> Request:
    return Request(
        trial="3",
        values={"learning_rate": 0.001, **values},
        config=TrainConfig(batch_size=batch_size).to_json(),
        data="data",
        dataset_fingerprint="f",
        folds=(0, 1),
        cache="none",
        memory=None,
        logs="logs",
    )


def _batches(starts: Path) -> list[int]:
    return [int(line.split()[1]) for line in starts.read_text().splitlines()]


@pytest.mark.parametrize("how", ["FAKE_FITS", "FAKE_KILLED"])
def test_a_trial_out_of_memory_is_tried_again_at_half_the_batch(
    tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv(how, "4")
    result = run_trial(tmp_path / "3", _request(16), FAKE)
    assert _batches(starts) == [16, 8, 4]
    assert (result["status"], result["batch_size"]) == ("completed", 4)
    assert result["reason"].startswith("batch 4 instead of 16: out of memory at batch 16")
    assert result == read_json(tmp_path / "3" / "result.json")


def test_a_trial_that_does_not_fit_at_batch_1_is_a_failed_trial(
    tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FITS", "0")
    result = run_trial(tmp_path / "3", _request(4), FAKE)
    assert _batches(starts) == [4, 2, 1]
    assert (result["status"], result["kind"]) == ("failed", "memory")
    assert "out of memory at batch 1 (" in result["reason"]
    assert "OOM when allocating tensor" in result["reason"]


def test_a_trial_taken_up_again_does_not_try_the_batches_that_did_not_fit(
    tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FITS", "4")
    done = run_trial(tmp_path / "3", _request(8), FAKE)
    (tmp_path / "3" / "result.json").unlink()  # as if it had been killed in the second attempt
    assert run_trial(tmp_path / "3", _request(8), FAKE)["reason"] == done["reason"]
    assert _batches(starts) == [8, 4, 4]


def test_a_finished_trial_is_not_run_again(tmp_path: Path, starts: Path) -> None:
    first = run_trial(tmp_path / "3", _request(), FAKE)
    assert run_trial(tmp_path / "3", _request(), FAKE) == first
    assert len(_batches(starts)) == 1


def test_a_diverging_trial_fails_with_its_reason_and_is_not_tried_again(
    tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DIVERGES", "0.001")
    result = run_trial(tmp_path / "3", _request(), FAKE)
    assert (result["status"], result["kind"]) == ("failed", "diverged")
    assert result["reason"] == "fold-0, epoch 1: the loss is nan"
    assert len(_batches(starts)) == 1


def test_a_trial_does_not_see_the_searchs_own_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CONFIG", "{}")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker")
    code = "import os; print(sorted(n for n in os.environ if n[:3] in ('TF_', 'KER')))"
    run_trial(tmp_path / "3", _request(), (sys.executable, "-c", code))
    log = (tmp_path / "3" / "log.txt").read_text()
    assert log.startswith("[")
    assert "TF_CONFIG" not in log
    assert "KERASTUNER" not in log


def test_a_command_that_is_not_there_ends_the_study_and_not_the_trial(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"no-such-program: .*: no process can be started"):
        run_trial(tmp_path / "3", _request(), ("no-such-program",))
    assert not (tmp_path / "3" / "result.json").exists()


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (1, "x\nResourceExhaustedError: {{function_node __wrapped__Conv3D}}\nlast", "memory"),
        (1, "RESOURCE_EXHAUSTED: Out of memory while trying to allocate", "memory"),
        (1, "numpy.core._exceptions._ArrayMemoryError: Unable to allocate 9 GiB", "memory"),
        (-6, "terminate called after throwing an instance of 'std::bad_alloc'", "memory"),
        (-9, "epoch 1", "memory"),
        (137, "", "memory"),
        (1, "Traceback\nValueError: no", "broken"),
        (-11, "", "broken"),
    ],
)
def test_a_processs_end_is_told_apart(code: int, text: str, kind: str) -> None:
    assert classify(code, text).kind == kind


def test_a_trials_process_ends_with_the_one_that_started_it(tmp_path: Path, starts: Path) -> None:
    """Killed, the search leaves no process behind that would train on beside its successor."""
    file = tmp_path / "request.json"
    file.write_text(json.dumps(dataclasses.asdict(_request())))
    code = (
        "import sys; from pathlib import Path; from trainer.search.trial import Request; "
        "from trainer.search.attempts import run_trial; "
        f"run_trial(Path({str(tmp_path / '3')!r}), Request.load(Path({str(file)!r})), "
        f"{FAKE!r})"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "FAKE_SECONDS": "60"}
    )
    while not starts.read_text():
        assert parent.poll() is None
        time.sleep(0.02)
    child = int(starts.read_text().split()[2])
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(200):
        if not _alive(child):
            return
        time.sleep(0.05)
    raise AssertionError("the trial lives on")


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_the_objective_is_the_mean_over_seeds_and_folds_of_their_areas(tmp_path: Path) -> None:
    """A fold weighs as many pairs as it has; the interval is that of a trial that was the only."""
    rng = np.random.default_rng(4)
    rows, areas, pairs = ["patient_id,label,fold,seed,logit,epoch,epoch_choice,no_claim"], [], []
    for fold, seed in itertools.product(range(3), range(2)):
        labels = np.tile([0, 1], 10 + 3 * fold)
        scores = np.round(rng.normal(labels, 1.0), 1)
        areas.append(roc_auc_score(labels, scores))
        pairs.append((10 + 3 * fold) ** 2)
        for place, (label, score) in enumerate(zip(labels, scores, strict=True)):
            rows.append(f"{fold}-{place},{label},{fold},{seed},{score},9,last,searched")
    (tmp_path / "oof_predictions.csv").write_text("\n".join(rows) + "\n")
    found = measured(tmp_path / "oof_predictions.csv")
    assert found["auc"] == pytest.approx(np.average(areas, weights=pairs))
    assert (found["repeats"], found["no_claim"]) == (2, [])
    assert 1 < found["variance_factor"] <= 2
    low, high = found["auc_interval"]
    assert 0 < low < found["auc"] < high < 1
