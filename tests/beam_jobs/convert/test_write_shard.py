"""What a worker does once, and how often it reads a shard that it wrote."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.convert.write_shard import ShardWriter
from beam_jobs.core.manifest import read_manifest
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.record import PreparedCase
from tests.datasets import write_cases

FAULTS = """
import resource, sys
import numpy as np
from beam_jobs.convert.transforms import Setup
if sys.argv[1] == "worker":
    Setup().setup()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
volume = [np.ones(1 << 21, np.uint8) for _ in range(4)]
del volume
before = faults()
for _ in range(20):
    volume = [np.ones(1 << 21, np.uint8) for _ in range(4)]
    del volume
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_worker_keeps_the_memory_of_one_volume_for_the_next():
    faults = {
        who: int(subprocess.check_output([sys.executable, "-c", FAULTS, who]))
        for who in ("plain", "worker")
    }
    assert faults["worker"] < 100 < faults["plain"] / 5


def test_a_shard_is_read_back_once(tmp_path, opened):
    """In a store each further time is another download."""
    spec = PreprocessSpec(modalities=("T1w",), shape=(8, 8, 4))
    volume = np.ones(spec.schema.volume_shape, np.uint8)
    case = PreparedCase(patient_id="1", volume=volume, affine=np.eye(4), present=(True,), fold=0)
    write_cases(tmp_path, [case], spec.schema, folds=1, shards=1, spec=spec.to_json())
    (entry,) = read_manifest(tmp_path).shards
    opened.clear()
    nothing: Any = None
    writer = ShardWriter(
        store=nothing, spec=spec, schema=spec.schema, seed=0, tables=nothing, ticks=nothing
    )
    path = files.join(tmp_path, entry.name)
    assert writer._verified(entry.name, path, entry.fold, entry.patients) == entry
    assert opened == [path]
    Path(path).write_bytes(Path(path).read_bytes()[:-1])
    with pytest.raises(ContractError, match="truncated"):
        writer._verified(entry.name, path, entry.fold, entry.patients)
