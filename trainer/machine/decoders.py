"""Decoders of pixel data, each tried on a tiny image of its transfer syntax.

Which one decodes a syntax is `beam_jobs.core.dicom`'s to say, and it is what is asked here.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence

from trainer.machine.apart import Answer, Trial
from trainer.machine.findings import Fault, Row, Section

# By number and name, to be told where not even the reader can be imported; a test holds them
# against the reader's own.
SYNTAXES = {
    "1.2.840.10008.1.2.4.50": "JPEG Baseline",
    "1.2.840.10008.1.2.4.51": "JPEG Extended",
    "1.2.840.10008.1.2.4.57": "JPEG Lossless",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless SV1",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K lossless",
    "1.2.840.10008.1.2.4.202": "HTJ2K lossless RPCL",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
    "1.2.840.10008.1.2.5": "RLE",
}
_NATIVE = "Implicit and Explicit Little Endian, Deflated, Explicit Big Endian"


def trials() -> list[Trial]:
    """The decoding of a sample of each of `SYNTAXES`."""
    function = f"{__name__}:decode"
    return [Trial(function=function, arguments={"syntax": syntax}) for syntax in SYNTAXES]


def decode(syntax: str) -> str:
    """Decodes a sample as the reader does.

    Returns:
      The library that decoded it.

    Raises:
      RejectedError: it does not decode.
      ValueError: to another image.
    """
    import numpy as np

    from beam_jobs.core.dicom.codestreams import DECODERS, decode_frame
    from beam_jobs.core.dicom.slice_header import SliceHeader
    from trainer.machine.samples import SAMPLES

    # pydicom says of each syntax anew that its decoder is missing, and not which.
    for module in _modules(syntax, DECODERS[syntax]):
        importlib.import_module(module)
    sample = SAMPLES[syntax]
    header = SliceHeader(
        path="the sample",
        file_size=0,
        transfer_syntax=syntax,
        pixel_offset=0,
        pixel_length=None,
        samples=1,
        photometric="MONOCHROME2",
        rows=sample.rows,
        columns=sample.columns,
        bits_allocated=8 if sample.bits == 8 else 16,
        bits_stored=sample.bits,
        pixel_representation=0,
    )
    found = decode_frame(header, sample.codestream).astype(np.int64)
    off = int(np.abs(found - sample.image).max())
    if off > sample.off:
        raise ValueError(f"a pixel is off by {off}, {sample.off} at most are expected")
    return DECODERS[syntax]


def _modules(syntax: str, decoder: str) -> tuple[str, ...]:
    """What pydicom's decoder of a syntax imports."""
    if decoder == "pyjpegls":
        return ("jpeg_ls",)
    if decoder == "pylibjpeg":
        return ("pylibjpeg", "rle" if SYNTAXES[syntax] == "RLE" else "openjpeg")
    return ()


def section(answers: Sequence[Answer], second: Answer, already: Collection[str] = ()) -> Section:
    """The section of the decoders.

    Args:
      answers: of `trials`.
      second: of the import of the second decoder, tensorflow-io.
      already: problems that another section tells, and how to mend them.
    """
    good: dict[str, list[str]] = {}
    bad: dict[str, list[str]] = {}
    for name, answer in zip(SYNTAXES.values(), answers, strict=True):
        if answer.problem:
            bad.setdefault(answer.problem, []).append(name)
        else:
            good.setdefault(answer.value, []).append(name)
    rows = [Row(name="none needed", text=_NATIVE)]
    rows += [Row(name=by, text=", ".join(names)) for by, names in good.items()]
    rows += [
        Row(name="fails", text=f"{', '.join(names)}: {problem}", mark="fault")
        for problem, names in bad.items()
    ]
    rows.append(_second_row(second))
    faults = tuple(
        Fault(
            what=f"{len(names)} of {len(SYNTAXES)} transfer syntaxes do not decode: {problem}",
            stops="convert and predict refuse such files, each with its reason",
            mend="pip install --force-reinstall --no-deps python-gdcm pyjpegls pylibjpeg "
            "pylibjpeg-openjpeg pylibjpeg-rle, or an environment made anew",
        )
        for problem, names in bad.items()
        if problem not in already
    )
    return Section(title="decoders", rows=tuple(rows), faults=faults)


def _second_row(second: Answer) -> Row:
    if second.missing == "tensorflow_io":
        text = "none (tensorflow-io, which TensorFlow 2.17 alone can load), for verify --against"
        return Row(name="second", text=text, mark="note")
    if second.problem:
        text = f"none for verify --against: tensorflow-io does not import: {second.problem}"
        return Row(name="second", text=text, mark="note")
    return Row(name="second", text="tensorflow-io, for verify --against")
