"""What is wrong with a submission: ids, order, numbers, range; of whatever labels it answers.

The columns say what is answered: a binary's probabilities stand in the value column, those of
classes and findings in `probability_<name>`, values in `value`. A column beside them that a
prediction may write (`class`, `low`, `spread`, ...) is let through, and so is any order of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from beam_jobs.common.csv_table import read_table
from serving.model.answers import CLASS
from serving.predict.outputs import FLAGS
from serving.predict.submission import some

_ANSWER, _VALUE = "probability_", "value"
_BESIDE = (CLASS, "low", "high", "spread", FLAGS)
_PREFIXES = (_ANSWER, "logit_", "spread_")
_SUM = 1e-3  # what rounding may leave between 1 and the sum of probabilities


def problems(
    text: str,
    sample: Sequence[str],
    *,
    id_column: str,
    value_column: str,
    header: Sequence[str] = (),
) -> list[str]:
    """What is wrong with a submission, one line each; nothing where it can be handed in.

    Args:
      text: the submission's CSV text.
      sample: the required ids, in order.
      id_column: name of its first column.
      value_column: name of a binary's second column.
      header: the sample's: the columns of classes, findings or values that it asks for.
    """
    try:
        found, _ = read_table(text, ())
        wanted = _answers(header)
        if value_column not in header and not wanted and value_column not in found:
            wanted = _answers(found)
        found, rows = read_table(text, (id_column, *(wanted or (value_column,))))
    except ValueError as error:
        return [str(error)]
    told = []
    required = [id_column, *(wanted or [value_column])]
    beside = [name for name in found if name not in required]
    unknown = [name for name in beside if not (wanted and _is_of_ours(name))]
    # Of several answers the names say which is which, in any order.
    ordered = bool(wanted) or [name for name in found if name in required] == required
    if unknown or not ordered or found[0] != id_column:
        told.append(f"header is {','.join(found)}, required {','.join(required)}")
    told += _of_ids([row[id_column] for _, row in rows], sample)
    cells = [row for _, row in rows]
    numbers = [
        (f"{row[id_column]}{f', {name}' if wanted else ''}", row[name], _number(row[name]))
        for row in cells
        for name in required[1:]
    ]
    bad = [f"{name} = {shown or 'empty'}" for name, shown, v in numbers if not math.isfinite(v)]
    if bad:
        told.append(f"{len(bad)} values are not finite numbers: {some(bad)}")
    if required[1:] != [_VALUE]:
        outside = [f"{name} = {shown}" for name, shown, v in numbers if v < 0 or v > 1]
        if outside:
            told.append(f"{len(outside)} values are not between 0 and 1: {some(outside)}")
    if wanted:
        told += _of_rows(cells, id_column, found)
    return told


def _answers(header: Sequence[str]) -> list[str]:
    """The columns of a header that answer of classes, findings or values."""
    return [name for name in header if name == _VALUE or name.startswith(_ANSWER)]


def _is_of_ours(name: str) -> bool:
    return name in _BESIDE or name.startswith(_PREFIXES)


def _of_ids(ids: Sequence[str], sample: Sequence[str]) -> Iterator[str]:
    """What is wrong with ids and their order."""
    requested, given = set(sample), Counter(ids)
    twice = sorted(name for name, count in given.items() if count > 1)
    missing = [name for name in sample if name not in given]
    extra = [name for name in given if name not in requested]
    if twice:
        yield f"{len(twice)} ids stand twice: {some(twice)}"
    if missing:
        yield f"{len(missing)} ids are missing: {some(missing)}"
    if extra:
        yield f"{len(extra)} ids were not requested: {some(extra)}"
    if not (twice or missing or extra) and list(ids) != list(sample):
        first = next(i for i, (a, b) in enumerate(zip(ids, sample, strict=True)) if a != b)
        yield f"order differs at row {first + 1}: {ids[first]}, required {sample[first]}"


def _of_rows(
    rows: Sequence[Mapping[str, str]], id_column: str, header: Sequence[str]
) -> Iterator[str]:
    """What columns that stand beside each other contradict."""
    names = [name.removeprefix(_ANSWER) for name in header if name.startswith(_ANSWER)]
    if CLASS in header and names:
        sums = [(row[id_column], sum(_number(row[_ANSWER + one]) for one in names)) for row in rows]
        if bad := [f"{name} = {total:.4g}" for name, total in sums if abs(total - 1) > _SUM]:
            yield f"{len(bad)} rows have probabilities that do not add up to 1: {some(bad)}"
        if bad := [f"{row[id_column]} = {row[CLASS]}" for row in rows if row[CLASS] not in names]:
            yield f"{len(bad)} classes have no column of probabilities: {some(bad)}"
    if {_VALUE, "low", "high"} <= set(header):
        # No interval at all (empty cells) is none that lies wrong.
        bad = [row[id_column] for row in rows if _is_outside(row)]
        if bad:
            yield f"{len(bad)} values are not inside their interval: {some(bad)}"


def _is_outside(row: Mapping[str, str]) -> bool:
    low, value, high = (_number(row[name]) for name in ("low", _VALUE, "high"))
    return low > value or value > high


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
