"""The prediction table in its formats: CSV, JSON lines in any number of files, Parquet.

Same rows, same bytes: no time, no host, no order of workers goes in. Every file is written under
another name and renamed, so that what has the name is whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from beam_jobs.common.cli import UsageError, items
from beam_jobs.common.contract_json import is_unicode
from beam_jobs.common.csv_table import Lines, inert, is_formula
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import own_json
from beam_jobs.core.cohort.target import PLAIN, Target
from serving.model.answers import (
    CLASS,
    Prediction,
    answer_columns,
    class_of,
    columns_of,
    default_groups,
    groups_of,
    number_columns,
)
from serving.predict.damaged_records import REJECT_COLUMNS, Reject
from serving.predict.skew import FORMAT as SKEW_FORMAT
from serving.predict.submission import Failure, Submission

if TYPE_CHECKING:
    import pandas as pd  # takes as long to import as a command's --help takes

FLAGS = "flags"
VALUE_COLUMN = "MGMT_value"
FORMATS = (".csv", ".jsonl", ".parquet")
FAILURE_COLUMNS = tuple(field.name for field in dataclasses.fields(Failure))
FAILURES_HEADER, REJECTS_HEADER = (
    f"{','.join(names)}\n".encode() for names in (FAILURE_COLUMNS, REJECT_COLUMNS)
)
# Nine significant digits bring every float32 back exactly.
_EXACT = "%.9g"


def paths_of(output: str, shards: int | None) -> list[str]:
    """The files that the table will have.

    Args:
      output: as requested; its extension says the format.
      shards: files to deal the rows of a `.jsonl` to; None is one, with the very name.

    Raises:
      UsageError: a format that is not known, or shards of one that has none.
    """
    stem, extension = os.path.splitext(output)
    if extension not in FORMATS:
        raise UsageError(f"--output: {output} must end in {', '.join(FORMATS)}")
    if shards is None:
        return [output]
    if extension != ".jsonl":
        raise UsageError(f"--output_shards is for .jsonl, not for {output}")
    if not 1 <= shards <= 99_999:
        raise UsageError(f"--output_shards must lie in 1 .. 99999: {shards}")
    return [f"{stem}-{number:05d}-of-{shards:05d}.jsonl" for number in range(shards)]


def require_no_strays(output: str, paths: Sequence[str]) -> None:
    """Refuses to write shards beside those of another number: a pattern would read both.

    Raises:
      UsageError: names one of them.
    """
    directory, name = os.path.split(output)
    stem = re.escape(os.path.splitext(name)[0])
    shard = re.compile(rf"{stem}-\d{{5}}-of-\d{{5}}\.jsonl")
    ours = {os.path.basename(path) for path in paths}
    for found in files.names(directory or "."):
        if output.endswith(".jsonl") and shard.fullmatch(found) and found not in ours:
            raise UsageError(
                f"--output: {found} lies there, of an output in other parts; delete it first"
            )


def beside(output: str, name: str) -> str:
    """A file beside the table: `submission.csv` has `submission.failures.csv`."""
    return f"{os.path.splitext(output)[0]}.{name}"


def require_own_beside(output: str) -> None:
    """Refuses to replace or delete what nobody named: files beside the table that are others'.

    Raises:
      UsageError: names one.
    """
    for name, header in (
        ("failures.csv", FAILURES_HEADER),
        ("rejects.csv", REJECTS_HEADER),
        ("skew.json", None),
    ):
        file = beside(output, name)
        if files.stat(file) is None:
            continue
        if header is None:
            ours = own_json(file, SKEW_FORMAT) is not None
        else:
            ours = files.read_range(file, 0, len(header)) == header
        if not ours:
            raise UsageError(
                f"--output: {file} lies there, and no prediction wrote it; move it elsewhere, or "
                "choose another name"
            )


def write_beside(output: str, submission: Submission, rejects: Sequence[Reject]) -> None:
    """failures.csv always; rejects.csv where there are any, and never an older run's."""
    files.write(beside(output, "failures.csv"), failures_csv(submission))
    if rejects:
        files.write(beside(output, "rejects.csv"), rejects_csv(rejects))
    else:
        files.delete([beside(output, "rejects.csv")])


