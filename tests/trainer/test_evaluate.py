"""The command that joins predictions with labels, and what it says of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from trainer.config.run_layout import OOF_COLUMNS
from trainer.evaluate import main
from trainer.metrics.logits import sigmoid
from trainer.metrics.tasks.labels_file import read_column
from trainer.metrics.wording import summary_line

OOF = ",".join(OOF_COLUMNS)
OLD = "patient_id,label,fold,seed,logit,probability"  # of versions before 0.3


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
        OOF,
        *("00001,0,0,0,-1,0.27,3,last,", "00002,1,0,0,1,0.73,3,last,"),
    )
    labels = _write(tmp_path / "l.csv", "BraTS21ID,MGMT_value", "1,0", "2,1")
    assert main(["--predictions", str(predictions), "--labels", str(labels)]) == 0
    assert "contains 0.5" in capsys.readouterr().out


def test_command_takes_labels_from_out_of_fold_predictions_and_compares_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for place, logits in enumerate(([-2, -1, 1, 2], [2, -1, 1, -2], [-2, 1, -1, 2])):
        file = tmp_path / str(place) / "run" / "oof_predictions.csv"
        file.parent.mkdir(parents=True)
        rows = [f"{i},{int(i > 1)},0,0,{logit},0.5,3,last," for i, logit in enumerate(logits)]
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
    file = _write(tmp_path / "oof.csv", OOF, "1,0,0,0,-1,0.3,3,last,", "2,1,0,0,1,0.7,3,last,")
    with pytest.raises(UsageError, match=said):
        main(["--predictions", str(file), *more])


def _oof(file: Path, *, signal: float = 3.0, no_claim: str = "", old: bool = False) -> Path:
    """Out-of-fold predictions of sixty patients in five folds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    new = "" if old else f",3,last,{no_claim}"
    logits = [rng.normal() + signal * (i % 2) for i in range(60)]
    rows = [f"{i},{i % 2},{i // 12},0,{logit!r},0.5{new}" for i, logit in enumerate(logits)]
    return _write(file, OLD if old else OOF, *rows)


def _run(directory: Path, **more: Any) -> Path:
    """A run whose out-of-fold predictions have a signal."""
    _oof(directory / "oof_predictions.csv", no_claim="+".join(more.get("no_claim", ())))
    run = {"config": {"permute_labels": False}, "epoch_choice": "last", "no_claim": []}
    run["trained_ids"] = []
    (directory / "run.json").write_text(json.dumps({**run, **more}))
    return directory


def _told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["--predictions", *argv]) == 0
    return capsys.readouterr().out


def test_out_of_fold_predictions_are_measured_within_folds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _oof(tmp_path / "oof.csv")
    said = _told(capsys, str(file), "--output", str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (written["estimator"], written["variance_factor"]) == ("pairs within folds", 2)
    assert summary_line(written) in said
    assert "better than chance" in said


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        ({"old": True}, "optimistic AUC", "A version before 0.3 kept the epochs"),
        ({"no_claim": "searched"}, "optimistic AUC", "The settings were searched"),
        ({"no_claim": "permuted"}, "AUC of permuted labels", "The labels were permuted"),
        ({"no_claim": "searched+permuted"}, "AUC of permuted labels", "The settings were searched"),
    ],
)
def test_predictions_that_allow_no_claim_get_none_on_the_terminal_and_in_json(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    name: str,
    reason: str,
) -> None:
    file, sound = _oof(tmp_path / "oof.csv", **options), _oof(tmp_path / "sound.csv", signal=1)
    said = _told(capsys, str(file), str(sound), "--output", str(tmp_path / "out"))
    assert f"{name} 0." in said
    assert f"No claim. {reason}" in said
    assert "against     sound: " in said
    assert "no test: oof: " in said
    assert "chance" not in said
    assert "interval" not in said
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["p_value"] is written["auc_interval"] is None
    assert not written["better_than_chance"]
    assert written["comparisons"][0]["p_value"] is None
    # And where the marked one is the other.
    said = _told(capsys, str(sound), str(file))
    assert "better than chance" in said
    assert "no test: oof: " in said


