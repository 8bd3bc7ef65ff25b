"""A model's answer of one patient as a Structured Report: TID 1500 in a Comprehensive SR (PS3.16).

    Imaging Measurement Report
      Observer: Device, Voxelbeam
      Comment: not for clinical use
      Image Library              every image that the model looked at, a group a series
      Imaging Measurements
        Measurement Group          one a finding: what it is of, and what it was made by
          Finding                  99VOXELBEAM, by the name that the labels have
          Algorithm                the model's sha256, what it was trained on
          Probability | value      equal to the number in the table of predictions

Every byte follows from the images' header, the answer and the software: no clock goes in, and UIDs
are hashes. The date of the content is therefore that of the study.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pydicom
from pydicom import Dataset

from beam_jobs.common.version import __version__
from beam_jobs.core.dicom_out.origin import derived_uid
from beam_jobs.core.dicom_out.outgoing import (
    MIDNIGHT,
    NAME,
    NO_DATE,
    encoded,
    quietly,
    without_clock,
)

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept

SCHEME = "99VOXELBEAM"  # of codes that no standard has
WARNING = (
    "Not for clinical use: for research. The answer of a statistical model, not of a medical "
    "device; no diagnosis and no treatment may rest on it."
)
SERIES = f"{NAME}: not for clinical use"
_COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
_SERIES_NUMBER = 9900  # behind those of scanners
_MEANING = 64  # most letters of a code's meaning (LO)
_TEXT = 10_000  # most letters of a text: far below what its attribute may have
# Standard codes: (code, scheme, meaning).
PROBABILITY = ("122157", "DCM", "Probability")
_PROCEDURE = ("363679005", "SCT", "Imaging procedure")
_COMMENT = ("121106", "DCM", "Comment")
_LIBRARY, _GROUP = ("111028", "DCM", "Image Library"), ("126200", "DCM", "Image Library Group")
_MODALITY, _SERIES = ("121139", "DCM", "Modality"), ("112002", "DCM", "Series Instance UID")
_SOURCE = ("260753009", "SCT", "Source")
_OTHER = "OT"  # a modality that is none of the standard's


class Instance(NamedTuple):
    """One object that an answer was made of, by its UIDs, and its series' Modality."""

    study: str
    series: str
    sop_class: str
    sop: str
    modality: str = ""


