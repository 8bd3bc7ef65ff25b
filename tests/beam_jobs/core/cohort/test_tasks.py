"""Which task labels are of, and what of a CSV nothing can be learnt from: one line that helps."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs.common.cli import UsageError
from beam_jobs.core.cohort.labels import Labels, read_labels
from beam_jobs.core.cohort.target import PLAIN, Target
from beam_jobs.core.cohort.task_choice import TASK_CHOICES, Wanted


def labels_of(*cells: str, columns: str = "y", **wanted: Any) -> Labels:
    """Labels of patients 1, 2, ... from their cells."""
    rows = [f"{number},{cell}" for number, cell in enumerate(cells, 1)]
    return read_labels(
        "\n".join([f"id,{columns}", *rows]),
        name="l.csv",
        id_column="id",
        label_column=columns.split(","),
        wanted=Wanted(**wanted),
    )


@pytest.mark.parametrize("cells", [("0", "1"), ("0.0", "1.0", ""), ("1", "1"), ("0", "NA", "1")])
def test_labels_of_0_and_1_are_what_they_were(cells: tuple[str, ...]) -> None:
    found = labels_of(*cells)
    assert found.target == PLAIN
    assert found.choice == ""
    known = [(number, cell) for number, cell in enumerate(cells, 1) if cell not in ("", "NA")]
    assert found.by_spelling == {str(number): int(float(cell)) for number, cell in known}


@pytest.mark.parametrize(
    ("cells", "wanted", "task", "classes", "labels"),
    [
        (("no", "yes"), {}, "binary", ("no", "yes"), [0, 1]),
        (("no", "yes"), {"classes": ("yes,no",)}, "binary", ("yes", "no"), [1, 0]),
        (("10", "9"), {}, "binary", ("9", "10"), [1, 0]),
        (("2", "10", "3.0"), {}, "multiclass", ("2", "3", "10"), [0, 2, 1]),
        (("b", "c", "a", "nan"), {}, "multiclass", ("a", "b", "c"), [1, 2, 0]),
        (("4", "4b", "3"), {"task": "multiclass"}, "multiclass", ("3", "4", "4b"), [1, 2, 0]),
        (("1.5", "2", "3"), {}, "regression", (), [1.5, 2.0, 3.0]),
        (("1", "2", "3"), {"task": "regression"}, "regression", (), [1.0, 2.0, 3.0]),
        (tuple(map(str, range(11))), {}, "regression", (), list(map(float, range(11)))),
        (("0", "1", "2"), {}, "multiclass", ("0", "1", "2"), [0, 1, 2]),
    ],
)
def test_the_task_is_read_from_the_labels(
    cells: tuple[str, ...],
    wanted: dict[str, Any],
    task: str,
    classes: tuple[str, ...],
    labels: list[float],
) -> None:
    found = labels_of(*cells, **wanted)
    assert (found.target.task, found.target.classes) == (task, classes)
    assert found.target.labels == ("y",)
    assert list(found.by_spelling.values()) == labels
    assert found.choice.startswith(f"task: {task}")


def test_numbers_that_are_rounded_are_told() -> None:
    dates = ("20191123", "20231123", "20250701")
    assert "stored" not in labels_of(*dates).choice  # three whole numbers are classes, by name
    said = labels_of(*dates, task="regression").choice
    assert said.endswith("; 20191123 is stored as 20191124, a float32")
    assert labels_of("1.1", "2.7", "16777216", task="regression").choice.endswith(" of y")
    assert Target(task="regression", labels=("y",), unit="mm3").text(1234567.0) == "1234567 mm3"


def test_several_columns_are_findings_and_an_empty_cell_is_not_known() -> None:
    found = labels_of("1,0", "0,", ",", "0.0,1", columns="edema,necrosis")
    assert found.target.labels == ("edema", "necrosis")
    assert found.by_spelling == {"1": (1, 0), "2": (0, None), "4": (0, 1)}


@pytest.mark.parametrize(
    ("cells", "wanted", "message"),
    [
        (("2", "high", "3"), {}, r"numbers \('2'\) and texts \('high' in line 3\) are mixed: corr"),
        (("a", "a"), {}, "all labels are 'a': nothing can be learnt of one class"),
        (("5", "5"), {"task": "regression"}, "all labels are 5: nothing can be learnt of one"),
        (("1.5", "inf", "2"), {}, "line 3: the label is 'inf', no finite number; empty is unknown"),
        (("1.5", "1e39", "2"), {}, r"line 3: the label is '1e39', more than the 3.4e\+38 of a fl"),
        (('"1,5"', '"2,5"', "3"), {}, "line 2: the label is '1,5': decimals need a point"),
        (("1", "2", "1e400"), {}, "line 4: the label is '1e400', no finite number"),
        (("1e-50", "2e-50", "3e-50"), {"task": "regression"}, r"digits, [123]e-50 as 0: subtract"),
        (
            ("20231101", "20231102", "20231103"),
            {"task": "regression"},
            "of dates, count the days s",
        ),
        (("a", "b\x1b[2J"), {}, r"classes are named by up to 100 characters .* 'b\\x1b\[2J' is no"),
        (("a", "b" * 101), {}, "classes are named by up to 100 characters"),
        (("1.5", "x"), {"task": "regression"}, "line 3: the label is 'x', no finite number"),
        (("a", "b", "c"), {"task": "binary"}, r"3 classes \(a, b, c\), a binary has two: --task m"),
        (("a", "b"), {"task": "multiclass"}, r"two classes \(a, b\): --task binary"),
        (("0", "1"), {"task": "multilabel"}, "--task multilabel needs several --label_column"),
        (("a", "A", "b"), {}, "classes 'A' and 'a' differ in case or spaces alone: spell them al"),
        (("a", "b"), {"classes": ("a", "c")}, "line 3: the label is 'b', which --classes a c doe"),
        (("a", "b"), {"classes": ("a", "b", "c")}, "--classes names 'c', which no patient is of"),
        (("a", "b"), {"classes": ("a", "a")}, "--classes names a class twice"),
        (("1", "2"), {"classes": ("1", "2"), "task": "regression"}, "--classes names classes, --t"),
        (("a", "b"), {"unit": "ml"}, r"--label_unit is of values, and these are classes \(a, b\)"),
        (("", "nan"), {}, "no labelled patient"),
    ],
)
def test_what_cannot_be_learnt_from_is_one_line_that_says_what_to_do(
    cells: tuple[str, ...], wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        labels_of(*cells, **wanted)


@pytest.mark.parametrize(
    ("cells", "wanted", "message"),
    [
        (("1,0", "2,1"), {}, "line 3: label edema is '2', not 0, 1 or empty"),
        (("1,", "0,"), {}, "label necrosis is known of no patient: leave its column out"),
        (("1,1", "0,1"), {}, "label necrosis is 1 in all patients: leave its column out"),
        (("1,1", "0,0"), {"task": "binary"}, "2 columns of labels are a multilabel, and --task"),
        (("1,1", "0,0"), {"classes": ("a", "b")}, "--classes is not of a multilabel"),
    ],
)
def test_findings_that_say_nothing_are_one_line(
    cells: tuple[str, ...], wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        labels_of(*cells, columns="edema,necrosis", **wanted)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("id",), "column id is the one of ids"),
        (("y", "y"), "column y is named twice"),
        (("z",), "no column z; its header is id, y, vol, ml"),
        ((",",), "--label_column names no column"),
    ],
)
def test_columns_that_cannot_be_the_labels(columns: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_labels('id,y,"vol, ml"\n1,0,2\n', name="l", id_column="id", label_column=columns)


@pytest.mark.parametrize("header", ["id;y", "\ufeffid;y\r", "id\ty", "id|y"])
def test_other_separators_are_named(header: str) -> None:
    with pytest.raises(UsageError, match="fields must be separated by commas, not "):
        read_labels(f"{header}\n1;0,5\n2;1,5\n", name="l", id_column="id", label_column="y")


def test_spellings_of_one_name_are_one_class() -> None:
    found = labels_of("\u00e9", "e\u0301", " c  d", '"c\nd"', "2.0", "02", task="multiclass")
    assert found.target.classes == ("2", "c d", "\u00e9")


def test_a_known_target_reads_its_labels_and_no_others() -> None:
    target = Target(task="multiclass", labels=("y",), classes=("2", "3", "4"))
    text = "id,y\n1,4.0\n2,\n3,2\n"
    found = read_labels(text, name="l", id_column="id", label_column="y", wanted=target)
    assert found.by_spelling == {"1": 2, "3": 0}
    with pytest.raises(UsageError, match="line 4: the label is '5', not 2 or 3 or 4"):
        read_labels(
            text.replace("3,2", "3,5"), name="l", id_column="id", label_column="y", wanted=target
        )


CELLS = st.sampled_from(
    [
        "0",
        "1",
        "1.0",
        "2",
        "3",
        "0.5",
        "",
        "NA",
        "inf",
        "1,5",
        "a",
        "A",
        "none",
        "1e400",
        "-1",
        "\x00",
    ]
) | st.text(max_size=4)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=8),
    columns=st.sampled_from([("a",), ("a", "b"), ("a", "b", "c"), ("a,c",)]),
    task=st.sampled_from(TASK_CHOICES),
    classes=st.sampled_from([(), ("0", "1"), ("a,none,0"), ("2", "1")]),
)
def test_any_table_gives_labels_of_one_task_or_one_line(
    rows: list[list[str]], columns: tuple[str, ...], task: str, classes: tuple[str, ...]
) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(
        [["id", "a", "b", "c"], *([n, *row] for n, row in enumerate(rows))]
    )
    text = stream.getvalue()
    wanted = Wanted(task=task, classes=tuple(classes))
    try:
        found = read_labels(text, name="l", id_column="id", label_column=columns, wanted=wanted)
    except UsageError:
        return
    target = found.target
    assert target == Target.from_json(target.to_json())
    for label in found.by_spelling.values():
        assert target.label_of_json(target.label_to_json(label)) == label
        assert target.label_of_stored(target.stored(label)) == label
    again = read_labels(text, name="l", id_column="id", label_column=columns, wanted=target)
    assert again.by_spelling == found.by_spelling


def test_a_column_whose_name_has_a_comma_is_found() -> None:
    text = 'id,"vol, ml"\n1,0.5\n2,2.5\n3,4.5\n'
    found = read_labels(text, name="l", id_column="id", label_column="vol, ml")
    assert found.target.labels == ("vol, ml",)


def test_labels_of_0_and_1_are_not_turned_round() -> None:
    """Whoever judges a submission by the CSV's own labels would have every answer mirrored."""
    with pytest.raises(UsageError, match="--classes 1 0: of labels 0 and 1 the positive class"):
        labels_of("0", "1", "1", classes=("1", "0"))
    assert labels_of("0", "1", classes=("0", "1")).target == PLAIN
