"""Imports of the libraries, tried: a package may be there and its compiled part not load."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence

from beam_jobs.common.imports import quiet_tensorflow
from trainer.machine.apart import Answer, Trial
from trainer.machine.findings import Fault, Mark, Row, Section


@dataclasses.dataclass(frozen=True, kw_only=True)
class Library:
    """A package that the project imports.

    Attributes:
      package: its name on an index.
      module: what is imported of it.
      stops: what does not work without it.
      extra: the project's extra that brings it, "" where the project requires it.
      shown: its name for a reader, "" for one whose version is not listed.
    """

    package: str
    module: str
    stops: str
    extra: str = ""
    shown: str = ""


def _needed(package: str, module: str, stops: str, shown: str = "") -> Library:
    return Library(package=package, module=module, stops=stops, shown=shown)


_DICOM = "convert, survey, and predict from DICOM"
_ALL = "every command that reads a dataset or DICOM"
_NETWORKS = "train, tune, saliency, export and predict"
_AWS = "AWS profiles and single sign-on, Beam's own s3://"
_GCP = "Dataflow, Google's federated credentials (dicomweb+https:// too), Beam's own gs://"
_DICOM_OUT = "answers as DICOM: predict --dicom_sr, saliency --dicom_pm"
_PAGES = "pages and charts of report, evaluate, tune and saliency"
# Light ones first: whatever fails to import because another does stands behind that.
LIBRARIES = (
    _needed("numpy", "numpy", _ALL, "numpy"),
    _needed("scipy", "scipy.ndimage", _ALL),
    _needed("pandas", "pandas", _ALL, "pandas"),
    _needed("pydicom", "pydicom", _DICOM, "pydicom"),
    _needed("nibabel", "nibabel", _DICOM),
    _needed("python-gdcm", "gdcm", _DICOM),
    _needed("pyjpegls", "jpeg_ls", "JPEG-LS files"),
    _needed("pylibjpeg", "pylibjpeg", "JPEG 2000 and RLE files"),
    _needed("pylibjpeg-openjpeg", "openjpeg", "JPEG 2000 files"),
    _needed("pylibjpeg-rle", "rle", "RLE files"),
    _needed("google-crc32c", "google_crc32c", _ALL),
    _needed("requests", "requests", "dicomweb+https://"),
    _needed("obstore", "obstore.store", "s3://, gs://, az:// and https://"),
    _needed("rich", "rich.console", "tables and bars on a terminal, and Keras: " + _NETWORKS),
    _needed("jinja2", "jinja2", _PAGES),
    _needed("markupsafe", "markupsafe", _PAGES),
    _needed("pillow", "PIL.Image", _PAGES),
    _needed("packaging", "packaging.version", "what this command says of versions"),
    _needed("threadpoolctl", "threadpoolctl", "convert"),
    _needed("zstandard", "zstandard", "convert"),
    _needed("protobuf", "google.protobuf.message", "convert, and all of TensorFlow", "protobuf"),
    _needed("grpcio", "grpc", "convert on Flink, tune on several machines"),
    _needed("apache-beam", "apache_beam", "convert, verify, survey and predict", "Beam"),
    _needed("pyarrow", "pyarrow.parquet", "predict into Parquet"),
    _needed("scikit-learn", "sklearn.metrics", "baseline, evaluate, and the scores of train"),
    _needed("matplotlib", "matplotlib.figure", _PAGES),
    _needed("h5py", "h5py", "runs' weights: " + _NETWORKS),
    _needed("tensorflow", "tensorflow", _NETWORKS, "TensorFlow"),
    _needed("tensorboard", "tensorboard.plugins.hparams.api", "tune"),
    _needed("keras", "keras", _NETWORKS, "Keras"),
    _needed("keras-tuner", "keras_tuner", "tune"),
    Library(package="tensorflow-io", module="tensorflow_io", extra="io", stops="verify --against"),
    Library(package="highdicom", module="highdicom", extra="dicom_out", stops=_DICOM_OUT),
    Library(package="boto3", module="boto3", extra="aws", stops=_AWS),
    Library(package="google-auth", module="google.auth", extra="gcp", stops=_GCP),
    Library(
        package="google-cloud-dataflow-client",
        module="google.cloud.dataflow",
        extra="gcp",
        stops="Dataflow",
    ),
)


def trials() -> list[Trial]:
    """The import of each of `LIBRARIES`."""
    function = f"{__name__}:load"
    return [Trial(function=function, arguments={"module": one.module}) for one in LIBRARIES]


def load(module: str) -> None:
    """Imports a module."""
    quiet_tensorflow()
    importlib.import_module(module)


@dataclasses.dataclass(kw_only=True)
class _Cause:
    """Why libraries do not import: one of them, and those that fail as it does.

    `missing` is the module that is not there, "" where that is not why.
    """

    first: Library
    problem: str
    missing: str
    others: list[str] = dataclasses.field(default_factory=list)


def section(
    answers: Sequence[Answer],
    found: Mapping[str, str],
    required: Mapping[str, str],
    *,
    locked: bool = True,
) -> Section:
    """The rows of the libraries.

    Args:
      answers: of `trials`.
      found: versions of what is installed.
      required: what the project requires, and of which version to install it; with none known, all
        that is in no extra.
      locked: whether this is a source tree, with its locks and its `make setup`.
    """
    pairs = list(zip(LIBRARIES, answers, strict=True))
    gone = {
        one.module.partition(".")[0]
        for one, answer in pairs
        if answer.problem and one.package not in found
    }
    absent: list[Library] = []
    causes: list[_Cause] = []
    good = 0
    for library, answer in pairs:
        good += not answer.problem and not library.extra
        # The second decoder is told among decoders.
        if not answer.problem or library.extra == "io":
            continue
        if library.package not in found:
            absent.append(library)
        elif any(f"'{name}" in answer.problem for name in gone):
            continue  # it fails because another is missing
        elif cause := next((one for one in causes if one.problem in answer.problem), None):
            cause.others.append(library.package)
        else:
            causes.append(_Cause(first=library, problem=answer.problem, missing=answer.missing))
    rows, faults = [], []
    for library in absent:
        needed = not library.extra and (library.package in required or not required)
        rows.append(_absent_row(library, needed=needed))
        if needed:
            faults.append(_absent_fault(library, required, locked=locked))
    for cause in causes:
        text = f"does not import: {cause.problem}"
        if cause.others:
            text += f"; nor do {', '.join(cause.others)}"
        needed = not cause.first.extra
        rows.append(Row(name=cause.first.package, text=text, mark="fault" if needed else "note"))
        if needed:
            faults.append(_broken_fault(cause, found, required, locked=locked))
    versions = [
        f"{one.shown} {found[one.package]}"
        for one in LIBRARIES
        if one.shown and one.package in found
    ]
    number = sum(not one.extra for one in LIBRARIES)
    mark: Mark = "fault" if faults else ""
    begin = [Row(name="versions", text=", ".join(versions))] if versions else []
    begin.append(Row(name="imports", text=f"{good} of {number} libraries", mark=mark))
    return Section(title="packages", rows=(*begin, *rows), faults=tuple(faults))


def _absent_row(library: Library, *, needed: bool) -> Row:
    extra = f" (pip install 'voxelbeam[{library.extra}]')" if library.extra else ""
    return Row(
        name=library.package,
        text=f"not installed, so without: {library.stops}{extra}",
        mark="fault" if needed else "note",
    )


def _absent_fault(library: Library, required: Mapping[str, str], *, locked: bool) -> Fault:
    setup = "`make setup`, or " if locked else ""
    return Fault(
        what=f"{library.package} is not installed",
        stops=library.stops,
        mend=f"{setup}pip install '{library.package}{required.get(library.package, '')}'",
    )


def _broken_fault(
    cause: _Cause, found: Mapping[str, str], required: Mapping[str, str], *, locked: bool
) -> Fault:
    library = cause.first
    others = f", and all that needs {', '.join(cause.others)}" if cause.others else ""
    wanted = f"{library.package}{required.get(library.package, '')}"
    # Without --no-deps pip would bring the newest numpy, too.
    install = (
        f"pip install {cause.missing.partition('.')[0]}"
        if cause.missing
        else f"pip install --force-reinstall --no-deps '{wanted}'"
    )
    setup = " by `make setup`" if locked else ""
    return Fault(
        what=f"{library.package} {found[library.package]} does not import: {cause.problem}",
        stops=f"{library.stops}{others}",
        mend=f"{install}, or an environment made anew{setup}",
    )