class Number(NamedTuple):
    """A number of a finding.

    Attributes:
      value: as the table of predictions has it.
      name: what it is: "" of a probability.
      unit: "" where it has none.
    """

    value: float
    name: str = ""
    unit: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a model says of a patient.

    Attributes:
      name: what it is of, in the labels' words.
      numbers: probability, or value and bounds; those that are not finite are left out.
      is_: the class that it says; "" where it says numbers alone.
    """

    name: str
    numbers: tuple[Number, ...] = ()
    is_: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Maker:
    """What made an answer.

    Attributes:
      sha256: of the model.
      facts: what else is to be known of it, a sentence each.
    """

    sha256: str
    facts: tuple[str, ...] = ()


def is_report(head: bytes) -> bool:
    """Whether a file that begins so is a report of ours."""
    return all(one.encode() in head for one in (_COMPREHENSIVE_SR, SERIES))


def structured_report(
    origin: Dataset, instances: Sequence[Instance], findings: Sequence[Finding], maker: Maker
) -> bytes:
    """A DICOM file that says what a model answered of a patient, filed in the images' study.

    Args:
      origin: of `origin.read_origin`, of an image of the study that it goes to.
      instances: what the answer was made of, at least one, in any order; those of other studies
        stand in Pertinent Other Evidence.
      findings: what was answered, at least one with a number or a class.
      maker: the model.

    Returns:
      The bytes: the same for the same arguments and the same versions of Voxelbeam and highdicom.
    """
    with quietly():
        return encoded(_document(origin, sorted(instances), findings, maker))


def _uid(origin: Dataset, instances: Sequence[Instance], *others: object) -> str:
    """One for equal content, another for any other (PS3.5 9): of all that content follows from.

    Not of model and images alone: covariates, and versions, change an answer too.
    """
    versions = (importlib.metadata.version(name) for name in ("highdicom", "pydicom"))
    said = (__version__, *versions, origin.to_json(), *map(repr, (instances, *others)))
    return derived_uid("report", *said)


def _document(
    origin: Dataset, instances: Sequence[Instance], findings: Sequence[Finding], maker: Maker
) -> Dataset:
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import ComprehensiveSR

    class Report(ComprehensiveSR):
        """What is said of the patient is `origin`; of objects of no standard class too."""

        def copy_patient_and_study_information(self, dataset: Dataset) -> None:
            pass

    study = origin.StudyInstanceUID
    # The first says whose study it goes to.
    first, *others = sorted(instances, key=lambda one: one.study != study)
    evidence = [_evidence(first, origin), *map(_evidence, others)]
    series = derived_uid("report series", study, maker.sha256, __version__)
    made: Dataset = Report(
        evidence=evidence,
        content=_content(findings, maker, derived_uid("tracking", study, maker.sha256)),
        series_instance_uid=series,
        series_number=_SERIES_NUMBER,
        sop_instance_uid=_uid(origin, instances, findings, maker),
        instance_number=1,
        manufacturer=NAME,
        manufacturer_model_name=NAME,
        software_versions=__version__,
        series_description=SERIES,
        is_complete=True,
        content_date=origin.StudyDate or NO_DATE,
        content_time=origin.StudyTime or MIDNIGHT,
        transfer_syntax_uid=pydicom.uid.ExplicitVRLittleEndian,
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name="Names of a model's labels")],
    )
    without_clock(made)
    items = list(made.ContentSequence)
    # Plain data sets: highdicom's own take as long to make as all the rest, many times over.
    made.ContentSequence = [*items[:-1], _library(instances), items[-1]]
    return made


def _evidence(instance: Instance, origin: Dataset | None = None) -> Dataset:
    image = Dataset()
    if origin is not None:
        image.update({one.tag: one for one in origin if one.keyword != "StudyInstanceUID"})
    image.StudyInstanceUID, image.SeriesInstanceUID = instance.study, instance.series
    image.SOPClassUID, image.SOPInstanceUID = instance.sop_class, instance.sop
    return image


def _library(instances: Sequence[Instance]) -> Dataset:
    """TID 1600, which TID 1500 requires: the images, by series."""
    groups = []
    for uid, found in itertools.groupby(instances, key=lambda one: one.series):
        images = list(found)
        kind = _item("HAS ACQ CONTEXT", "CODE", _coded(*_MODALITY))
        kind.ConceptCodeSequence = [_coded(*_modality(images[0].modality))]
        named = _item("HAS ACQ CONTEXT", "UIDREF", _coded(*_SERIES))
        named.UID = uid
        source = _coded(*_SOURCE)
        groups.append(_container(_GROUP, [kind, named, *(_image(one, source) for one in images)]))
    return _container(_LIBRARY, groups)


def _modality(modality: str) -> tuple[str, str, str]:
    known = {code.value: code.meaning for code in _codes("cid29")} | {_OTHER: "Other"}
    found = modality if modality in known else _OTHER
    return found, "DCM", known[found]


def _image(instance: Instance, name: CodedConcept) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = instance.sop_class
    reference.ReferencedSOPInstanceUID = instance.sop
    item = _item("CONTAINS", "IMAGE", name)
    item.ReferencedSOPSequence = [reference]
    return item


def _container(name: tuple[str, str, str], items: list[Dataset]) -> Dataset:
    item = _item("CONTAINS", "CONTAINER", _coded(*name))
    item.ContinuityOfContent = "CONTINUOUS"
    item.ContentSequence = items
    return item


def _item(relationship: str, kind: str, name: CodedConcept) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = relationship, kind
    item.ConceptNameCodeSequence = [name]
    return item


def _content(findings: Sequence[Finding], maker: Maker, tracking: str) -> Dataset:
    from highdicom import sr
    from pydicom.sr import codes

    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid("device", maker.sha256),
            name=NAME,
            manufacturer_name=NAME,
            model_name=f"{NAME} {__version__}",
        ),
    )
    groups = [_group(finding, maker, tracking) for finding in findings]
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_coded(*_PROCEDURE),
        imaging_measurements=groups,
    )
    root = report[0]
    warning = sr.TextContentItem(
        name=_coded(*_COMMENT), value=WARNING, relationship_type=sr.RelationshipTypeValues.CONTAINS
    )
    root.ContentSequence.insert(len(root.ContentSequence) - 1, warning)  # before the numbers
    item: Dataset = root
    return item


def _group(finding: Finding, maker: Maker, tracking: str) -> Any:
    from highdicom import sr

    named = _named(finding.name)
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=derived_uid(tracking, finding.name), identifier=_cut(finding.name)
        ),
        finding_type=named,
        algorithm_id=sr.AlgorithmIdentification(
            name=f"{NAME} model",
            version=f"sha256 {maker.sha256}",
            parameters=[_cut(fact) for fact in maker.facts],
        ),
        measurements=[
            sr.Measurement(
                name=_named(number.name) if number.name else _coded(*PROBABILITY),
                value=float(number.value),
                unit=_unit(number.unit),
            )
            for number in finding.numbers
            if math.isfinite(number.value)
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(name=named, value=_named(f"{finding.name}: {finding.is_}"))
        ]
        if finding.is_
        else [],
    )


def _coded(value: str, scheme: str, meaning: str) -> CodedConcept:
    from highdicom.sr import CodedConcept

    return CodedConcept(value, scheme, meaning)


def _named(name: str) -> CodedConcept:
    """A code of our own: of one name one, whichever model has the label."""
    return _coded(hashlib.sha256(name.encode()).hexdigest()[:16], SCHEME, _cut(name, _MEANING))


def _unit(unit: str) -> CodedConcept:
    """A unit by its code in UCUM, else as UCUM writes what it has no code for: {unit}."""
    if not unit:
        return _coded("1", "UCUM", "no units")
    if unit in {code.value for code in _codes("UCUM")}:
        return _coded(unit, "UCUM", unit)
    annotated = f"{{{unit}}}"
    if len(annotated) <= _MEANING and all("!" <= letter <= "z" for letter in unit):
        return _coded(annotated, "UCUM", unit)
    return _named(unit)


def _codes(of: str) -> list[Any]:
    """The codes of a scheme or a context group that the standard lists."""
    from pydicom.sr import codes  # it takes as long to import as all the rest

    listed = getattr(codes, of)
    return [getattr(listed, name) for name in listed.dir()]


def _cut(text: str, most: int = _TEXT) -> str:
    """A text as DICOM may hold it: printable, of so many letters."""
    words = " ".join(text.split())
    plain = "".join(one if one.isprintable() and one != "\\" else "?" for one in words)
    return plain or "?" if len(plain) <= most else f"{plain[: most - 3]}..."
