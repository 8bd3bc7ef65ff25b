"""A cohort's truth as a file, `truth/truth.json`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from beam_jobs.common.files import interface as files
from beam_jobs.phantoms.anatomy import CONTRAST, MARKER_CENTRE, MARKER_RADIUS, Head, Lesion
from beam_jobs.phantoms.plan import CohortTruth, Patient, PhantomConfig
from beam_jobs.phantoms.series import SeriesSpec


def write_truth(truth: CohortTruth, output: Path) -> None:
    """Write `output/truth/truth.json`."""
    text = json.dumps(_as_json(truth), indent=1)
    files.write_text(output / "truth" / "truth.json", text + "\n")


def read_truth(output: files.StrPath) -> CohortTruth:
    """The truth of a cohort that was written to `output`.

    Raises:
        FileNotFoundError: no `truth/truth.json` there: no phantom cohort, or one cut short.
    """
    text = files.read_text(files.join(output, "truth", "truth.json"))
    found = json.loads(text, object_hook=_tuples)
    patients = []
    for item in found["patients"]:
        lesion = Lesion(**item["head"].pop("lesion"))
        item["head"] = Head(**item["head"], lesion=lesion)
        item["series"] = tuple(SeriesSpec(**series) for series in item["series"])
        patients.append(Patient(**item))
    return CohortTruth(config=PhantomConfig(**found["config"]), patients=tuple(patients))


def _as_json(truth: CohortTruth) -> dict[str, Any]:
    """The truth; what only another cohort has is left out of the others'."""
    members = asdict(truth)
    for name in ("difficulty", "label_noise", "no_signal", "covariates"):
        if not members["config"][name]:
            del members["config"][name]
    if truth.config.task == PhantomConfig.task:
        del members["config"]["task"]
    for patient in members["patients"]:
        for owner, name in (
            (patient, "flipped"),
            (patient, "covariates"),
            (patient["head"]["lesion"], "mixture"),
            (patient["head"]["lesion"], "halo"),
        ):
            if not owner[name]:
                del owner[name]
        for series in patient["series"]:
            if not series["vendor"]:
                del series["vendor"]
    return {
        "about": "Phantom cohort of Voxelbeam. Points are patient LPS, mm. In every modality the "
        "lesion's voxels (a ring's rim) are those of the head beyond the contrast's threshold, in "
        "rescaled units.",
        "contrast": {name: CONTRAST[name]._asdict() for name in truth.config.modalities},
        "marker": {"canonical_centre": MARKER_CENTRE, "canonical_radius": MARKER_RADIUS},
        **members,
    }


def _tuples(item: dict[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(value) if isinstance(value, list) and key != "patients" else value
        for key, value in item.items()
    }