def groups_and_flags(target: Target) -> tuple[str, ...]:
    """What a row may hold behind the id."""
    return (*groups_of(target), FLAGS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """What the columns of a table are.

    Attributes:
      id_column: name of the ids' column.
      value_column: name of a binary's probabilities' column.
      groups: some of `groups_and_flags`, in order. But for the answer itself, numbers are NaN
        where the row holds the prior; `flags` are codes with ";" between: why there is no
        prediction, what of the patient was refused, which modality or covariate is missing.
      target: of the answers.
    """

    id_column: str
    value_column: str
    groups: tuple[str, ...]
    target: Target = PLAIN

    @property
    def header(self) -> list[str]:
        """The columns' names."""
        names = columns_of(self.target, self.groups)
        if self.target.task == "binary":
            names = [self.value_column if name == "probability" else name for name in names]
        return [self.id_column, *names]


def requested_columns(
    target: Target, columns: str | None, *, id_column: str, value_column: str | None
) -> Columns:
    """The columns that a user requests of a model's answers.

    Args:
      target: what the model answers.
      columns: `--columns`; None is what is answered unless something else is asked for.
      id_column: name of the ids' column.
      value_column: `--value_column`; None of a binary is `VALUE_COLUMN`.

    Raises:
      UsageError: what the model does not answer, two columns of one name, or one of no text.
    """
    groups = default_groups(target) if columns is None else items(columns)
    known = groups_and_flags(target)
    if unknown := [name for name in groups if name not in known]:
        raise UsageError(f"--columns: {unknown[0]} is none of {', '.join(known)}")
    if value_column is not None and target.task != "binary":
        raise UsageError(
            f"--value_column is for a binary model; this one answers a {target.task}, in the "
            f"columns {', '.join(columns_of(target, groups))}"
        )
    made = Columns(
        id_column=id_column,
        value_column=VALUE_COLUMN if value_column is None else value_column,
        groups=tuple(groups),
        target=target,
    )
    if len(set(made.header)) < len(made.header):
        raise UsageError(f"--columns: {', '.join(made.header)} are not distinct")
    if not is_unicode("".join(made.header)):
        raise UsageError(f"--columns: {', '.join(made.header)}: not UTF-8")
    return made


def table(
    submission: Submission, predictions: Mapping[str, Prediction], columns: Columns
) -> pd.DataFrame:
    """The rows as they will be written.

    Args:
      submission: who gets a row, and which answer.
      predictions: patient -> answer.
      columns: of the table.
    """
    import pandas as pd

    target = columns.target
    answered, numbers = answer_columns(target), number_columns(target)
    rows = []
    for (shown, value), patient, flags in zip(
        submission.rows, submission.patients, submission.flags, strict=True
    ):
        answer = predictions.get(patient)
        missing = () if answer is None else answer.missing
        rows.append(
            {
                "id": shown,
                **({} if answer is None else answer.values),
                **dict(zip(answered, value, strict=True)),
                CLASS: class_of(target, value) if target.task == "multiclass" else "",
                FLAGS: ";".join((*flags, *(f"missing_{name}" for name in missing))),
            }
        )
    kinds = {"id": str, **dict.fromkeys(numbers, float), CLASS: str, FLAGS: str}
    frame = pd.DataFrame(rows, columns=list(kinds)).astype(kinds)
    frame = frame[["id", *columns_of(target, columns.groups)]]
    frame.columns = pd.Index(columns.header)
    return frame


def formulas(submission: Submission, columns: Columns) -> str:
    """How many texts of a CSV table a spreadsheet could run, in words; "" of none."""
    ids = sum(is_formula(shown) for shown, _ in submission.rows)
    named = columns.target.names if CLASS in columns.groups else ()
    classes = sum(is_formula(name) for name in named)
    told = {"ids": ids, "names of classes": classes}
    return " and ".join(f"{count} {what}" for what, count in told.items() if count)


def write(rows: pd.DataFrame, paths: Sequence[str]) -> list[str]:
    """Writes the rows to files, each whole or not at all.

    Args:
      rows: of `table`.
      paths: of `paths_of`; rows go to them in even stretches.

    Returns:
      sha256 (hex) of each file.
    """
    sums = []
    for number, path in enumerate(paths):
        start, stop = (len(rows) * end // len(paths) for end in (number, number + 1))
        data = _encode(rows.iloc[start:stop], os.path.splitext(path)[1])
        files.write(path, data)
        sums.append(hashlib.sha256(data).hexdigest())
    return sums


def _encode(rows: pd.DataFrame, extension: str) -> bytes:
    if extension == ".csv":
        return _csv(rows)
    if extension == ".jsonl":
        # pandas' own JSON has no exact floats.
        lines = (json.dumps(row, ensure_ascii=False) for row in _json_rows(rows))
        return "".join(f"{line}\n" for line in lines).encode()
    import pyarrow as pa
    from pyarrow import parquet

    numbers = list(rows.select_dtypes("float64").columns)
    narrow = rows.astype(dict.fromkeys(numbers, "float32"))
    # Said, not found: pandas 3 would have long texts, and no rows have no type.
    kinds = [(name, pa.float32() if name in numbers else pa.string()) for name in rows.columns]
    stream = io.BytesIO()
    made = pa.Table.from_pandas(narrow, schema=pa.schema(kinds), preserve_index=False)
    parquet.write_table(made.replace_schema_metadata(None), stream)
    return stream.getvalue()


def failures_csv(submission: Submission) -> bytes:
    """The failures, and who lacks a covariate: `patient_id,reason,detail`."""
    import pandas as pd

    columns = FAILURE_COLUMNS
    listed = (*submission.failures, *submission.lacking)
    rows = [dataclasses.astuple(failure) for failure in listed]
    return _csv(pd.DataFrame(rows, columns=columns).map(inert))


def rejects_csv(rejects: Sequence[Mapping[str, Any]]) -> bytes:
    """The rejects, sorted: `scope,subject,patient,modality,reason,detail`."""
    import pandas as pd

    rows = pd.DataFrame(rejects, columns=list(REJECT_COLUMNS), dtype=str)
    return _csv(rows.sort_values(list(REJECT_COLUMNS)).map(inert))


def _csv(rows: pd.DataFrame) -> bytes:
    """CSV with line feeds alone, whatever the machine; numbers exact to a float32."""
    stream = Lines(newline="")
    rows.to_csv(stream, index=False, lineterminator=stream.TERMINATOR, float_format=_EXACT)
    return stream.getvalue().encode()


def _json_rows(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values: the shortest number that is a float32, null where there is none."""
    return [
        {
            str(name): value if isinstance(value, str) else _shortest(value)
            for name, value in row.items()
        }
        for row in rows.to_dict("records")
    ]


def exact(value: float) -> float:
    """A float32's value as the shortest number that gives it back: what the table says."""
    return float(_EXACT % value)


def _shortest(value: float) -> float | None:
    return None if math.isnan(value) else exact(value)
