"""check_submission: what it lets through and what it names."""

from pathlib import Path

import pytest

from serving import check_submission
from tests.commands import outcome
from tests.serving.models import ROOT, python

SAMPLE = "BraTS21ID,MGMT_value\n00001,0.5\n00013,0.5\n00015,0.5\n"


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.csv"
    path.write_text(SAMPLE)
    return path


def check(
    sample: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    submission = sample.with_name("submission.csv")
    submission.write_text(text)
    argv = [submission, "--sample", sample]
    return outcome(check_submission.main, argv, capsys, monkeypatch)


def test_a_right_submission_passes(
    sample: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "BraTS21ID,MGMT_value\n00001,0\n00013,1\n00015,1e-3\n"
    assert check(sample, text, capsys, monkeypatch)[0] == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("00001,0.1\n00013,0.2\n", "1 ids are missing: 00015"),
        ("00001,0.1\n00013,0.2\n00015,0.3\n00016,0.3\n", "1 ids were not requested: 00016"),
        ("00013,0.1\n00001,0.2\n00015,0.3\n", "order differs at row 1: 00013, required 00001"),
        ("00001,0.1\n00013,0.2\n00013,0.2\n00015,0.3\n", "1 ids stand twice: 00013"),
        ("1,0.1\n00013,0.2\n00015,0.3\n", "1 ids are missing: 00001"),
        ("00001,nan\n00013,0.2\n00015,0.3\n", "1 values are not finite numbers: 00001 = nan"),
        ("00001,\n00013,0.2\n00015,0.3\n", "1 values are not finite numbers: 00001 = empty"),
        ("00001,0.1\n00013,1.5\n00015,-1\n", "2 values are not between 0 and 1: 00013 = 1.5"),
        ("00001,0.1\n00013\n00015,-1\n", "line 3: 1 fields, the header has 2"),
    ],
)
def test_a_wrong_submission_fails_and_says_why(
    sample: Path,
    rows: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, out, _ = check(sample, "BraTS21ID,MGMT_value\n" + rows, capsys, monkeypatch)
    assert code == 1
    assert message in out


@pytest.mark.parametrize("header", ["id,MGMT_value", "MGMT_value,BraTS21ID", ""])
def test_a_wrong_header_fails(
    sample: Path,
    header: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, out, _ = check(sample, f"{header}\n00001,0.1\n", capsys, monkeypatch)
    assert code == 1
    assert "header" in out


def test_a_missing_file_is_wrong_usage(
    sample: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [sample.with_name("none.csv"), "--sample", sample]
    code, _, err = outcome(check_submission.main, argv, capsys, monkeypatch)
    assert code == 2
    assert "none.csv does not exist" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("swapped", "message"),
    [(False, "is a directory"), (True, "--sample: ")],
    ids=["file", "sample"],
)
def test_a_directory_is_wrong_usage(
    sample: Path,
    swapped: bool,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [sample.parent, sample] if not swapped else [sample, sample.parent]
    argv = [names[0], "--sample", names[1]]
    code, _, err = outcome(check_submission.main, argv, capsys, monkeypatch)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "id,v\n", "BraTS21ID,MGMT_value\n1\n"])
def test_the_submission_is_named_once(
    sample: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = check(sample, text, capsys, monkeypatch)
    assert out.count("submission.csv") == 1


def test_the_check_needs_neither_tensorflow_nor_beam(tmp_path: Path) -> None:
    code = (
        "import sys, serving.check_submission\n"
        "print([n for n in ('tensorflow', 'keras', 'apache_beam') if n in sys.modules])"
    )
    assert python(code, cwd=tmp_path, path=str(ROOT)).strip() == "[]"
