"""A Structured Report for each predicted patient, written where the answers are known.

A report says what the table says: the same numbers, of the same patients. Whoever could not be
predicted has none, nor has a patient whose images cannot be named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from beam_jobs.common import terminal
from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from beam_jobs.common.printable import counted
from beam_jobs.core.cohort.target import Target
from beam_jobs.core.dicom_out import outgoing
from beam_jobs.core.dicom_out.structured_report import (
    Finding,
    Maker,
    Number,
    is_report,
    structured_report,
)
from serving.model.answers import Prediction, class_of
from serving.model.contract import Contract
from serving.model.integrity import Checked
from serving.model.task_card import answers_text, cohort_text
from serving.predict.images import Images
from serving.predict.outputs import exact
from serving.predict.submission import Submission

FLAG = "--dicom_sr"
_HEAD = 4096  # bytes of a report that say whose it is


def require_place(place: str, *, source: str, id_policy: str) -> None:
    """Refuses what reports cannot be written to, before a job runs.

    Args:
      place: a directory, or the root of a DICOMweb service.
      source: the job's input.
      id_policy: "keep" or "hmac".

    Raises:
      UsageError: hashed ids, a place that cannot be written or lies in the input, no highdicom.
      StoreError: a DICOMweb service that does not answer, or refuses.
    """
    if id_policy != "keep":
        raise UsageError(
            f"{FLAG}: a report names its patient, as the images do: not with --id_policy hmac"
        )
    outgoing.require_place(place, flag=FLAG, source=source, source_flag="--input")
    outgoing.require_highdicom(FLAG)


def write_reports(
    place: str,
    submission: Submission,
    predictions: Sequence[Prediction],
    images: Mapping[str, Images],
    checked: Checked,
) -> list[str]:
    """Writes a report for each predicted patient of the table.

    Args:
      place: of `require_place`.
      submission: what the table says.
      predictions: what the model answered.
      images: patient -> its images.
      checked: the model.

    Returns:
      Lines for a person: how many, where, and why some have none.

    Raises:
      UsageError: a file of a report's name lies there that is none; nothing was written.
      StoreError: the place refuses; what was stored before stays, and is the same again.
    """
    answers = {one.patient_id: one for one in predictions}
    rows = [
        (patient, value)
        for (_, value), patient in zip(submission.rows, submission.patients, strict=True)
        if patient
    ]
    without = Counter(images[patient].refusal for patient, _ in rows)
    del without[""]
    rows = [row for row in rows if not images[row[0]].refusal]
    names = files.file_names((patient for patient, _ in rows), ".dcm")
    if not files.is_dicomweb(place):
        _require_ours(place, list(names.values()))
    facts = facts_of(checked.contract)
    for patient, value in terminal.track(rows, "reports", len(rows)):
        origin = images[patient].origin
        series = (f"{name}: series {uid}" for name, uid in origin.series.items())
        missing = (f"Not known, and answered without: {n}" for n in answers[patient].missing)
        data = structured_report(
            origin.header,
            origin.instances,
            findings_of(checked.contract, value, answers[patient].values),
            Maker(sha256=checked.sha256, facts=(*facts, *missing, *series)),
        )
        files.store_dicom(place, names[patient], data)
    lines = [f"{len(rows)} in {place}"]
    lines += [f"none of {counted(count, 'patient')}: {why}" for why, count in without.items()]
    return lines


def _require_ours(place: str, names: Sequence[str]) -> None:
    """Refuses to replace what nobody named.

    Raises:
      UsageError: names a file that is no report of ours.
    """
    for name in sorted({*names} & {*files.names(place)}):
        file = files.join(place, name)
        if not is_report(files.read_range(file, 0, _HEAD)):
            raise UsageError(
                f"{FLAG}: {file} lies there, and no prediction wrote it; choose another directory"
            )


def findings_of(
    contract: Contract, answer: Sequence[float], values: Mapping[str, float]
) -> list[Finding]:
    """What a row of the table says, as findings with its very numbers.

    Args:
      contract: the model's.
      answer: of the row: a probability, one a class or finding, or a value.
      values: of `Prediction.values`: a value's bounds.
    """
    target, rounded = contract.target, [exact(number) for number in answer]
    if contract.interval is None:
        said = []
        if target.task == "multiclass":
            said = [Finding(name=target.labels[0], is_=class_of(target, answer))]
        named = zip(_names(target), rounded, strict=True)
        return [*said, *(Finding(name=name, numbers=(Number(p),)) for name, p in named)]
    name, unit, level = target.labels[0], target.unit, f"{contract.interval.level:.0%}"
    bounds = (
        Number(exact(values[side]), f"{which} end of the {level} interval of {name}", unit)
        for side, which in (("low", "Lower"), ("high", "Upper"))
    )
    return [Finding(name=name, numbers=(Number(rounded[0], name, unit), *bounds))]


def _names(target: Target) -> Sequence[str]:
    """What each probability is of."""
    if target.task == "multilabel":
        return target.labels
    classes = target.names if target.task == "multiclass" else target.names[1:]
    return [f"{label}: {name}" for label in target.labels or ("label",) for name in classes]


def facts_of(contract: Contract) -> list[str]:
    """What is to be known of a model where its answer is read; nothing of any patient."""
    count = len(contract.members)
    how = "One network" if count == 1 else f"A mean of {contract.ensemble} of {count} networks"
    facts = [f"{how} that answers with {answers_text(contract)}"]
    if contract.covariates:
        facts.append(f"Beside the images it takes {', '.join(contract.covariates)}.")
    if contract.cohort:
        facts.append(f"Trained on {cohort_text(contract)}")
    facts += [f"Run {run['run']}: {run['said']}" for run in contract.training]
    return facts
