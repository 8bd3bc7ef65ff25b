"""What a conversion prints: the plan before it, shards and sums after it."""

from __future__ import annotations

from collections.abc import Mapping

from beam_jobs.common import cli
from beam_jobs.common.csv_table import read_own_table
from beam_jobs.common.files import interface as files
from beam_jobs.common.printable import counted
from beam_jobs.common.progress_files import Ticks, Units, lines
from beam_jobs.common.terminal import row
from beam_jobs.convert.flags import Conversion
from beam_jobs.convert.ours import REJECTS_NAME
from beam_jobs.convert.planning import Planner, workers_for
from beam_jobs.core.cohort.balance import counts_of, lacking, quartiles
from beam_jobs.core.cohort.by_name.sidecars import listing
from beam_jobs.core.cohort.folds import patients_a_shard
from beam_jobs.core.cohort.layout import find_owners, nobodys_hint, patients_named
from beam_jobs.core.cohort.target import Label, Target
from beam_jobs.core.manifest import MANIFEST_NAME, TEST, Manifest, Place
from beam_jobs.core.reasons import Reason

_CONVERTED_SHOWN = 20
_LABELS_SHOWN = 12


def print_plan(conversion: Conversion, *, listed: bool) -> None:
    """What is going to be written, as far as names alone and no headers say.

    Args:
      conversion: what is requested.
      listed: list a store's files for it, which else is the workers' work.
    """
    paths = conversion.files
    if listed and not paths:
        paths = tuple(entry.path for entry in listing(conversion.input).entries)
    record_bytes = conversion.planner.record_bytes
    megabytes = record_bytes / 1e6
    owners = find_owners(
        paths,
        conversion.spec.modalities,
        root=conversion.input,
        patient_from=conversion.planner.patient_from,
    )
    patients = len(patients_named(paths, owners))
    if not patients:
        row("plan", f"records of {megabytes:.1f} MB; headers will show how many patients")
        return
    # Measured: 0.2 to 0.3 GB a worker, and less than 1 kB a file where plans are gathered.
    row(
        "plan",
        f"about 0.3 GB a process and {0.3 + 1e-6 * len(paths):.1f} GB where plans are "
        f"gathered; on Dataflow {counted(workers_for(len(paths)), 'worker')} of two cores",
    )
    most = conversion.planner.patients_per_shard
    per_shard = most or patients_a_shard(patients, record_bytes)
    row(
        "plan",
        f"{counted(len(paths), 'file')}, {counted(patients, 'patient')}; records of "
        f"{megabytes:.1f} MB, {patients * megabytes:.0f} MB in shards of up to "
        f"{counted(per_shard, 'patient')} "
        f"({per_shard * megabytes:.0f} MB)",
    )


def print_known(planner: Planner, *, listed: bool) -> None:
    """What labels and covariates were taken for.

    Args:
      planner: who has read them.
      listed: tell the balance too.
    """
    labels, covariates = planner.labels, planner.covariates
    if labels is not None and labels.choice:
        row("labels", labels.choice)
    if labels is not None and listed:
        values = list(labels.by_spelling.values())
        balance = counts_of(labels.target, values, quartiles(values))
        said = balance_in_words(labels.target, balance)
        findings = [one for one in values if isinstance(one, tuple)]
        unknown = {
            name: sum(one[place] is None for one in findings)
            for place, name in enumerate(labels.target.labels)
        }
        if any(unknown.values()):
            gaps = ", ".join(f"{name} of {count}" for name, count in unknown.items() if count)
            said = f"{said}; not known: {gaps}"
        row("labels", f"{counted(len(labels), 'patient')}: {said}")
    if covariates is not None:
        kinds = (
            f"{one.name} number"
            if one.is_number
            else f"{one.name} category of {', '.join(one.categories)}"
            for one in covariates.covariates
        )
        row("covariates", f"{counted(len(covariates), 'patient')}: {'; '.join(kinds)}")
        for name, said in covariates.rounded.items():
            row("covariates", f"{name}: {said}")


def print_shards(ticks: Ticks, seconds: float) -> None:
    """How fast it went; which shards were converted and why, where an earlier run's were kept."""
    shards: dict[str, str] = {}
    for line in lines(ticks.shards):
        name, why = line.split(" ", 1)
        shards.setdefault(name, why)  # work that was done again found its own shard, and kept it
    if not shards:
        return
    kept = sum(why == "kept" for why in shards.values())
    row("shards", f"{kept} kept, {len(shards) - kept} converted")
    row("time", f"{seconds:.1f} s, {Units(ticks.files).done() / seconds:.0f} files a second")
    again = [(name, why) for name, why in sorted(shards.items()) if why not in ("kept", "new")]
    for name, why in again[:_CONVERTED_SHOWN]:
        row("", f"{name}: {why}")