def test_a_file_beside_the_run_of_an_earlier_version_is_optimistic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _oof(tmp_path / "oof.csv")
    (tmp_path / "run.json").write_text(json.dumps({"config": {}}))
    assert "No claim. A version before 0.3" in _told(capsys, str(file))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ({"config": {}}, "A version before 0.3"),
        ({"epoch_choice": "last", "no_claim": ["searched"]}, "The settings were searched"),
        ({"config": {"permute_labels": True, "epoch_choice": "last"}}, "The labels were permuted"),
    ],
)
def test_a_further_file_is_marked_by_the_run_it_lies_in_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: dict[str, Any], reason: str
) -> None:
    sound = _oof(tmp_path / "sound.csv")
    marked = _oof(tmp_path / "marked" / "oof_predictions.csv", signal=1)
    (marked.parent / "run.json").write_text(json.dumps(run))
    said = _told(capsys, str(sound), str(marked), "--output", str(tmp_path / "out"))
    assert "better than chance" in said
    assert f"no test: marked: {reason}" in said
    comparison = json.loads((tmp_path / "out" / "metrics.json").read_text())["comparisons"][0]
    assert comparison["p_value"] is comparison["other_auc_interval"] is None
    # Whatever is asked of the first.
    _run(tmp_path / "run")
    argv = (str(tmp_path / "run" / "oof_predictions.csv"), "--run", str(tmp_path / "run"))
    assert f"no test: marked: {reason}" in _told(capsys, argv[0], str(marked), *argv[1:])


@pytest.mark.parametrize("first", [True, False])
def test_a_file_without_folds_is_not_like_one_that_scores_its_patients_out_of_fold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: bool
) -> None:
    """As of the run's own ensemble, which was trained on these patients."""
    run = _run(tmp_path / "run")
    rows = [f"{i},{0.1 + 0.8 * (i % 2)},{i % 2}" for i in range(60)]
    answers = _write(tmp_path / "all.csv", "patient_id,probability,label", *rows)
    files = [str(run / "oof_predictions.csv"), str(answers)]
    if first:
        files.reverse()
    said = _told(capsys, *files, "--output", str(tmp_path / "out"))
    reason = "It has no folds, and a file beside it scores the same patients out of fold"
    assert f"no test: all: {reason}" in said
    assert ("No claim." in said) == first
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["no_claim"] == (["no_folds"] if first else [])
    assert written["comparisons"][0]["p_value"] is None
    # By itself, and beside a file of its kind, nothing is known of it.
    again = _write(tmp_path / "again.csv", "patient_id,probability,label", *rows)
    assert "no test" not in _told(capsys, str(answers), str(again))


def test_a_test_set_that_its_run_vouches_for_is_compared_with_scores_out_of_fold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(tmp_path / "run")
    rows = [f"{i},{0.1 + 0.8 * (i % 2)},{i % 2}" for i in range(100, 160)]
    test = _write(tmp_path / "test.csv", "patient_id,probability,label", *rows)
    other = _oof(tmp_path / "other.csv", signal=1).read_text().splitlines()
    shifted = (f"{100 + int(i)},{rest}" for i, _, rest in (row.partition(",") for row in other[1:]))
    _write(tmp_path / "other.csv", OOF, *shifted)
    said = _told(capsys, str(test), str(tmp_path / "other.csv"), "--run", str(run))
    assert "no test" not in said
    assert "better than chance" in said


def test_a_run_of_permuted_labels_prints_no_claim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(tmp_path / "run", config={"permute_labels": True})
    assert "chance" not in _told(capsys, str(run / "oof_predictions.csv"))


