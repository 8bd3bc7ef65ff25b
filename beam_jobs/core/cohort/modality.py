"""Which modality a series is: by its directory, its name, rules of one's own, the built-in ones.

Nothing but MR is one of the built-in modalities, whatever a directory or a description says: a CT
of the vertebrae "T1-T4" is not T1-weighted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from beam_jobs.core.cohort.builtin_rules import (
    ENHANCED,
    EXCLUDED,
    FLAIR,
    KNOWN_FAMILY,
    NAME_RULES,
    PLAIN,
    T1,
    T1CE,
    T2,
    TEXT_RULES,
    TIME_RULES,
    normalised,
    says_nothing,
)
from beam_jobs.core.cohort.layout import DirectoryOwner
from beam_jobs.core.cohort.rules import ModalityRule, dicom_modality, has_agent, sequence_name
from beam_jobs.core.dicom.headers import SliceHeader
from beam_jobs.core.series import Series

BUILT_IN = (FLAIR, T1, T1CE, T2)
_BUILT_IN = frozenset(name.casefold() for name in BUILT_IN)
# Modalities that may be named in tables: the standard's words (PS3.3 C.7.3.1.1.1), no header text.
_NAMED = frozenset(
    [
        "AR",
        "CR",
        "CT",
        "DX",
        "ES",
        "IO",
        "IVUS",
        "MG",
        "NM",
        "OCT",
        "OP",
        "OPT",
        "OT",
        "PT",
        "PX",
        "RF",
        "SC",
        "SM",
        "US",
        "XA",
        "XC",
    ]
)


def known_modalities(rules: Sequence[ModalityRule]) -> set[str]:
    """Every modality that some rule gives."""
    return {*BUILT_IN, *(rule.modality for rule in rules if rule.modality)}


def modality_of(
    series: Series,
    owner: DirectoryOwner | None,
    modalities: Sequence[str],
    rules: Sequence[ModalityRule] = (),
    *,
    diffusion: bool = False,
) -> str | None:
    """Which of `modalities` a series is, None when it is none of them.

    The directory decides where it follows the layout; else a SeriesDescription that is a
    modality's name; else the rules. Directory and name give a built-in modality to MR only.

    Args:
      series: the series.
      owner: of its directory, None where that does not follow the layout.
      modalities: the wanted ones.
      rules: tried before the built-in ones.
      diffusion: whether images of the same series UID are diffusion-weighted: then the built-in
        rules take those that are not (b = 0) for no modality.
    """
    if owner is not None:
        return owner.modality if owner.modality and _may_be(series, owner.modality) else None
    for name in modalities:
        if series.first.series_description.casefold() == name.casefold() and _may_be(series, name):
            return name
    found = modality_by_rules(series, rules, diffusion=diffusion)
    return found if found in modalities else None


def why_unknown(series: Series) -> str:
    """What to say of a series that is none of the wanted modalities; no header text."""
    found = dicom_modality(series.first)
    if found in ("", "MR"):
        return "none of the wanted modalities"
    return f"Modality (0008,0060) is {found if found in _NAMED else 'another one'}, not MR"


def _may_be(series: Series, modality: str) -> bool:
    """Whether a name alone may make the series this modality; no Modality forbids none."""
    return modality.casefold() not in _BUILT_IN or dicom_modality(series.first) in ("", "MR")


def modality_by_rules(
    series: Series, rules: Sequence[ModalityRule], *, diffusion: bool = False
) -> str | None:
    """The modality of the first of `rules` that fits, else what the built-in ones say."""
    for rule in rules:
        allowed = rule.dicom_modality is not None or _may_be(series, rule.modality or "")
        if allowed and rule.fits(series):
            return rule.modality
    if diffusion or dicom_modality(series.first) != "MR":
        return None
    return _by_built_in_rules(series)


def _by_built_in_rules(series: Series) -> str | None:
    """What description, protocol and sequence name say, the first that says something; else times.

    A sequence's name knows no contrast, and a protocol's may be older than the description: neither
    overrules it.
    """
    first = series.first
    is_part = first.complex_component.upper() in ("PHASE", "IMAGINARY")
    if is_part or _first_fit(EXCLUDED, series, "") is not _NO_FIT:
        return None
    description, protocol, sequence = map(
        normalised, (first.series_description, first.protocol_name, sequence_name(first))
    )
    if first.manufacturer.upper().startswith("GE"):  # ProtocolName is the whole exam's there
        protocol = ""
    found: str | _NoFit | None = _NO_FIT
    for text in (description, protocol, sequence):
        if text and found is _NO_FIT:
            found = _first_fit((*TEXT_RULES, *NAME_RULES), series, text)
    # A sequence name that nothing is known of says no more than an absent one.
    silent = says_nothing(description) and says_nothing(protocol)
    if found is _NO_FIT and (silent or re.match(KNOWN_FAMILY, sequence)):
        found = _first_fit(TIME_RULES, series, "")
    if isinstance(found, _NoFit):
        return None
    return T1CE if found == T1 and _is_enhanced(series, description, protocol) else found


def _is_enhanced(series: Series, description: str, protocol: str) -> bool:
    """Whether a T1-weighted series shows contrast agent: by its texts, else by the agent's name.

    The agent may be named in series of before its injection too, so a text that says "plain" wins.
    A protocol's name counts where it speaks of a T1-weighted series.
    """
    texts = [description]
    if _first_fit(TEXT_RULES, series, protocol) == T1:
        texts.append(protocol)
    for text in texts:
        if re.search(PLAIN, text):
            return False
        if re.search(ENHANCED, text):
            return True
    return has_agent(series.first)


def combines_echoes(header: SliceHeader) -> bool:
    """Whether an image is the root mean square of several echoes: better than each of them."""
    texts = (header.series_description, *header.image_type)
    return any(re.search("(?<![a-z0-9])rms(?![a-z0-9])", text, re.IGNORECASE) for text in texts)


class _NoFit:
    """No rule fits: which is not the same as a rule that says "no modality"."""


_NO_FIT = _NoFit()


def _first_fit(rules: Sequence[ModalityRule], series: Series, text: str) -> str | _NoFit | None:
    for rule in rules:
        if rule.fits(series, (text,)):
            return rule.modality
    return _NO_FIT