def print_sums(conversion: Conversion) -> bool:
    """What became of the input.

    Returns:
      Whether all of it was accepted.

    Raises:
      CommandError: there is no dataset.
    """
    output = conversion.output
    path, rejects = (files.join(output, name) for name in (MANIFEST_NAME, REJECTS_NAME))
    if not files.exists(path):
        if not files.exists(rejects):
            raise cli.CommandError(f"the job ended without a dataset in {output}")
        found = read_own_table(rejects, ("reason",))
        nobodys = sum(line["reason"] == Reason.NO_PATIENT_ID.value for _, line in found)
        hint = nobodys_hint(nobodys, conversion.planner.patient_from)
        raise cli.CommandError(
            f"no series of {', '.join(conversion.spec.modalities)} in "
            f"{files.told(conversion.input)} could be converted; "
            f"{f'{hint}; ' if hint else ''}{rejects} says why"
        )
    manifest = Manifest.loads(files.read(path))
    used, series = manifest.counts["files"], manifest.counts["series"]
    patients = manifest.counts["patients"]
    row(
        "files",
        f"{sum(used.values())} = {used['used']} used + {used['unused']} unused by rule "
        f"+ {used['rejected']} rejected",
    )
    row(
        "series",
        f"{series['used']} used, {series['unused']} unused by rule, {series['rejected']} rejected",
    )
    row("patients", f"{patients['converted']} converted, {patients['rejected']} rejected")
    if conversion.planner.labels is not None:
        row(
            "labels",
            f"{counted(patients['without_label'], 'patient')} without a label, "
            f"{counted(patients['labels_without_patient'], 'label')} without a patient",
        )
    _print_folds(manifest)
    if unknown := manifest.counts.get("covariates_unknown"):
        said = ", ".join(f"{name} {count}" for name, count in unknown.items() if count)
        row("covariates", f"not known of patients converted: {said or 'none'}")
    if manifest.counts["reasons"]:
        reasons = ", ".join(f"{code} {n}" for code, n in manifest.counts["reasons"].items())
        row("reasons", f"{reasons}; see series.csv and rejects.csv")
    if several := patients.get("people_in_several_studies"):
        row(
            "mind",
            f"{counted(several, 'PatientID')} in several studies, each a patient: --groups keeps "
            "them in one fold",
        )
    nobodys = manifest.counts["reasons"].get(Reason.NO_PATIENT_ID.value, 0)
    if hint := nobodys_hint(nobodys, conversion.planner.patient_from):
        row("mind", hint)
    size = sum(shard.bytes for shard in manifest.shards)
    row("dataset", f"{counted(len(manifest.shards), 'shard')}, {size / 1e6:.1f} MB in {output}")
    return not (used["rejected"] or patients["rejected"])


def _print_folds(manifest: Manifest) -> None:
    """Labels of each fold; where groups or a file decided, what follows from that."""
    decided = manifest.counts.get("folds", {})
    groups: dict[str, int] = decided.get("groups", {})
    if groups:
        row(
            "groups",
            f"{sum(groups.values())} in {manifest.folds} folds, none in two; the largest has "
            f"{counted(decided['largest_group'], 'patient')}",
        )
    if unknown := decided.get("listed_without_patient"):
        row("mind", f"not in the input: {counted(unknown, 'patient')} of the groups or folds given")
    target = manifest.schema.target
    found: dict[Place, list[Label | None]] = {}
    for shard in manifest.shards:
        found.setdefault(shard.place, []).extend(patient.label for patient in shard.patients)
    for place, balance in manifest.label_balance.items():
        if place == "unlabelled":
            row(place, str(sum(balance.values())))
            continue
        counts = balance_in_words(target, balance)
        if target.task == "multilabel":
            there = found[TEST if place == TEST else int(place)]
            counts = f"{counted(len(there), 'patient')}: {counts or 'none with any'}"
        of = f" of {groups[place]} groups" if place in groups else ""
        row(place if place == TEST else f"fold {place}", f"{counts}{of}")
    if target.is_plain and manifest.fold_rule == "patients":
        return
    folds = [
        [label for label in found.get(fold, ()) if label is not None]
        for fold in range(manifest.folds)
    ]
    if lack := lacking(target, folds):
        score = "AUC" if target.is_plain else "score"
        row("mind", f"{lack}: such a fold has no {score}, and the trainer refuses it")


def balance_in_words(target: Target, balance: Mapping[str, int]) -> str:
    """How many patients of which label: "3 of label 0, 2 of label 1"."""
    unknown = target.text(None)
    of = {"multilabel": "with", "regression": "of"}.get(target.task, "of class")
    of = "of label" if target.is_plain else of
    said = [
        f"{count} without a label" if label == unknown else f"{count} {of} {label}"
        for label, count in balance.items()
    ]
    more = len(said) - _LABELS_SHOWN
    return ", ".join(said if more < 2 else [*said[:_LABELS_SHOWN], f"{more} more"])
