"""The batch job as one pipeline: parts of the patients, each predicted to its own file of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from beam_jobs.common.files import interface as files
from beam_jobs.common.progress_files import Ticks
from beam_jobs.convert.cases import Recipe
from beam_jobs.core.cohort.ids import IdPolicy, normalised_id
from beam_jobs.core.drift import Statistics
from beam_jobs.runners.engines import name_job
from beam_jobs.runners.job_server import job_server
from beam_jobs.runners.options import make_pipeline
from beam_jobs.runners.watch import prediction_progress, watch
from serving.model.answers import Prediction
from serving.model.cohort_statistics import of_series_table
from serving.model.integrity import Checked
from serving.predict.damaged_records import Reject
from serving.predict.images import Images
from serving.predict.part import PartPredictor
from serving.predict.sources import Source, recipe_of
from serving.predict.spool import rows_beside
from serving.predict.transforms import ModelInWorker, PredictDicom, PredictShards

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What a job found.

    Attributes:
      predictions: one a case, in no order.
      rejects: what was refused, as rows of rejects.csv.
      statistics: of all cases; `drift.NONE` where they were not counted.
      images: patient -> what its report needs; {} where none is written.
    """

    predictions: list[Prediction]
    rejects: list[Reject]
    statistics: Statistics
    images: dict[str, Images]


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
    reported: bool = False,
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
      reported: whether to note the images that each case of a DICOM source is made of.

    Raises:
      CommandError: the job failed.
    """
    contract = checked.contract
    name_job(options, "predict", output)
    total = len(requested) if requested is not None else len(source.expected) or None
    with (
        rows_beside(output) as rows,
        job_server(options) as engine,
        files.scratch("predict") as scratch,
    ):
        ticks = Ticks.below(str(scratch)) if engine.workers_here else Ticks()
        pipeline = make_pipeline(options, processes=1)
        predictor = PartPredictor(
            schema=source.schema,
            taken=source.taken,
            batch_size=batch_size,
            rows=rows,
            requested=None if requested is None else frozenset(map(normalised_id, requested)),
            counted=counted,
            looked_at=contract.modalities if reported else (),
            ticks=ticks.patients,
        )
        loaded = ModelInWorker(model, checked.sha256)
        if source.dicom is None:
            shards = PredictShards(source.shards, source.listed, loaded, predictor)
            pipeline | "Records" >> shards
        else:
            recipe = Recipe(
                root=source.dicom,
                spec=recipe_of(contract, model=model),
                id_policy=id_policy,
                patient_from=patient_from,
            )
            pipeline | "DICOM" >> PredictDicom(recipe, loaded, predictor)
        progress = prediction_progress(ticks, total)
        watch(pipeline.run, progress, engine=engine, private=id_policy.key is not None)
        answers, rejects, counts, images = rows.read()
    if counted and source.dataset is not None:
        patients = {answer.patient_id for answer in answers}
        counts += of_series_table(source.dataset, contract.schema.modalities, patients)
    return Answers(predictions=answers, rejects=rejects, statistics=counts, images=images)