def test_retrainings_on_permuted_labels_decide_for_the_runs_own_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(tmp_path / "run")
    null = run / "permutations.csv"
    _write(null, "permutation,seed,auc", *(f"{i},{i},1.0" for i in range(1, 40)))
    said = _told(capsys, str(run / "oof_predictions.csv"))
    assert "cannot be told from chance" in said
    assert "39 score as high: p = 1, two-sided" in said
    _write(null, "permutation,seed,auc", *(f"{i},{i},0.5" for i in range(1, 20)))
    said = _told(capsys, str(run / "oof_predictions.csv"))
    assert "better than chance" in said
    assert "so few cannot decide" in said


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["1,0,1.2"], "auc '1.2': a number in 0 .. 1"),
        (["1,0,0.5", "1,0,0.5"], "permutation '1': a number from 1 on that stands once"),
        (["0,0,0.5"], "permutation '0': a number from 1"),
        (["-1,0,0.5"], "permutation '-1': a number from 1"),
    ],
)
def test_retrainings_that_cannot_be_are_refused(tmp_path: Path, rows: list[str], said: str) -> None:
    run = _run(tmp_path / "run")
    _write(run / "permutations.csv", "permutation,seed,auc", *rows)
    with pytest.raises(ContractError, match=rf"permutations.csv: {said}"):
        main(["--predictions", str(run / "oof_predictions.csv")])


@pytest.mark.parametrize("other", ["patients", "labels"])
def test_retrainings_decide_for_all_patients_of_the_run_with_its_labels_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    run = _run(tmp_path / "run")
    _write(run / "permutations.csv", "permutation,seed,auc", *(f"{i},0,1" for i in range(1, 40)))
    labels = {i: i % 2 for i in range(60)}
    if other == "patients":
        del labels[59]
    else:
        labels[59] = 0
    file = _write(
        tmp_path / "l.csv", "patient_id,MGMT_value", *(f"{i},{labels[i]}" for i in labels)
    )
    argv = (str(run / "oof_predictions.csv"), "--labels", str(file))
    said = _told(capsys, *argv, "--output", str(tmp_path / "out"))
    assert "better than chance" in said
    assert "permutations.csv of" in said
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (written["decided_by"], written["permutations"]) == ("interval", None)
    assert any("other patients or labels" in warning for warning in written["warnings"])


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"config": 5}, "config: 5 found, an object required"),
        ({"config": {"modalities": 5}}, "config.modalities: 5 found, a list required"),
        ({"epoch_choice": "best"}, "epoch_choice: 'best' found, one of last, crossfit, none"),
        ({"no_claim": "searched"}, "no_claim: 'searched' found, a list required"),
        ({"no_claim": ["odd"]}, "no_claim: .'odd'. found, some of own_fold"),
        ({"trained_ids": [5]}, "trained_ids: .5. found, a list of texts required"),
    ],
)
def test_a_run_that_cannot_be_read_is_refused_in_a_line(
    tmp_path: Path, run: dict[str, Any], said: str
) -> None:
    file = _oof(tmp_path / "oof_predictions.csv")
    (tmp_path / "run.json").write_text(json.dumps({"epoch_choice": "last", **run}))
    with pytest.raises(ContractError, match=rf"run\.json: {said}"):
        main(["--predictions", str(file)])


@pytest.mark.parametrize("first", [True, False])
def test_a_file_of_folds_that_does_not_tell_how_its_epochs_were_chosen_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: bool
) -> None:
    plain = [",".join(row.split(",")[:3] + row.split(",")[4:5])
             for row in _oof(tmp_path / "oof.csv").read_text().splitlines()]  # fmt: skip
    mute = _write(tmp_path / "mute.csv", *plain)
    files = (mute, tmp_path / "oof.csv") if first else (tmp_path / "oof.csv", mute)
    said = _told(capsys, *map(str, files), "--output", str(tmp_path / "out"))
    warning = "mute.csv does not say how its epochs were chosen"
    assert f"mind        {warning}" in said
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert any(warning in one for one in written["warnings"])
    assert warning not in _told(capsys, str(tmp_path / "oof.csv"))


