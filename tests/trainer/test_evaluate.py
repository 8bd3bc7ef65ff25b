"""AUC and its interval, and the command that joins predictions with labels."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from trainer.evaluate import main
from trainer.metrics.auc import auc, auc_interval
from trainer.metrics.logits import log_loss, sigmoid
from trainer.metrics.predictions import read_column
from trainer.metrics.wording import summary_line, verdict


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_auc_is_scikit_learns_with_few_and_many_ties(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(20):
        labels = np.r_[0, 1, rng.integers(0, 2, 60)]
        scores = rng.integers(0, levels, labels.size) + 0.5 * labels
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "scores", "said"),
    [
        ([1, 1], [0.1, 0.2], "both classes"),
        ([0, 2], [0.1, 0.2], "0 or 1"),
        ([0, 1], [0.1, math.nan], "finite"),
        ([0, 1], [0.1], "as many"),
        ([], [], "as many"),
    ],
)
def test_what_has_no_auc_is_refused(labels: list[int], scores: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        auc(labels, scores)


def test_limits_are_z_standard_errors_at_the_limit_away() -> None:
    """The variance here is Hanley and McNeil's own form, Q1 and Q2, not the code's."""
    rng = np.random.default_rng(0)
    labels = np.r_[np.zeros(25, int), np.ones(40, int)]
    scores = rng.normal(size=65) + labels
    m, n = 25, 40
    star = (m + n) / 2 - 1
    for limit in auc_interval(labels, scores, 0.9):
        q1, q2 = limit / (2 - limit), 2 * limit**2 / (1 + limit)
        variance = (limit * (1 - limit) + star * (q1 + q2 - 2 * limit**2)) / (m * n)
        distance = abs(auc(labels, scores) - limit)
        assert distance == pytest.approx(ndtri(0.95) * math.sqrt(variance), rel=1e-6)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 15)
    truth = 0.8144533  # of two unit normals 1.2656 apart
    shift = math.sqrt(2) * float(ndtri(truth))
    hits = 0
    for _ in range(300):
        low, high = auc_interval(labels, rng.normal(size=30) + shift * labels)
        hits += low <= truth <= high
    assert 0.92 <= hits / 300 <= 0.99


@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_auc_still_has_an_interval(sign: int) -> None:
    labels = np.repeat([0, 1], 10)
    low, high = auc_interval(labels, sign * labels)
    assert (high if sign == 1 else low) == (1.0 if sign == 1 else 0.0)
    assert 0.1 < high - low < 0.4


def test_more_patients_narrow_the_interval() -> None:
    widths = []
    for n in (10, 100, 1000):
        low, high = auc_interval(np.tile([0, 1, 0, 1], n), np.tile([1, 2, 3, 4], n))
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_log_loss_is_scikit_learns_and_finite_for_great_logits() -> None:
    rng = np.random.default_rng(2)
    labels, logits = rng.integers(0, 2, 50), rng.normal(size=50)
    assert log_loss(labels, logits) == pytest.approx(sklearn_log_loss(labels, sigmoid(logits)))
    assert log_loss([0, 1], [800.0, 800.0]) == pytest.approx(400.0)


def test_summary_and_verdict_say_it_in_words() -> None:
    metrics: dict[str, Any] = {
        "auc": 0.934, "auc_interval": [0.85, 0.98], "level": 0.95, "n": 60, "positive": 30,
        "better_than_chance": True, "worse_than_chance": False, "no_claim": [],
    }  # fmt: skip
    expected = "AUC 0.93 (95 % interval 0.85 to 0.98, n = 60: 30 positive)"
    assert summary_line(metrics) == expected
    assert "above 0.5" in verdict(metrics)
    neither = {**metrics, "better_than_chance": False}
    assert "contains 0.5" in verdict(neither)
    assert "below 0.5" in verdict({**neither, "worse_than_chance": True})


def _write(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_command_joins_ids_across_leading_zeros_and_lists_who_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = _write(
        tmp_path / "p.csv",
        "BraTS21ID,MGMT_value",
        *("00000,0.1", "00002,0.8", "00010,0.3", "00011,0.9", "00077,0.5"),
    )
    labels = _write(
        tmp_path / "l.csv", "BraTS21ID,MGMT_value", "0,0", "2,1", "10,0", "11,1", "99,1", "77,"
    )
    assert main(["--predictions", str(predictions), "--labels", str(labels), "--output",
                 str(tmp_path / "out")]) == 0  # fmt: skip
    said = capsys.readouterr()
    assert "AUC 1.00" in said.out
    assert "n = 4: 2 positive" in said.out
    assert "77" in said.err
    assert "99" in said.err
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["without_label"] == ["77"]
    assert written["without_prediction"] == ["99"]
    assert written["auc"] == 1.0
    labels_read = np.array([0, 1, 0, 1])
    assert written["log_loss"] == pytest.approx(sklearn_log_loss(labels_read, [0.1, 0.8, 0.3, 0.9]))


def test_command_reads_out_of_fold_predictions_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = _write(
        tmp_path / "oof.csv",
        "patient_id,label,fold,seed,logit,probability",
        *("00001,0,0,0,-1,0.27", "00002,1,0,0,1,0.73"),
    )
    labels = _write(tmp_path / "l.csv", "BraTS21ID,MGMT_value", "1,0", "2,1")
    assert main(["--predictions", str(predictions), "--labels", str(labels)]) == 0
    assert "contains 0.5" in capsys.readouterr().out


OOF = "patient_id,label,fold,seed,logit,probability"


def test_command_takes_labels_from_out_of_fold_predictions_and_compares_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for place, logits in enumerate(([-2, -1, 1, 2], [2, -1, 1, -2], [-2, 1, -1, 2])):
        file = tmp_path / str(place) / "run" / "oof_predictions.csv"
        file.parent.mkdir(parents=True)
        rows = [f"{i},{int(i > 1)},0,0,{logit},0.5" for i, logit in enumerate(logits)]
        files.append(str(_write(file, OOF, *rows)))
    assert main(["--predictions", *files]) == 0
    said = capsys.readouterr().out
    assert "AUC 1.00" in said
    assert "against     run (2): 1.00 and 0.25 on 4 patients, difference +0.75" in said
    assert "against     run (3): 1.00 and 0.75 on 4 patients, difference +0.25" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--run", "nowhere", "--output", "out"), "no run.json and no config.json there"),
        (("--series", "series.csv"), "--output DIR is needed"),
    ],
)
def test_command_says_what_a_report_needs(tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    file = _write(tmp_path / "oof.csv", OOF, "1,0,0,0,-1,0.3", "2,1,0,0,1,0.7")
    with pytest.raises(UsageError, match=said):
        main(["--predictions", str(file), *more])


def test_out_of_fold_predictions_without_their_run_are_warned_of(tmp_path: Path) -> None:
    rows = [f"{i},{i % 2},{i % 3},0,{i % 2},0.5" for i in range(12)]
    file = _write(tmp_path / "oof.csv", OOF, *rows)
    assert main(["--predictions", str(file), "--output", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "without their run" in written["warnings"][0]
    assert written["run"] is None


def test_drawing_and_templates_are_imported_for_a_report_only() -> None:
    code = (
        "import sys, trainer.evaluate\n"
        "heavy = {'matplotlib', 'jinja2', 'sklearn', 'pandas', 'scipy.stats', 'tensorflow'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("second", ["5", "00005"])
def test_ids_that_cannot_be_told_apart_are_refused(tmp_path: Path, second: str) -> None:
    file = _write(tmp_path / "p.csv", "id,v", "00005,1", f"{second},0")
    with pytest.raises(ContractError, match="ambiguous ids '00005'"):
        read_column(file, ["id"], ["v"])


def test_a_missing_file_or_column_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_column(tmp_path / "none.csv", ["id"], ["v"])
    with pytest.raises(UsageError, match="is a directory"):
        read_column(tmp_path, ["id"], ["v"])
    random = tmp_path / "random.csv"
    random.write_bytes(bytes(range(128, 256)))
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_column(random, ["id"], ["v"])
    file = _write(tmp_path / "p.csv", "id,v", "1,1")
    with pytest.raises(UsageError, match=r"no column w; it has id, v"):
        read_column(file, ["id"], ["w"])


def test_commands_start_without_tensorflow_and_without_the_other_rooms() -> None:
    code = (
        "import sys, trainer.task, trainer.evaluate\n"
        "heavy = {'tensorflow', 'keras', 'apache_beam', 'pydicom', 'beam_jobs.core.preprocess'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
