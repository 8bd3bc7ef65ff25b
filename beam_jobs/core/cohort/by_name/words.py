"""What the name of a NIfTI file says: whose it is, which modality, whether it is a mask.

Converters drop what headers said, and people write it into names: BIDS
(`sub-01_ses-2_ce-gd_T1w`), BraTS before and since 2023 (`..._t1ce`, `...-t1c`), nnU-Net
(`case_0001`, a number a channel), or the description of the series. Texts are read by the built-in
rules of descriptions, so that a name means what the same words mean in a header.
"""

from __future__ import annotations

import functools
import posixpath
import re
from collections.abc import Sequence
from typing import NamedTuple

from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.builtin_rules import BUILT_IN, T1, T1CE, TEXT_RULES, normalised
from beam_jobs.core.cohort.contrast import Agent, agent_in
from beam_jobs.core.cohort.rules import file_name

_SUFFIX = re.compile(r"\.nii(?:\.gz)?$", re.IGNORECASE)
_TOKEN = re.compile(r"[^_\-. +]+")
# What cohorts call the four modalities, where the rules of descriptions do not know it: BraTS since
# 2023 (t1n: native, t2f: FLAIR), LUMIERE (CT1), BIDS (UNIT1, of an MP2RAGE).
_MEANT = {
    "t1n": "t1 plain", "t2f": "flair", "fla": "flair", "fl": "flair", "ct1": "t1 gd",
    "t1post": "t1 post gd", "t1pre": "t1 pre gd", "unit1": "t1",
}  # fmt: skip
_MASK = re.compile(r"\w*mask\w*|\w*seg|segm\w*|glistr\w*")
# As a name's first word it may be what a cohort calls its patients.
_MASK_AFTER = re.compile(r"labels?|a?parc\w*|rois?|gtv\w*|lesions?|wmh|annotations?|contours?")
# Where a name begins to tell of the image, not of the patient.
_IMAGE_WORD = re.compile(
    r"(?:[es]|3d|2d|o?ax|o?sag|o?cor|tra)?t[12](?:[a-z]\w*)?|ct1|unit1|\w*flair\w*|fl|fla|"
    rf"\w*mp2?rage\w*|[iw]?pdw?|adc|dwi|swi|bold|{_MASK.pattern}|{_MASK_AFTER.pattern}",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"\d{4}")  # nnU-Net's, at a name's end
BIDS_SUBJECT = re.compile(r"sub-[A-Za-z0-9+]+(?=_|$)")
_BIDS_BEGIN = re.compile(r"^sub-[A-Za-z0-9+]+_(?:ses-[A-Za-z0-9+]+_)?")


class Parts(NamedTuple):
    """A name, taken apart.

    Attributes:
      subject: what stands before the first word that tells of the image; of `sub-01_...` it is
        `sub-01`; all of the name where no word is known.
      word: that word, in small letters, nnU-Net's number of a channel, or "".
      rest: the name from there on.
    """

    subject: str
    word: str
    rest: str


class Said(NamedTuple):
    """What a name says of the image.

    Attributes:
      modality: one of the wanted or built-in ones, "" where it is none that is known.
      mask: it is a mask, a segmentation or something of the kind.
    """

    modality: str
    mask: bool


def stem_of(path: str) -> str:
    """A NIfTI file's name without `.nii` or `.nii.gz`.

    >>> stem_of("d/1.zip!/1/1_t1.NII.gz")
    '1_t1'
    """
    return _SUFFIX.sub("", file_name(path))


@functools.lru_cache(maxsize=1 << 16)
def parts_of(stem: str, modalities: tuple[str, ...] = ()) -> Parts:
    """The name as patient and image; nothing of the image is understood yet.

    Args:
      stem: of `stem_of`.
      modalities: the wanted ones: their names are words of the image, too.

    >>> parts_of("BraTS-GLI-00001-000-t1n")
    Parts(subject='BraTS-GLI-00001-000', word='t1n', rest='t1n')
    >>> parts_of("sub-01_ses-2_T1w"), parts_of("case_07_0001").subject
    (Parts(subject='sub-01', word='t1w', rest='T1w'), 'case_07')
    """
    wanted = {name.casefold() for name in modalities}
    tokens = list(_TOKEN.finditer(stem))
    said = BIDS_SUBJECT.match(stem)
    for number, token in enumerate(tokens):
        if said and token.start() < said.end():
            continue
        word = token[0].casefold()
        is_channel = 0 < number == len(tokens) - 1 and _CHANNEL.fullmatch(word)
        if is_channel or word in wanted or _IMAGE_WORD.fullmatch(word):
            begin = token.start()
            subject = said[0] if said else stem[:begin].rstrip("_-. +")
            return Parts(subject, word, stem[begin:])
    return Parts(said[0] if said else stem, "", "")


def subject_of(path: str, modalities: Sequence[str] = ()) -> str:
    """Whose file it is by its name alone, "" where that begins with a word of the image."""
    return parts_of(stem_of(path), tuple(modalities)).subject


def said_of(path: str, modalities: Sequence[str]) -> Said:
    """What the name of a NIfTI file says of the image.

    Args:
      path: of the file; names of directories that its name begins with are those of people.
      modalities: the wanted ones.
    """
    stem = _BIDS_BEGIN.sub("", stem_of(path), count=1)
    directories = posixpath.dirname(files.logical(path)).split("/")
    for name in directories:
        rest = stem[len(name) :]
        # One without a digit, or "T1", may be called after the image.
        is_id = re.search(r"\d", name) and not _IMAGE_WORD.fullmatch(name)
        if is_id and stem.startswith(name) and rest[:1] in tuple("_-. "):
            stem = rest.lstrip("_-. ")
            break
    return _said(stem, tuple(modalities))


@functools.lru_cache(maxsize=1 << 14)
def _said(stem: str, modalities: tuple[str, ...]) -> Said:
    text = _as_text(stem)
    words = text.replace("+", " ").split()
    if any(map(_MASK.fullmatch, words)) or any(map(_MASK_AFTER.fullmatch, words[1:] or words)):
        return Said("", True)
    found = _built_in(text)
    for name in sorted(modalities, key=len, reverse=True):
        if name.casefold() in map(str.casefold, BUILT_IN):
            if name.casefold() == found.casefold():
                return Said(name, False)
        elif f" {_plain(name)} " in f" {_plain(stem)} ":
            # "t1" is no name for "t1 gd", nor for a map of T1 times.
            meant = _built_in(_as_text(name))
            if not meant or meant == found:
                return Said(name, False)
    return Said(found, False)


def _plain(text: str) -> str:
    """Words of a text in small letters, a blank apart."""
    return " ".join(_TOKEN.findall(text.casefold()))


def _as_text(stem: str) -> str:
    words = [_MEANT.get(word.casefold(), word) for word in _TOKEN.findall(stem)]
    # Signs of contrast ("+C") are told from separators by the rules themselves.
    return normalised(" ".join(words) if "+" not in stem else stem)


_TEXT_ALONE = tuple(rule for rule in TEXT_RULES if set(rule.to_json()) == {"modality", "text"})


def _built_in(text: str) -> str:
    """The built-in modality that a normalised text names, "" where it names none."""
    rules = (rule for rule in _TEXT_ALONE if re.search(rule.text or "", text, re.IGNORECASE))
    rule = next(rules, None)
    found = (rule.modality if rule else None) or ""
    if found != T1:
        return found
    return {Agent.GIVEN: T1CE, Agent.BOTH: ""}.get(agent_in(text), T1)
