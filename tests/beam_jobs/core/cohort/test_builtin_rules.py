r"""Headers that contradict their name, results of other images, and sound ones like these.

The columns are those of `test_real_headers`.
"""

import pytest

from beam_jobs.core.cohort.builtin_rules import BUILT_IN, is_plainly_named, normalised
from beam_jobs.core.cohort.modality import modality_of
from beam_jobs.core.cohort.rules import ModalityRule
from beam_jobs.core.series import assemble
from tests.beam_jobs.core.cohort.test_real_headers import read
from tests.beam_jobs.core.test_series import stack

# A description that is a modality's name, where times, component or kind of image are another's.
NAMED = r"""
FLAIR |  | *tir2d1_5 | SE\IR | 2000 9 860 150 |  | -
FLAIR |  |  | SE\IR | 2000 24 760 |  | -
FLAIR |  |  | GR | 600 120 |  | -
FLAIR |  |  | SE | 600 90 |  | -
FLAIR |  |  | SE\IR | 9000 120 2250 |  | FLAIR
T1w |  |  | SE | 4000 100 |  | -
T1w |  |  | SE | 3000 15 |  | -
T1 |  |  | SE | 3000 15 |  | -
T1w |  | *tfl3d1 | GR\IR | 2300 3 900 9 | type=ORIGINAL\PRIMARY\P\ND | -
T1w |  | *tfl3d1 | GR\IR | 2300 3 900 9 | agent=Gadovist | T1w
T1w |  |  | - |  | agent=Gadovist type=DERIVED\SECONDARY\OTHER | T1w
T1wCE |  |  | SE | 4000 100 |  | -
T1wCE |  |  | - |  | type=DERIVED\SECONDARY | T1wCE
T2w |  | *ep_b1000t | EP | 4000 80 | b=1000 | -
T2w |  | *swi3d1r | GR | 28 20 |  | -
T2w |  |  | SE | 600 12 |  | -
T2w |  |  | SE | 4000 100 | type=DERIVED\SECONDARY\OTHER | T2w
"""

# Nulled tissue, signed inversion, black blood, opposed phases, flip angles of a map, DWI.
CONTRASTS = r"""
FGATIR_tra |  | *tfl3d1_16ns | GR\IR | 3000 4.4 410 7 |  | -
t1_mprage_sag_thalamus |  | *tfl3d1_16ns | GR\IR | 3000 4.4 410 7 |  | -
 |  | *tfl3d1_16ns | GR\IR | 3000 4.4 410 7 |  | -
WMn_MPRAGE |  | *tfl3d1_16ns | GR\IR | 4000 3.5 500 7 |  | -
white_matter_nulled mprage |  | tfl3d1_16ns | GR\IR | 4000 3.5 500 7 |  | -
edge_3D_tra |  | *tfl3d1_16ns | GR\IR | 3000 4.4 410 7 |  | -
t1_psir_tra |  | *tir2d1_5 | SE\IR | 3000 10 400 180 | type=ORIGINAL\PRIMARY\R\PS | -
PSIR T1 |  |  | SE\IR | 3000 10 400 |  | -
t1_tse_cor_hippo_IR |  | *tir2d1_5 | SE\IR | 5000 12 350 180 |  | -
T1 INV REAL |  | IR | SE\IR | 3000 15 400 | type=ORIGINAL\PRIMARY\R_IR\R\IR | -
 |  |  | SE\IR | 11000 140 2800 | type=ORIGINAL\PRIMARY\R_IR\R\IR | -
 |  |  | SE\IR | 11000 140 2800 | type=ORIGINAL\PRIMARY\M_IR\M\IR | FLAIR
 |  |  | SE\IR | 5500 250 2550 |  | -
 |  |  | SE\IR | 7500 318 3000 |  | -
T1W_BB_VISTA |  | TSE | SE | 700 20 |  | -
BB T1W TSE post |  |  | SE | 700 12 |  | -
T1 black blood post gd |  |  | SE | 900 15 |  | -
vessel wall T1 SPACE |  | *spc | SE | 800 20 |  | -
t1_space_sag_vesselwall_post | = | *spc_44ns | SE | 800 20 - 120 |  | -
VWI t1_space_fs_post |  | *spc | SE | 800 20 |  | -
t1_space_dante |  | *spc | SE | 800 20 |  | -
neuromelanin T1 |  | *tse2d1 | SE | 650 10 |  | -
NM-MRI T1 TSE |  | *tse2d1 | SE | 650 10 |  | -
t2_tse_dixon_cor_opp |  | *tse2d1 | SE | 4500 90 - 150 |  | -
ax t1 vibe opp-in |  | *fl3d2 | GR | 6 2.4 - 10 |  | -
t1_fl2d_opp-in_tra |  | *fl2d2 | GR | 120 2.3 - 70 |  | -
t1_fl2d_tra_in_opp |  | *fl2d2 | GR | 120 4.8 - 70 |  | -
T1 mDIXON TSE |  |  | SE | 600 12 | type=DERIVED\PRIMARY\F\F\DERIVED | -
T1 mDIXON TSE |  |  | SE | 600 12 | type=ORIGINAL\PRIMARY\IP\IP\SE | -
T1 mDIXON TSE W +C |  |  | SE | 600 12 | type=DERIVED\PRIMARY\W\W\DERIVED | T1wCE
T1 VFA 15 |  |  | GR | 5 2 - 15 |  | -
T1 FA05 |  |  | GR | 5 2 - 5 |  | -
T1_mapping_FA2 |  |  | GR | 5 2 - 2 |  | -
b0 T2 |  |  | SE | 6000 90 |  | -
ISOTROPIC |  |  | SE | 8000 80 |  | -
T2_GRASE |  | GRASE | SE\GR | 3500 100 |  | -
T2 |  |  | SE\GR | 3500 100 |  | -
 |  | GRASE | SE | 3500 100 |  | -
 |  |  | SE | 5000 70 |  | -
 |  |  | GR | 4.5 1.9 - 20 | slices=80 agent=Gadovist | -
 |  |  | GR | 5 2 - 15 | slices=80 | -
 |  | *tfl2d1_16 | GR\IR | 1500 1.2 900 8 |  | -
"""

