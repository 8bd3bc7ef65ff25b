"""Decoders: each sample is what its formula says, and one that is not decoded is told."""

import contextlib
import sys

import pytest

from beam_jobs.core.dicom import codestreams
from beam_jobs.core.dicom.codestreams import DECODERS
from trainer.machine import decoders
from trainer.machine.apart import Answer
from trainer.machine.decoders import SYNTAXES
from trainer.machine.samples import SAMPLES


def test_every_compressed_syntax_of_the_reader_is_tried() -> None:
    assert SYNTAXES.keys() == DECODERS.keys() == SAMPLES.keys()


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_sample_is_decoded_by_the_readers_own_decoder(syntax: str) -> None:
    assert decoders.decode(syntax) == DECODERS[syntax]


def test_an_image_that_is_not_the_samples_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = codestreams.decode_frame
    monkeypatch.setattr(codestreams, "decode_frame", lambda *args: whole(*args)[::-1])
    for syntax in SYNTAXES:
        with pytest.raises(ValueError, match="a pixel is off by"):
            decoders.decode(syntax)


@pytest.mark.parametrize("module", ["jpeg_ls", "openjpeg", "rle"])
def test_a_decoder_that_is_missing_is_the_one_reason_for_all_its_syntaxes(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    said = set()
    for syntax in SYNTAXES:
        with contextlib.suppress(ImportError):
            decoders.decode(syntax)
            said.add(syntax)
    assert len(said) == len(SYNTAXES) - {"jpeg_ls": 2, "openjpeg": 5, "rle": 1}[module]


def test_syntaxes_that_fail_alike_are_told_together() -> None:
    answers = [Answer(value="gdcm")] * 4 + [Answer(problem="no decoder")] * 8
    section = decoders.section(answers, Answer())
    (fault,) = section.faults
    assert fault.what == "8 of 12 transfer syntaxes do not decode: no decoder"
    assert [row.mark for row in section.rows] == ["", "", "fault", ""]
    assert decoders.section(answers, Answer(), {"no decoder"}).faults == ()


def test_no_second_decoder_is_a_note() -> None:
    gone = Answer(problem="No module named 'tensorflow_io'", missing="tensorflow_io")
    section = decoders.section([Answer(value="gdcm")] * 12, gone)
    assert (section.faults, section.rows[-1].mark) == ((), "note")
    broken = decoders.section([Answer(value="gdcm")] * 12, Answer(problem="undefined symbol"))
    assert broken.rows[-1].text.endswith("does not import: undefined symbol")
