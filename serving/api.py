"""For Python users: a model's answers as a table, without a command line.

    from serving.api import load_model

    model = load_model("model")
    model.predict("dataset")         # records of a conversion
    model.predict("cohort/test")     # DICOM, prepared by the recipe in the model's contract

Paths are text or `os.PathLike`: local, `gs://`, `s3://`, `az://`, `https://` (to read), of DICOM
also zip and tar archives. Beam is not needed: many patients are faster predicted by
`voxelbeam predict`, whose answers are the same to the last bit.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator

import pandas as pd

from beam_jobs.common.cli import UsageError, require_utf8
from beam_jobs.common.files import interface as files
from beam_jobs.common.imports import quiet_tensorflow
from beam_jobs.common.named_file import read_named
from beam_jobs.convert.in_process import prepare_cohort
from beam_jobs.convert.patient_plans import plan_patients
from beam_jobs.convert.series_table import TableWriter
from beam_jobs.core.cohort.by_name.sidecars import listing
from beam_jobs.core.cohort.ids import PATIENT_FROM, IdPolicy
from beam_jobs.core.cohort.target import PLAIN
from beam_jobs.core.example import decode_case
from beam_jobs.core.record import PreparedCase
from serving.model import loaded_model
from serving.model.answers import CLASS, class_of, number_columns
from serving.model.contract import Contract
from serving.predict.covariates import NOTHING, Taken, of_table, require_table
from serving.predict.damaged_records import Reject, surviving_cases
from serving.predict.sources import Source, find_source, recipe_of, schema_of_record

__all__ = ["COLUMNS", "Contract", "Model", "load_model"]

# Of a binary model's answers.
COLUMNS = ("patient_id", *number_columns(PLAIN), "missing")
_BATCH = 8


class Model:
    """A model that answers.

    Attributes:
      contract: what it takes, what it is made of and what it was measured to do.
      sha256: of the whole model, by which it can be pinned.
    """

    def __init__(self, loaded: loaded_model.LoadedModel) -> None:
        self._loaded = loaded
        self.contract = loaded.contract
        self.sha256 = loaded.sha256

    def predict(
        self,
        source: files.StrPath | Iterable[PreparedCase] | Iterable[bytes],
        *,
        patient_from: str = "",
        covariates: files.StrPath | None = None,
        id_column: str = "patient_id",
    ) -> pd.DataFrame:
        """Answers for patients, a row each, in the order in which they are read.

        Args:
          source: a dataset's directory, a pattern of shards, DICOM (a directory, an archive, or a
            search in a DICOMweb service), or records: prepared cases or serialized Examples.
          patient_from: who is a patient ("directory", "study", "patient_id", "file_name"); "" takes
            <patient>/<modality>/ directories where there are any, else PatientID.
          covariates: a CSV of what the model takes of the patients of DICOM beside their images,
            with a column of each; records hold their own.
          id_column: of that CSV, the column of the patients' ids.

        Returns:
          patient_id; probability of the positive class and logit, both calibrated; spread, the
          standard deviation of the members' probabilities; missing, the modalities and covariates
          that the model looks at and the patient does not have, with commas between. Of classes
          and findings a column each, `probability_<name>`, `logit_<name>`, `spread_<name>`, of
          classes before them `class`, the most probable one; of values `value`, `low`, `high` (NaN
          where the model has no interval) and `spread`. What was refused stands in
          `.attrs["rejects"]`, a table with the columns of rejects.csv.

        Raises:
          TypeError: `source` is neither a path nor made of records.
          ValueError: `patient_from` is none of these.
          UsageError: there is nothing at `source`, `patient_from` or `covariates` is given for
            records, or the model takes covariates that are not given for DICOM.
          ContractError: the records are not of this model's contract.
          CommandError: a store refuses or fails.
        """
        if patient_from not in ("", *PATIENT_FROM):
            raise ValueError(f"patient_from {patient_from!r} is none of {', '.join(PATIENT_FROM)}")
        rejects: list[Reject] = []
        rows = []
        batch: list[PreparedCase] = []
        taken = None if covariates is None else self._table(covariates, id_column)
        for case in self._cases(source, rejects, patient_from, taken):
            batch.append(case)
            if len(batch) == _BATCH:
                rows += self._loaded.answer(batch)
                batch.clear()
        rows += self._loaded.answer(batch)
        target = self.contract.target
        numbers = number_columns(target)
        table = pd.DataFrame(
            [(row.patient_id, *(row.values[name] for name in numbers)) for row in rows],
            columns=["patient_id", *numbers],
        )
        if target.task == "multiclass":
            named = [class_of(target, row.answer(target)) for row in rows]
            table.insert(1, CLASS, pd.Series(named, dtype=str))
        table["missing"] = pd.Series([",".join(row.missing) for row in rows], dtype=str)
        table.attrs["rejects"] = pd.DataFrame(rejects)
        return table

    def _cases(
        self,
        source: files.StrPath | Iterable[PreparedCase] | Iterable[bytes],
        rejects: list[Reject],
        patient_from: str,
        taken: Taken | None,
    ) -> Iterator[PreparedCase]:
        records: Source | None = None
        if isinstance(source, str | os.PathLike):
            found = find_source(files.text(source), self.contract, model=self._loaded.path)
            if found.dicom is not None:
                if taken is None:
                    require_table(self.contract, model=self._loaded.path)
                return map(
                    (taken or NOTHING).of, self._of_dicom(found.dicom, rejects, patient_from)
                )
            records = found
        if patient_from:
            raise UsageError("patient_from is for DICOM; records have their conversion's ids")
        if taken is not None:
            raise UsageError("covariates are for DICOM; records hold their conversion's")
        if isinstance(source, str | os.PathLike):
            assert records is not None
            return self._of_shards(records, rejects)
        return map(self._case, source)

    def _table(self, path: files.StrPath, id_column: str) -> Taken:
        """What a CSV says of patients."""
        name = files.text(path)
        if not self.contract.covariates:
            raise UsageError(f"covariates: model {self._loaded.path} takes none")
        text = read_named(name)
        taken, _ = of_table(
            self.contract, text, source=name, id_column=id_column, id_policy=IdPolicy()
        )
        return taken

    def _case(self, record: PreparedCase | bytes) -> PreparedCase:
        contract = self.contract
        if isinstance(record, bytes):
            record = decode_case(record, schema_of_record(record, contract))
        if not isinstance(record, PreparedCase):
            raise TypeError(f"a prepared case or an Example's bytes required, {record!r} found")
        if contract.covariates:
            record.check(contract.schema)
            return contract.taken(record)
        alone = dataclasses.replace(record, covariates=())
        alone.check(contract.volumes)
        return alone

    def _of_shards(self, source: Source, rejects: list[Reject]) -> Iterator[PreparedCase]:
        for shard in source.shards:
            with files.open_read(shard) as stream:
                for record in surviving_cases(stream, shard, source.schema):
                    if isinstance(record, PreparedCase):
                        yield source.taken.of(record)
                    else:
                        rejects.append(record)

    def _of_dicom(
        self, root: str, rejects: list[Reject], patient_from: str
    ) -> Iterator[PreparedCase]:
        spec = recipe_of(self.contract, model=self._loaded.path)
        found = listing(root).entries
        plans = plan_patients(
            found, spec.modalities, spec.series_rules, root=root, patient_from=patient_from
        )
        tables = TableWriter(root=root, id_policy=IdPolicy())
        for case, refused in prepare_cohort(plans, spec, tables):
            rejects += map(dataclasses.asdict, refused)
            if case is not None:
                case.check(spec.schema)
                yield case


def load_model(path: files.StrPath, *, require_sha256: str = "") -> Model:
    """Loads a model that `voxelbeam export` wrote, from wherever it lies.

    Args:
      path: of its directory.
      require_sha256: what `voxelbeam export` printed of the only model to be loaded; of another
        one nothing but its bytes is read. "" loads any.

    Raises:
      UsageError: `require_sha256` is no sha256, or the path is not UTF-8.
      ContractError: no contract, a foreign one, no SavedModel of ours beside it, one that was
        changed since its export, or another than is required.
      CommandError: a store refuses or fails.
    """
    quiet_tensorflow()
    with files.fetched(path) as local:
        name = files.text(path)
        require_utf8(os.fspath(local))
        return Model(loaded_model.load_model(local, name=name, sha256=require_sha256))