def test_a_test_set_is_the_headline_and_the_run_out_of_fold_comes_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(tmp_path / "run", no_claim=["searched"])
    rng = np.random.default_rng(1)
    rows = [f"{i},{sigmoid(rng.normal() + 2 * (i % 2))}" for i in range(100, 140)]
    test = _write(tmp_path / "submission.csv", "BraTS21ID,MGMT_value", *rows)
    labels = _write(
        tmp_path / "l.csv", "BraTS21ID,MGMT_value", *(f"{i},{i % 2}" for i in range(100, 140))
    )
    argv = (str(test), "--labels", str(labels), "--run", str(run), "--output", str(tmp_path / "o"))
    said = _told(capsys, *argv).splitlines()
    assert said[0].startswith("auc         AUC 0.")
    assert "n = 40" in said[0]
    assert "better than chance" in said[1]  # the search never saw these patients
    assert said[2].startswith("out of fold optimistic AUC 0.")
    assert "n = 60" in said[2]
    written = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert (written["estimator"], written["variance_factor"]) == ("all pairs", 1)
    assert written["out_of_fold"]["no_claim"] == ["searched"]
    # The same patients, had the settings been searched on one of them.
    _run(run, searched_ids=["00139", "7"])
    said = _told(capsys, *argv).splitlines()
    assert said[0].startswith("auc         optimistic AUC 0.")
    assert said[1].split(maxsplit=1)[1].startswith("No claim. The settings were searched")
    assert said[2].startswith("out of fold AUC 0.")


@pytest.mark.parametrize("labelled", [True, False])
def test_a_test_set_of_patients_that_the_run_has_seen_is_refused(
    tmp_path: Path, labelled: bool
) -> None:
    run = _run(tmp_path / "run")
    test = _write(
        tmp_path / "p.csv", "BraTS21ID,MGMT_value", "00059,0.1", "100,0.2", "101,0.3", "102,0.9"
    )
    labels = _write(
        tmp_path / "l.csv", "BraTS21ID,MGMT_value", f"59,{1 if labelled else ''}",
        "100,0", "101,1", "102,0",
    )  # fmt: skip
    argv = ["--predictions", str(test), "--labels", str(labels), "--run", str(run)]
    with pytest.raises(ContractError, match=r"p is no test set: .*oof_.* 1 of its patients: 59$"):
        main(argv)
    # A run of one fold has trained on patients that its file does not list.
    _run(run, trained_ids=["0", "00102", "103", "101"])
    with pytest.raises(ContractError, match=r"p is no test set: .*trained on 2 .*: 101, 102$"):
        main(argv)
    (run / "oof_predictions.csv").unlink()
    with pytest.raises(ContractError, match=r"trained on 2"):
        main(argv)
    _run(run, trained_ids=None)
    with pytest.raises(ContractError, match=r"before 0\.3\): whether p is a test set cannot be"):
        main(argv)


def test_out_of_fold_predictions_of_another_run_are_refused(tmp_path: Path) -> None:
    run, other = _run(tmp_path / "run"), _oof(tmp_path / "other.csv", signal=0)
    with pytest.raises(ContractError, match="the run of other predictions"):
        main(["--predictions", str(other), "--run", str(run)])
    probabilities = ["--predictions", str(run / "oof_predictions.csv")]
    assert main([*probabilities, "--probability_column", "logit"]) == 0


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["1,0,0,0,1,0.5,3,last,odd", "2,1,1,0,1,0.5,3,last,"], "no_claim 'odd': one of own_fold"),
        (["1,0,0,0,1,0.5,3,last,", "2,1,1,0,1,0.5,3,last,"], "no fold has them"),
    ],
)
def test_files_that_cannot_be_judged_are_refused(
    tmp_path: Path, rows: list[str], said: str
) -> None:
    with pytest.raises(ContractError, match=said):
        main(["--predictions", str(_write(tmp_path / "oof.csv", OOF, *rows))])


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
