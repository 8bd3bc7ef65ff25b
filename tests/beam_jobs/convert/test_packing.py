"""What waits for a grouping is small: one process holds it, of every file at once."""

import pickle

import numpy as np

from beam_jobs.common.files import interface as files
from beam_jobs.convert import transforms
from beam_jobs.convert.series_table import TableWriter
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.core.dicom.headers import SliceHeader, index_files
from beam_jobs.core.preprocess import DEFAULT_MODALITIES
from beam_jobs.phantoms.series import SeriesSpec, write_series

SLICES = 128


def test_a_header_on_its_way_takes_a_seventh_of_its_pickle_and_no_call(tmp_path, monkeypatch):
    pickled: list[object] = []

    def counted(self: tuple[object, ...]) -> tuple[object, ...]:
        """What pickle calls, in Python, for each named tuple."""
        pickled.append(self)
        return tuple(self)

    for kind in (SliceHeader, files.Entry):
        monkeypatch.setattr(kind, "__getnewargs__", counted)
    for modality in ("T1w", "T2w"):
        spec = SeriesSpec(modality=modality, rows=4, columns=4, slices=SLICES)
        write_series(spec, tmp_path / "cohort" / "00001" / modality, lambda xyz: np.ones((4, 4)))
    source = transforms.Input(root=str(tmp_path / "cohort"), modalities=DEFAULT_MODALITIES)
    tables = TableWriter(root=source.root, id_policy=IdPolicy())
    chunks = list(transforms._chunks(source))
    read = transforms._ReadHeaders(tables, "", "")
    packs = [pack for chunk in chunks for pack in read.process(chunk)]
    assert len(packs) == 4
    plan = transforms._plan(("dir:00001", [pack for _, pack in packs]), source)
    headers = [
        header for stack in transforms.unpack(plan[2]).series.values() for header in stack.headers
    ]
    assert sorted(header.path for header in headers) == [e.path for e in files.entries(source.root)]
    assert len(pickled) == 2  # the first of each series, for its row
    monkeypatch.undo()
    assert headers == index_files(header.path for header in headers)[0]
    whole = len(pickle.dumps(headers))
    assert sum(len(pack) for _, pack in packs) < whole / 7
    assert len(plan[2]) < whole / 7
