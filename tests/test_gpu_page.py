"""What `docs/how-to/gpu.md` says of the locks, of TensorFlow's wheels and of precision."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest

from tests.test_images import installed_stack
from tests.test_packaging import LOCKS, ROOT, locked_version

PAGE = (ROOT / "docs/how-to/gpu.md").read_text(encoding="utf-8")
# A column of the page's tables and what stands behind the names of that stack's files.
COLUMNS = {"": 0, "-new": 1}


def table(heading: str) -> dict[str, list[str]]:
    """First cell -> the others, of the table whose head has these words."""
    lines = PAGE.partition(heading)[2].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(rows) > 2
    return {first: rest for first, *rest in rows}


STACKS = table("| default: `requirements.lock` |")


def built_for() -> dict[str, Any]:
    """What the installed TensorFlow was built for, read without importing it."""
    (file,) = (
        path
        for path in importlib.metadata.files("tensorflow") or []
        if str(path) == "tensorflow/python/platform/build_info.py"
    )
    text = Path(str(file.locate())).read_text(encoding="utf-8")
    pairs = re.search(r"OrderedDict\((\[.*\])\)", text)
    assert pairs
    return dict(ast.literal_eval(pairs[1]))


def test_the_stacks_are_those_of_the_locks():
    for lock, column in zip(LOCKS, COLUMNS.values(), strict=True):
        assert STACKS["Python"][column].split(", ") == list(LOCKS[lock])
        assert STACKS["TensorFlow"][column] == locked_version("tensorflow", "3.11", lock)
        has = locked_version("tensorflow-io", "3.11", lock) is not None
        assert STACKS["tensorflow-io, the second decoder"][column] == ("yes" if has else "no")


def test_tensorflow_was_built_for_what_the_page_says():
    built, column = built_for(), COLUMNS[installed_stack()]
    assert STACKS["built for CUDA"][column] == built["cuda_version"]
    assert STACKS["built for cuDNN"][column] == built["cudnn_version"]
    kernels, _, rest = STACKS["kernels for compute capability"][0].partition("; ")
    assert STACKS["kernels for compute capability"][1] == "the same"
    compiled = [f"sm_{each.replace('.', '')}" for each in kernels.split(", ")]
    assert rest == "from 9.0 on compiled by the driver"
    assert built["cuda_compute_capabilities"] == [*compiled, "compute_90"]


@pytest.mark.parametrize("stack", COLUMNS)
def test_cuda_is_that_of_the_locks(stack):
    text = (ROOT / f"docker/gpu{stack}.lock").read_text(encoding="utf-8")
    pins = dict(re.findall(r"(?m)^nvidia-([\w-]+)-cu12==(\S+)", text))
    column = COLUMNS[stack]
    assert STACKS["CUDA in `docker/gpu*.lock`: runtime"][column] == pins["cuda-runtime"]
    assert STACKS["cuDNN there"][column].partition(",")[0] == pins["cudnn"]
    assert STACKS["`ptxas` there, XLA's last compiler"][column] == pins["cuda-nvcc"]


def test_precision_is_what_auto_chooses(monkeypatch):
    import tensorflow as tf

    from trainer.training import devices

    config = tf.config
    monkeypatch.setattr(config, "list_physical_devices", lambda kind: ["a GPU"])
    rows = table("| GPU | compute capability |")
    for capabilities, precision, _ in rows.values():
        for capability in capabilities.split(", ") if precision else []:
            found = tuple(int(part) for part in capability.split("."))
            details = {"compute_capability": found}
            monkeypatch.setattr(
                config.experimental, "get_device_details", lambda gpu, details=details: details
            )
            assert devices.resolve_precision("auto") == precision, capability
