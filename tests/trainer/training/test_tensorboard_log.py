"""The line of an epoch: what it says, and that it fits a terminal of 80 columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from beam_jobs.core.cohort.target import Target
from trainer.training.tensorboard_log import Journal


def _line(
    capsys: pytest.CaptureFixture[str], directory: Path, *, name: str, epochs: int, later: int
) -> str:
    """What the second epoch prints."""
    row = {"loss": 0.70512, "val_loss": 0.69471, "val_auc": 0.61111, "learning_rate": 1e-3}
    row.update(step_seconds=1.0, input_wait=0.0, epoch_seconds=1234.5)
    journal = Journal(name=name, directory=directory, logs=directory, epochs=epochs, later=later)
    journal.log([{**row, "epoch": epoch} for epoch in (1, 2)])
    journal.close()
    return capsys.readouterr().out


def test_an_epochs_line_has_its_losses_its_auc_and_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = _line(capsys, tmp_path, name="fold-0", epochs=12, later=1)
    assert line == "fold-0  epoch  2/12  loss 0.705  val 0.695  AUC 0.611  21 min, 7.5 h left\n"


def test_an_error_of_values_has_the_digits_that_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"epoch": 1, "loss": 0.7, "val_loss": 8.6612e-07, "val_spearman": 0.2}
    row.update(learning_rate=1e-3, step_seconds=1.0, input_wait=0.0, epoch_seconds=9.0)
    journal = Journal(name="f", directory=tmp_path, logs=tmp_path, epochs=2, later=0,
                      target=Target(task="regression", labels=("y",)))  # fmt: skip
    journal.log([row])
    journal.close()
    assert "loss 0.700  val 8.661e-07  Spearman" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "epochs", "lines"),
    [("fold-4", 100, 1), ("fold-4-seed-7", 50, 1), ("fold-12-seed-2147483647", 1000000, 2)],
)
def test_an_epochs_line_fits_80_columns(
    name: str,
    epochs: int,
    lines: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    printed = _line(capsys, tmp_path, name=name, epochs=epochs, later=4).splitlines()
    assert len(printed) == lines
    assert max(map(len, printed)) <= 80