RESULTS = r"""
T1 mapping |  |  | GR | 5 2 - 2 |  | -
T1 relaxometry |  |  | SE | 600 10 |  | -
T2_relaxometry |  |  | SE | 3000 80 |  | -
T2 mapping ratio T1/T2 |  |  | SE | 4000 100 |  | -
T1_POST_PERMEABILITY |  |  | GR | 5 2 - 20 |  | -
Ktrans T1 |  |  | GR | 5 2 - 20 |  | -
CVR T1 |  |  | - |  |  | -
T1 brain mask |  |  | - |  |  | -
T1w_brainmask |  |  | - |  |  | -
T1_seg |  |  | - |  |  | -
T1 segmentation |  |  | - |  | type=DERIVED\SECONDARY | -
FLAIR lesion mask |  |  | - |  | type=DERIVED\SECONDARY | -
FLAIR-T2 fusion |  |  | - |  |  | -
T1+FLAIR fused |  |  | - |  |  | -
Fusion T1 PET |  |  | - |  | type=DERIVED\SECONDARY | -
T1 tractography |  |  | - |  | type=DERIVED\SECONDARY | -
FA on T1 |  |  | - |  | type=DERIVED\SECONDARY | -
T1 curved MPR |  |  | - |  | type=DERIVED\SECONDARY | -
T1 MPR THICK RANGE |  |  | - |  | type=DERIVED\SECONDARY\MPR | -
3D VRT T1 |  |  | - |  | type=DERIVED\SECONDARY | -
T1 SSD |  |  | - |  | type=DERIVED\SECONDARY | -
T1 normalized MNI |  |  | - |  | type=DERIVED\SECONDARY | -
COL:SAG 3D FSPGR |  |  | GR | 8 3 450 12 |  | -
t1_mprage_MPR_Tra | = | *tfl3d1 | GR\IR | 2300 2.9 900 9 | type=DERIVED\SECONDARY\MPR | -
t1_mprage_MPR_Tra | = | *tfl3d1 | GR\IR | 2300 2.9 900 9 | type=DERIVED\PRIMARY\MPR\NORM | -
t1_mprage_MPR_cor_3mm_results | = | *tfl3d1 | GR\IR | 2300 2.9 900 9 | type=DERIVED\SECONDARY | -
PROCESSED T1 |  |  | GR | 8 3 450 12 | type=DERIVED\SECONDARY\PROCESSED | -
T1 MEMPRAGE RMS | = | *tfl3d4 | GR\IR | 2530 1.6 1200 7 | type=DERIVED\SECONDARY\OTHER | T1w
t1_mprage_sag_DIS3D | = | *tfl3d1 | GR\IR | 2300 3 900 9 | type=DERIVED\PRIMARY\M\ND\DIS3D | T1w
Ax T1 BRAVO |  |  | GR | 8 3 450 12 | type=DERIVED\PRIMARY\OTHER | T1w
T2W_TSE |  |  | SE | 3000 80 - 90 | type=DERIVED\PRIMARY\M_SE\M\SE | T2w
Orig T1 distortion |  |  | GR\IR | 2300 3 900 9 |  | T1w
NeuroQuant T1 |  |  | GR | 8 3 450 12 |  | T1w
"""

