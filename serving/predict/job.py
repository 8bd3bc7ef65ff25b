"""The batch job as one pipeline: cases -> answers -> rows, and what all of them look like."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from beam_jobs.common.files import interface as files
from beam_jobs.common.progress_files import Ticks
from beam_jobs.convert.cases import CasesFromDicom
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.core.drift import Statistics
from beam_jobs.runners.engines import name_job
from beam_jobs.runners.job_server import job_server
from beam_jobs.runners.options import make_pipeline
from beam_jobs.runners.watch import prediction_progress, watch
from serving.model.cohort_statistics import of_series_table
from serving.model.contract import Contract
from serving.model.integrity import Checked
from serving.model.loaded_model import Prediction
from serving.predict.damaged_records import Reject
from serving.predict.sources import Source, recipe_of
from serving.predict.spool import read_rows, rows_directory
from serving.predict.transforms import KeepRequested, Predict, ReadShards, Summarise, WriteRows

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What a job found.

    Attributes:
      predictions: one a case, in no order.
      rejects: what was refused, as rows of rejects.csv.
      statistics: of all cases; `drift.NONE` where they were not counted.
    """

    predictions: list[Prediction]
    rejects: list[Reject]
    statistics: Statistics


def run_job(
    source: Source,
    checked: Checked,
    *,
    model: str,
    output: str,
    options: PipelineOptions,
    id_policy: IdPolicy,
    batch_size: int,
    patient_from: str = "",
    requested: Sequence[str] | None = None,
    counted: bool = False,
) -> Answers:
    """Predicts every case of a source.

    Args:
      source: of `find_source`.
      checked: the model's contract, and which model it is.
      model: the model's path; every worker process loads it.
      output: the job's output, beside which its rows lie while it runs.
      options: Beam's.
      id_policy: of the ids of a DICOM source.
      batch_size: most patients a call of the model gets.
      patient_from: who is a patient of a DICOM source (`ids.PATIENT_FROM`, or "").
      requested: patients to predict, as the input has them; None for all.
      counted: whether to count what the cases look like.

    Raises:
      CommandError: the job failed.
    """
    contract = checked.contract
    name_job(options, "predict", output)
    total = len(requested) if requested is not None else len(source.expected) or None
    with (
        rows_directory(output) as directory,
        job_server(options) as engine,
        files.scratch("predict") as scratch,
    ):
        ticks = Ticks.below(str(scratch)) if engine.workers_here else Ticks()
        pipeline = make_pipeline(options, processes=1)
        cases = pipeline | "Cases" >> _cases(source, contract, model, id_policy, patient_from)
        examples = cases.examples | "Keep requested" >> KeepRequested(requested)
        predictions = examples | "Predict" >> Predict(
            model, sha256=checked.sha256, batch_size=batch_size, ticks=ticks.patients
        )
        rows = [predictions, cases.rejects]
        if counted:
            summary = Summarise(contract.schema, requested)
            rows.append((examples, *cases.series) | "Summarise" >> summary)
        tuple(rows) | "Write rows" >> WriteRows(directory)
        progress = prediction_progress(ticks, total)
        watch(pipeline.run, progress, engine=engine, private=id_policy.key is not None)
        answers, rejects, found = read_rows(directory)
    if counted and source.dataset is not None:
        patients = {answer.patient_id for answer in answers}
        found += of_series_table(source.dataset, contract.schema.modalities, patients)
    return Answers(predictions=answers, rejects=rejects, statistics=found)


def _cases(
    source: Source, contract: Contract, model: str, id_policy: IdPolicy, patient_from: str
) -> Any:
    """The transform from a pipeline's root to `Cases`."""
    if source.dicom is None:
        return ReadShards(source.shards, contract.schema, source.listed)
    return CasesFromDicom(
        root=source.dicom,
        spec=recipe_of(contract, model=model),
        schema=contract.schema,
        id_policy=id_policy,
        patient_from=patient_from,
    )
