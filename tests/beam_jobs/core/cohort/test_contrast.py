"""Texts of T1-weighted series that say whether contrast agent was given, in a dozen languages."""

import pytest

from beam_jobs.core.cohort.modality import modality_by_rules
from beam_jobs.core.series import assemble
from tests.beam_jobs.core.test_series import stack

ABSENT = """
T1 C-; T1 (C-); AX T1 CE-; T1 CE(-); T1 KM-; T1 -KM; T1 Gd-; T1 Gd(-); T1 Gd (-); T1 contrast -
T1 C- SAG; t1_C-_tra; T1 FLAIR C-; T1 post op C-; T1 POST NO CONTRAST; T1 non-contrast; T1 noncon
T1 non gad; T1 no IV contrast; T1 W/O; T1 w.o. contrast; T1 w/out gad; T1 without IV contrast
T1 before contrast; T1 prior to contrast; T1 prior to IV contrast; T1 PRE INJ; T1 (pre); T1 plain
T1 unenhanced; T1 non-enhanced; T1 o. KM; T1 prae KM; T1 prä KM; T1 vor KM-Gabe; T1 ohne KM
T1 vor Kontrastmittelgabe; T1 keine KM-Gabe; T1 KM-frei; T1 nativ; T1 postop ohne KM
T1 avant injection de gadolinium; T1 sans gado; T1 antes de contraste; T1 sin gadolinio; T1 s/c
T1 S.C.; T1 s/ contraste; T1 sem contraste; T1 sem gadolínio; T1 basale; T1 prima del mdc
T1 senza mdc; T1 zonder contrast; T1 uten kontrast; T1 før kontrast; T1 utan kontrast
T1 uden kontrast; T1 bez kontrastu; T1 przed kontrastem; T1 kontrastsiz; T1 kontrastsız
T1 kontrast öncesi; T1 造影前; T1 до контраста; T1 平扫
"""
GIVEN = """
T1 C+; T1 (C+); T1 +C; T1 MPR+; T1 ce+; T1 Gd(+); Gd+ T1; t1_se_cor_fs_pGd; T1 - KM; T1-KM; T1 m. KM
T1 n. KM; T1 tra nach Gabe; T1 nach KM-Gabe; T1 postop +KM; T1 PRE-OP +C; T1 after Gd; T1 Gd-DTPA
T1 POST CON; T1 w contrast; T1 double dose Gd; T1 basal ganglia +C; T1 C-SPINE +C; T1 C- SPINE C+
T1 post treatment +C; T1 après injection; T1 avec gado; T1 con gadolinio; T1 tras contraste; T1 c/c
T1 c/ contraste; T1 pós contraste; T1 dopo mdc; T1 met gado; T1 med kontrast; T1 etter kontrast
T1 po kontrastu; T1 po kontraście; T1 s kontrastem; T1 kontrastlı; T1 造影後; T1 с контрастом
T1 WITHOUT FS post gad
"""
# Of a difference, or of nobody knows which.
BOTH = """
AX T1 pre+post; T1 Pre/Post; T1 post - pre; sub T1 post-pre; T1 before and after Gd
T1 vor und nach KM; T1 KM minus nativ; T1 WITHOUT & WITH GAD; T1 pre- and post-contrast
T1 avant et après gado
"""
# Of an operation, a place, an exam, a spine.
UNSAID = """
T1; T1 preop; T1 post-op; T1 after surgery; T1 post-RT; T1 posterior fossa; T1 C- SPINE; T1 C-SPINE
T1 basal ganglia; T1 WITHOUT FS; T1 NO FS; T1 W/WO GD; T1 W+WO; T1 +/- Gd; T1 W; T1 nach OP
T1 après chirurgie; T1 dopo intervento; T1 pre-therapy; T1 fs presat
"""


def texts(table):
    return [text.strip() for line in table.strip().splitlines() for text in line.split(";")]


def found(text, agent=""):
    times = {"scanning_sequence": ("SE",), "repetition_time": 500.0, "echo_time": 12.0}
    (series,), _ = assemble(
        stack(modality="MR", series_description=text, contrast_agent=agent, **times)
    )
    return modality_by_rules(series, ())


@pytest.mark.parametrize("text", texts(ABSENT))
def test_a_text_that_says_plain_is_believed_whatever_agent_is_named(text):
    assert (found(text), found(text, "Gadovist")) == ("T1w", "T1w")


@pytest.mark.parametrize("text", texts(GIVEN))
def test_a_text_that_says_enhanced_needs_no_agent(text):
    assert (found(text), found(text, "Gadovist")) == ("T1wCE", "T1wCE")


@pytest.mark.parametrize("text", texts(BOTH))
def test_a_text_that_says_both_is_neither(text):
    assert (found(text), found(text, "Gadovist")) == (None, None)


@pytest.mark.parametrize("text", texts(UNSAID))
def test_where_a_text_says_nothing_the_agent_decides(text):
    assert (found(text), found(text, "Gadovist")) == ("T1w", "T1wCE")
