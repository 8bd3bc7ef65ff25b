"""The table's formats: same rows, same bytes, no value lost."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.core.cohort.target import PLAIN
from serving.model.answers import Prediction
from serving.predict.outputs import (
    Columns,
    groups_and_flags,
    paths_of,
    require_no_strays,
    table,
    write,
)
from serving.predict.submission import Submission, compose

ONE = Columns(id_column="id", value_column="p", groups=("probability",))
ALL = Columns(id_column="id", value_column="p", groups=groups_and_flags(PLAIN))


def made(count: int = 7) -> tuple[Submission, dict[str, Prediction]]:
    """Predictions of float32s of all sizes, the last patient without one."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.uniform(0, 1, count - 1), rng.uniform(0, 1e-30, 1)])
    predictions = {
        f"{number}": Prediction(
            patient_id=f"{number}",
            values={
                "probability": float(value),
                "logit": float(np.float32(rng.normal())),
                "spread": 0.125,
            },
            missing=("T2w",) if number == 1 else (),
        )
        for number, value in enumerate(values.astype(np.float32))
    }
    submission = compose(
        predictions=[(p.patient_id, p.answer(PLAIN)) for p in predictions.values()],
        rejects=[
            {
                "scope": "patient",
                "subject": "9999",
                "patient": "9999",
                "reason": "not_dicom",
                "detail": "",
            }
        ],
        prior=(0.52,),
    )
    return submission, predictions


def test_written_values_bring_every_float32_back(tmp_path: Path) -> None:
    submission, predictions = made(1000)
    rows = table(submission, predictions, ONE)
    write(rows, [str(tmp_path / "a.csv")])
    header, *lines = (tmp_path / "a.csv").read_text().splitlines()
    assert header == "id,p"
    exact = [np.float32(p.values["probability"]) for p in predictions.values()]
    assert [np.float32(line.split(",")[1]) for line in lines[:-1]] == exact
    assert lines[-1] == "9999,0.52"


def test_all_formats_hold_the_same_table(tmp_path: Path) -> None:
    from pyarrow import parquet

    submission, predictions = made()
    rows = table(submission, predictions, ALL)
    header = list(rows.columns)
    assert header == ["id", "p", "logit", "spread", "flags"]
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        write(rows, [str(tmp_path / name)])
    with (tmp_path / "a.csv").open(newline="") as stream:
        from_csv = list(csv.DictReader(stream))
    from_json = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    from_parquet = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row["flags"] for row in from_json] == ["", "missing_T2w", *[""] * 5, "not_dicom"]
    assert (from_json[-1]["logit"], from_csv[-1]["logit"]) == (None, "")
    for one, two, three in zip(from_csv, from_json, from_parquet, strict=True):
        assert list(one) == list(two) == list(three) == header
        for column in ("id", "flags"):
            assert one[column] == two[column] == three[column]
        for column in ("p", "logit", "spread"):
            text, number, stored = one[column], two[column], three[column]
            if text == "":
                assert (number, stored) == (None, None)
            else:
                assert np.float32(text) == np.float32(number) == np.float32(stored)


def test_columns_of_parquet_have_the_same_types_whether_there_are_rows_or_none(
    tmp_path: Path,
) -> None:
    from pyarrow import parquet

    rows = table(*made(2), ALL)
    file = tmp_path / "p.parquet"
    for some in (rows, rows.iloc[:0]):
        write(some, [str(file)])
        found = {field.name: str(field.type) for field in parquet.read_schema(file)}
        assert found == {
            "id": "string",
            **dict.fromkeys(("p", "logit", "spread"), "float"),
            "flags": "string",
        }


def test_shards_hold_all_rows_in_order_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    submission, predictions = made()
    rows = table(submission, predictions, ALL)
    output = str(tmp_path / "preds.jsonl")
    files = paths_of(output, 3)
    assert [Path(file).name for file in files] == [
        f"preds-0000{number}-of-00003.jsonl" for number in range(3)
    ]
    sums = write(rows, files)
    assert write(rows, files) == sums
    assert sorted(path.name for path in tmp_path.iterdir()) == [Path(f).name for f in files]
    lines = [line for file in files for line in Path(file).read_text().splitlines()]
    assert [json.loads(line)["id"] for line in lines] == rows["id"].to_list()
    sizes = [len(Path(file).read_text().splitlines()) for file in files]
    assert max(sizes) - min(sizes) <= 1


def test_shards_of_another_number_are_not_written_beside(tmp_path: Path) -> None:
    (tmp_path / "preds-00000-of-00002.jsonl").touch()
    (tmp_path / "preds-notes.jsonl").touch()
    output = str(tmp_path / "preds.jsonl")
    with pytest.raises(UsageError, match=r"preds-00000-of-00002\.jsonl lies there"):
        require_no_strays(output, paths_of(output, 3))
    require_no_strays(output, paths_of(output, 2))
    require_no_strays(str(tmp_path / "preds.csv"), [str(tmp_path / "preds.csv")])
