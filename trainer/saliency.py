"""Where in their volumes a run's networks found what they predict: maps for chosen patients.

    OUT/
      saliency.html      slices with the map laid over them; needs nothing but itself
      saliency.json      the numbers
      <id>.nii.gz        the map on the record's grid, positive towards the positive class, the
                         class or finding that is explained, or a greater value: a volume a
                         modality, in the run's order (one volume in all for Grad-CAM where it
                         cannot tell modalities apart)

A patient is explained by the members that did not train on it: its fold's, or, without a label,
all of them; their mean logit is what is explained: of a class among several its logit against the
rest. Covariates stay as they are.
"""

from __future__ import annotations

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect

    expect("python -m trainer.saliency")

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beam_jobs.common.cli import EXIT_OK, LIST, Parser, UsageError, items, run
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.common.imports import quiet_tensorflow
from beam_jobs.common.json_file import own_json, require_own
from beam_jobs.common.printable import counted, printable
from beam_jobs.common.terminal import row
from beam_jobs.core.manifest import read_manifest
from trainer.explain.attribution import MAP_METHODS
from trainer.explain.cases import choose, output_of
from trainer.explain.summary import (
    FORMAT,
    JSON_NAME,
    MAP_SUFFIX,
    PAGE_NAME,
    correlation_text,
    label_text,
    summarise,
)
from trainer.training.run_files import Run

PROG = "python -m trainer.saliency"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        description="Lays over patients' slices how much each voxel moved the network's answer, "
        "and checks that networks with random weights give other maps.",
        examples=(
            f"  {PROG} --run run --data dataset --output saliency\n"
            f"  {PROG} --run run --data dataset --patients 00005 00109 \\\n"
            "      --method gradcam --output cam\n"
            f"  {PROG} --run run --data dataset --output saliency \\\n"
            "      --dicom_pm maps --dicom cohort/train"
        ),
    )
    add = parser.add_argument
    add("--run", required=True, help="directory of a finished training run")
    add("--data", required=True, metavar="DIR", help="the dataset that it was trained on")
    add(
        "--patients",
        help="ids (default: of each class the most confident right and wrong out of fold)",
        **LIST,
    )
    add("--class", metavar="NAME", help="class to explain (default: the one predicted)")
    add("--label", metavar="NAME", help="finding to explain, likewise")
    add("--method", default=MAP_METHODS[0], choices=MAP_METHODS, help="how voxels are weighed")
    add("--output", required=True, metavar="OUT", help="directory to write into")
    add(
        "--dicom_pm",
        metavar="PM",
        help="also write each map as a DICOM Parametric Map on the series it explains: into a "
        "directory, or by STOW-RS to dicomweb+https://... (needs --dicom and the extra dicom_out)",
    )
    add("--dicom", metavar="INPUT", help="for --dicom_pm: the input that the dataset was made of")
    return parser


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    args = _parser().parse_args(argv)
    files.require_writable(args.output)
    if not files.is_remote(args.output) and files.stat(args.output) is not None:
        raise UsageError(f"--output {args.output}: a file, a directory is needed")
    if (args.dicom_pm is None) != (args.dicom is None):
        raise UsageError(
            "--dicom_pm PM and --dicom INPUT go together: the maps are laid on the input's series"
        )
    trained = Run.load(args.run)
    manifest = read_manifest(args.data)
    if trained.dataset_fingerprint != manifest.dataset_fingerprint:
        raise ContractError(
            f"--data: dataset_fingerprint: {manifest.dataset_fingerprint[:12]} in {args.data}, "
            f"{trained.dataset_fingerprint[:12]} in run {args.run}"
        )
    wanted = None if args.patients is None else items(args.patients)
    if wanted == ():
        raise UsageError("--patients names nobody")
    asked = {name: getattr(args, name) for name in ("class", "label")}
    chosen = choose(trained, manifest, wanted, output_of(trained.target, asked))
    maps = files.file_names((one.patient_id for one in chosen), MAP_SUFFIX).values()
    _require_own(args.output, maps)
    sources = None
    if args.dicom_pm is not None:
        from trainer.explain.dicom_maps import find_sources, write_maps  # pydicom takes a while

        where = (args.dicom_pm, args.dicom, args.data)
        sources = find_sources(*where, manifest, chosen, trained.modalities)
    quiet_tensorflow()
    # TensorFlow and drawing libraries take seconds to import.
    from trainer.explain.explainer import explain
    from trainer.reports.saliency import write_report

    explained = explain(trained, args.data, manifest, chosen, method=args.method)
    summary = summarise(trained, explained, method=args.method)
    write_report(args.output, summary, explained)
    for patient in summary["patients"]:
        row(patient["patient_id"], _line(patient))
    for warning in summary["warnings"]:
        row("mind", warning)
    row("maps", f"{len(explained)} and {JSON_NAME} in {args.output}")
    row("report", files.join(args.output, PAGE_NAME))
    if sources is not None:
        written = write_maps(sources, trained, explained, method=args.method)
        row("dicom", f"{counted(written, 'Parametric Map')} in {args.dicom_pm}")
    return EXIT_OK


def _require_own(directory: str, maps: Iterable[str]) -> None:
    """Refuses a directory where somebody else's file has the name of one to be written.

    Images are named after patients too.
    """
    before = own_json(files.join(directory, JSON_NAME), FORMAT)
    own = set()
    if before is not None:
        patients = before.get("patients")
        listed = patients if isinstance(patients, list) else []
        own = {
            JSON_NAME,
            PAGE_NAME,
            *(str(one.get("map")) for one in listed if isinstance(one, dict)),
        }
    require_own(directory, (JSON_NAME, PAGE_NAME, *maps), own, flag="--output")


def _line(patient: Mapping[str, Any]) -> str:
    """A patient's line on the terminal."""
    label = "no label" if patient["label"] is None else f"label {label_text(patient['label'])}"
    check = patient["random_weights"]
    start = f"{label}, {_answer(patient)}: "
    if patient["half_in"] is None:
        return f"{start}an empty map"
    return (
        f"{start}half of the map in {100 * patient['half_in']:.1f} % of the head; rank correlation "
        f"with random weights {correlation_text(check['rank_correlation'])}, of sizes "
        f"{correlation_text(check['rank_correlation_of_sizes'])}"
    )


def _answer(patient: Mapping[str, Any]) -> str:
    """What is explained, and how much of it there is."""
    if "value" in patient:
        return f"value {patient['value']:.4g}"
    what = [f"{kind} {printable(patient[kind])}, " for kind in ("class", "finding")
            if kind in patient]  # fmt: skip
    return f"{''.join(what)}logit {patient['logit']:+.2f}"


if __name__ == "__main__":
    run(main, PROG)