# Sound series of pituitary, spine, paediatric, epilepsy and stereotactic protocols.
SOUND = r"""
AX DUAL ECHO |  |  | SE | 3500 102 |  | T2w
AX DUAL ECHO |  |  | SE | 3500 15 |  | -
Ax 3D FRFSE IAC |  |  | SE | 2000 150 |  | T2w
AX LAVA +C |  |  | GR | 4 2 - 12 |  | T1wCE
AX LAVA |  |  | GR | 4 2 - 12 |  | -
eThrive post Gd |  |  | GR | 4 2 - 10 |  | T1wCE
fl3d_vibe_tra_KM |  | *fl3d1 | GR | 5 2.3 - 10 |  | T1wCE
t2_spc_ir_sag_dark-fl_iso |  | *spcir3d1_203ns | SE\IR | 5000 387 1800 |  | FLAIR
Cor T1 PIT DYNAMIC |  |  | SE | 400 12 |  | -
t1_tse_cor_hypophyse_KM | = | *tse2d1_3 | SE | 480 12 - 150 |  | T1wCE
Sag T1 FLAIR PITUITARY C- |  |  | SE\IR | 2200 24 800 |  | T1w
t1_mprage_neonat | = | *tfl3d1_16ns | GR\IR | 2200 2.9 1100 9 |  | T1w
t2_tse_tra_neonat | = | *tse2d1_16 | SE | 6000 140 - 150 |  | T2w
t2_tse_cor_hippocampus | = | *tse2d1_16 | SE | 6000 90 - 150 |  | T2w
t2_tirm_cor_hippo_dark-fluid | = | *tir2d1_16 | SE\IR | 9000 90 2500 150 |  | FLAIR
Cor T2 FLAIR epilepsy |  |  | SE\IR | 9000 120 2250 |  | FLAIR
t1_mprage_tra_Neuronavigation_nach_KM | = | *tfl3d1_16ns | GR\IR | 1900 3 900 9 |  | T1wCE
SAG 3D T1 BRAVO STEALTH +C |  |  | GR | 8 3 450 12 |  | T1wCE
t1_tse_sag_hws | = | *tse2d1_3 | SE | 700 10 - 150 |  | T1w
SAG T2 FRFSE L-SPINE |  |  | SE | 3500 105 |  | T2w
T2W_TSE spine |  |  | SE | 3000 110 |  | T2w
3D FLAIR CS |  |  | SE\IR | 4800 340 1660 |  | FLAIR
T1W_IR_TSE |  |  | SE\IR | 3200 15 400 |  | T1w
Sag T1 FLAIR |  |  | SE | 2300 24 760 |  | T1w
t1_fl3d_tra_fs_delayed KM | = | *fl3d1 | GR | 11 4.9 - 25 |  | T1wCE
"""

PHILIPS = r"""
 |  |  | SE | 3500 90 - 90 |  | -
 |  | TSE | SE | 3500 90 - 90 |  | T2w
"""


def series_of(header):
    header = {"modality": "MR", **header}
    (series,), _ = assemble(stack(range(int(header.pop("slices", 24))), **header))
    return series


@pytest.mark.parametrize(
    ("header", "modality"),
    [
        *(case for table in (NAMED, CONTRASTS, RESULTS, SOUND) for case in read(table)),
        *read(PHILIPS, manufacturer="Philips Medical Systems"),
    ],
)
def test_a_name_is_not_believed_against_the_rest_of_the_header(header, modality):
    assert modality_of(series_of(header), None, BUILT_IN) == modality


def test_ones_own_rules_are_asked_where_a_name_is_contradicted():
    series = series_of({"series_description": "FLAIR", "echo_time": 24.0, "inversion_time": 760.0})
    rules = (ModalityRule(modality="T1w", text="^FLAIR$", inversion_time=(500, 1000)),)
    assert modality_of(series, None, BUILT_IN, rules) == "T1w"


def test_a_name_of_ones_own_modality_is_believed_as_before():
    series = series_of({"series_description": "dwi", "b_value": 1000.0})
    assert modality_of(series, None, ("DWI",)) == "DWI"
    series = series_of({"series_description": "t2W", "echo_time": 90.0})
    assert modality_of(series, None, ("t2w",)) == "t2w"


@pytest.mark.parametrize("text", ["T1w", "anat-T1w", "3D T1 MPRAGE post Gd", "sub-01_FLAIR"])
def test_a_plain_name_has_no_word_of_a_result(text):
    assert is_plainly_named(normalised(text))
    assert not is_plainly_named(normalised(f"{text} on atlas"))
