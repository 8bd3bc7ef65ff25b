"""Which modality a series is: by its directory, its name, rules of one's own, the built-in ones.

Nothing but MR is one of the built-in modalities, whatever a directory or a description says: a CT
of the vertebrae "T1-T4" is not T1-weighted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from beam_jobs.core.cohort.builtin_rules import (
    BUILT_IN,
    EXCLUDED,
    KNOWN_FAMILY,
    NAME_RULES,
    T1,
    T1CE,
    T2,
    TEXT_RULES,
    TIME_RULES,
    is_plainly_named,
    normalised,
    says_nothing,
)
from beam_jobs.core.cohort.by_name.words import said_of
from beam_jobs.core.cohort.contrast import Agent, agent_in
from beam_jobs.core.cohort.layout import DirectoryOwner
from beam_jobs.core.cohort.rules import ModalityRule, dicom_modality, has_agent, sequence_name
from beam_jobs.core.dicom.headers import SliceHeader
from beam_jobs.core.series import Series

_BUILT_IN = frozenset(name.casefold() for name in BUILT_IN)
# Modalities that may be named in tables: the standard's words (PS3.3 C.7.3.1.1.1), no header text.
_NAMED = re.compile("AR|CR|CT|DX|ES|IO|IVUS|MG|NM|OCT|OP|OPT|OT|PT|PX|RF|SC|SM|US|XA|XC")


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

    The directory decides where it follows the layout; else the user's own rules; else a
    SeriesDescription that is a modality's name; else the built-in rules. Directory and name give a
    built-in modality to MR only, and the name only where nothing else in the header contradicts it.
    Of NIfTI a file's name stands for the header, and a directory does not make an image of a mask.

    Args:
      series: the series.
      owner: of its directory, None where that does not follow the layout.
      modalities: the wanted ones.
      rules: the user's own; one of no modality leaves out whatever the description says.
      diffusion: whether images of the same series UID are diffusion-weighted: then the built-in
        rules take those that are not (b = 0) for no modality.
    """
    if series.first.is_nifti:
        return _of_nifti(series, owner, modalities, rules)
    if owner is not None:
        return owner.modality if owner.modality and _may_be(series, owner.modality) else None
    own = _by_own_rules(series, rules)
    if not isinstance(own, _NoFit):
        return own if own in modalities else None
    for name in modalities:
        said = series.first.series_description.casefold() == name.casefold()
        if said and _may_be(series, name) and _is_what_it_says(series, name, diffusion=diffusion):
            return name
    found = modality_by_rules(series, (), diffusion=diffusion)
    return found if found in modalities else None


def _of_nifti(
    series: Series,
    owner: DirectoryOwner | None,
    modalities: Sequence[str],
    rules: Sequence[ModalityRule],
) -> str | None:
    """A NIfTI file's modality: by a directory that its name does not contradict, rules, its name.

    A directory that is the patient of others named after modalities says nothing of it.
    """
    said = said_of(series.first.path, modalities)
    named = owner.modality if owner is not None and not said.mask else ""
    if named and said.modality.casefold() in ("", named.casefold()):
        return named
    own = _by_own_rules(series, rules)
    if not isinstance(own, _NoFit):
        return own if own in modalities else None
    return said.modality if said.modality in modalities else None


def is_mask(series: Series) -> bool:
    """Whether a series is a NIfTI file whose name calls it a mask or a segmentation."""
    return series.first.is_nifti and said_of(series.first.path, ()).mask


def why_unknown(series: Series) -> str:
    """What to say of a series that is none of the wanted modalities; no header text."""
    if series.first.is_nifti:
        return "the file's name says none of the wanted modalities"
    found = dicom_modality(series.first)
    if found in ("", "MR"):
        return "none of the wanted modalities"
    return f"Modality (0008,0060) is {found if _NAMED.fullmatch(found) else 'another one'}, not MR"


def _may_be(series: Series, modality: str) -> bool:
    """Whether a name alone may make the series this modality; no Modality forbids none."""
    return modality.casefold() not in _BUILT_IN or dicom_modality(series.first) in ("", "MR")


def _is_what_it_says(series: Series, modality: str, *, diffusion: bool) -> bool:
    """Whether nothing in the header speaks against a built-in modality's name.

    An agent does not: it may be named in series of before its injection.
    """
    if modality.casefold() not in _BUILT_IN:
        return True
    found = None if diffusion else _by_built_in_rules(series)
    enhanced = T1CE.casefold()
    weightings = {
        T1.casefold() if name.casefold() == enhanced else name.casefold()
        for name in (found or "", modality)
    }
    return len(weightings) == 1


def modality_by_rules(
    series: Series, rules: Sequence[ModalityRule], *, diffusion: bool = False
) -> str | None:
    """The modality of the first of `rules` that fits, else what the built-in ones say."""
    own = _by_own_rules(series, rules)
    if not isinstance(own, _NoFit):
        return own
    if diffusion or dicom_modality(series.first) != "MR":
        return None
    return _by_built_in_rules(series)


def _by_own_rules(series: Series, rules: Sequence[ModalityRule]) -> str | _NoFit | None:
    for rule in rules:
        allowed = rule.dicom_modality is not None or _may_be(series, rule.modality or "")
        if allowed and rule.fits(series):
            return rule.modality
    return _NO_FIT


def _by_built_in_rules(series: Series) -> str | None:
    """What description, protocol and sequence name say, the first that says something; else times.

    A sequence's name knows no contrast, and a protocol's may be older than the description: neither
    overrules it.
    """
    first = series.first
    is_part = first.complex_component.upper() in ("PHASE", "REAL", "IMAGINARY")
    if is_part or _first_fit(EXCLUDED, series, "") is not _NO_FIT:
        return None
    description, protocol, sequence = map(
        normalised, (first.series_description, first.protocol_name, sequence_name(first))
    )
    # Of other images; converters of research data write the same, with plain names.
    if first.image_type[:2] == ("DERIVED", "SECONDARY") and not is_plainly_named(description):
        return None
    if first.manufacturer.upper().startswith("GE"):  # ProtocolName is the whole exam's there
        protocol = ""
    found: str | _NoFit | None = _NO_FIT
    for text in (description, protocol, sequence):
        if text and found is _NO_FIT:
            found = _first_fit((*TEXT_RULES, *NAME_RULES), series, text)
    # A sequence name that nothing is known of says no more than an absent one.
    silent = says_nothing(description) and says_nothing(protocol)
    known = re.match(KNOWN_FAMILY, sequence)
    if found is _NO_FIT and (silent or known):
        found = _first_fit(TIME_RULES, series, "")
        # Diffusion-weighted images of Philips are spin echoes by their headers.
        vague = first.manufacturer.upper().startswith("PHILIPS") and not known
        if found == T2 and vague and first.image_type[2:3] != ("T2",):
            return None
    if isinstance(found, _NoFit):
        return None
    return _t1_by_agent(series, description, protocol) if found == T1 else found


def _t1_by_agent(series: Series, description: str, protocol: str) -> str | None:
    """Which of the two a T1-weighted series is: by its texts, else by the agent's name.

    The agent may be named in series of before its injection too, so a text that says "plain" wins.
    One that says both is of a difference, or of nobody knows which. A protocol's name counts where
    it speaks of a T1-weighted series.
    """
    texts = [description]
    if _first_fit(TEXT_RULES, series, protocol) == T1:
        texts.append(protocol)
    for text in texts:
        said = agent_in(text)
        if said is not Agent.UNSAID:
            return {Agent.GIVEN: T1CE, Agent.ABSENT: T1}.get(said)
    return T1CE if has_agent(series.first) else T1


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
