"""Combinations that real MR headers have, of all vendors and some languages, and their verdicts."""

import pytest

from beam_jobs.core.cohort.modality import modality_by_rules
from beam_jobs.core.series import assemble
from tests.beam_jobs.core.test_series import stack

# SeriesDescription | ProtocolName ("=": the same) | SequenceName | ScanningSequence |
# repetition, echo, inversion time in ms and flip angle | whatever else matters | verdict
SIEMENS = r"""
t1_mprage_sag_p2_iso | = | *tfl3d1_16ns | GR\IR | 2300 2.98 900 9 |  | T1w
t1_mprage_sag_p2_iso | = | *tfl3d1_16ns | GR\IR | 2300 2.98 900 9 | agent=Gadovist | T1wCE
t1_mprage_tra_KM | t1_mprage_tra | *tfl3d1_16ns | GR\IR | 1900 2.5 900 9 |  | T1wCE
t1_mprage_tra_nativ |  | *tfl3d1 | GR\IR | 1900 2.5 900 9 | agent=Gadovist | T1w
MPR sag | t1_mprage_sag_KM | *tfl3d1 | GR\IR | 1900 2.5 900 9 |  | T1wCE
 |  | *tfl3d1_16ns | GR\IR | 2300 2.98 900 9 |  | T1w
 |  | *tfl3d1_16ns | GR\IR | 2300 2.98 900 9 | agent=Gadovist | T1wCE
 |  | *tfl3d1_16ns | - |  |  | T1w
ABCD_vNav |  | tfl3d1_16ns | GR\IR | 2500 2.9 1070 8 |  | T1w
T1w_MPR_vNav_setter |  | ABCD3d1_32ns | GR | 11 4.9 - 2 |  | -
T1w_MPR_vNav_4e_RMS | T1w_MPR_vNav_4e | *tfl3d4_16ns | GR\IR | 2500 1.8 1000 8 |  | T1w
MEMPRAGE_4e_p2_1mm RMS | MEMPRAGE_4e_p2_1mm | *tfl3d4_16ns | GR\IR | 2530 1.7 1100 7 |  | T1w
MEMPRAGE_4e_p2_1mm_iso | = | *tfl3d4_16ns | GR\IR | 2530 7.2 1100 7 |  | T1w
t1_mp2rage_UNI_Images | t1_mp2rage | *tfl3d1_16ns | GR\IR | 5000 2.98 - 4 | type=M\UNI | T1w
t1_mp2rage_sag_p3_iso_INV1 | t1_mp2rage_sag | *tfl3d1_16ns | GR\IR | 5000 2.98 700 4 |  | -
t1_mp2rage_sag_p3_iso_INV2 | t1_mp2rage_sag | *tfl3d1_16ns | GR\IR | 5000 2.98 2500 5 |  | -
t1_mp2rage_sag_p3_iso_T1_Images | t1_mp2rage_sag | *tfl3d1_16ns | GR\IR | 5000 2.98 - 4 |  | -
 |  | *tfl3d1_16ns | GR\IR | 5000 2.98 - 4 | type=M\UNI | T1w
 |  | *tfl3d1_16ns | GR\IR | 5000 2.98 700 4 |  | -
 |  | *tfl3d1_16ns | GR\IR | 5000 2.98 2500 5 |  | -
t2_tse_tra | t2_tse_tra_p2 | *tse2d1_19 | SE | 4500 96 - 150 |  | T2w
 |  | *tse2d1_19 | SE | 4500 96 - 150 |  | T2w
 |  | *tse2d1_3 | SE | 600 12 - 150 |  | T1w
 |  | *tse2d1_3 | SE | 600 12 - 150 | agent=Gadovist | T1wCE
 |  | *tse2d1_7 | SE | 3200 17 - 150 |  | -
pd+t2_tse_tra | = | *tse2d2rs5 | SE | 3200 17 - 150 |  | -
pd+t2_tse_tra | = | *tse2d2rs5 | SE | 3200 100 - 150 |  | T2w
t1_se_tra |  | *se2d1 | SE | 500 8.4 - 90 |  | T1w
 |  | *se2d1 | SE | 500 8.4 - 90 |  | T1w
t2_tirm_tra_dark-fluid |  | *tir2d1_21 | SE\IR | 9000 109 2500 150 |  | FLAIR
 |  | *tir2d1_21 | SE\IR | 9000 109 2500 150 |  | FLAIR
t2_tirm_cor |  | *tir2d1_11 | SE\IR | 4500 64 220 150 |  | -
 |  | *tir2d1_11 | SE\IR | 4500 64 220 150 |  | -
t1_tirm_tra_dark-fluid |  | *tir2d1_7 | SE\IR | 2000 9.8 860 150 |  | T1w
 |  | *tir2d1_7 | SE\IR | 2000 9.8 860 150 |  | T1w
T2 SAG FLAIR SPACE |  | *spcir3d1_203ns | SE\IR | 6000 283 2200 120 |  | FLAIR
t2_spc_da-fl_sag_p2_iso |  | *spcir_278ns | SE\IR | 5000 387 1800 120 |  | FLAIR
 |  | *spcir_278ns | SE\IR | 5000 387 1800 120 |  | FLAIR
t2_space_sag |  | *spc_133ns | SE | 3200 222 - 120 |  | T2w
 |  | *spcR_282ns | SE | 3200 409 - 120 |  | T2w
 |  | *spcR_44ns | SE | 700 11 - 120 |  | T1w
t1_space_sag_p2_iso |  | *spc_44ns | SE | 700 22 - 120 | agent=Gadovist | T1wCE
t1_fl2d_tra |  | *fl2d1 | GR | 250 2.46 - 70 |  | T1w
 |  | *fl2d1 | GR | 250 2.46 - 70 |  | T1w
localizer | = | *fl2d1 | GR | 8.6 4 - 20 |  | -
 |  | *fl2d1 | GR | 250 2.46 |  | T1w
 |  | *fl2d1 | GR | 250 2.46 - 30 |  | -
 |  | *fl2d1 | GR | 500 18 - 70 |  | -
 |  | *fl2d1 | GR | 8.6 4 - 20 |  | -
AAHead_Scout_32ch-head-coil |  | *fl3d1_ns | GR | 3.15 1.37 - 8 |  | -
 |  | *fl3d1_ns | GR | 3.15 1.37 - 8 | slices=160 | -
 |  | *fl3d1 | GR | 22 9.2 - 30 |  | T1w
t1_vibe_tra |  | *fl3d1 | GR | 5.5 2.8 - 10 | agent=Gadovist | T1wCE
 |  | *fl3d1 | GR | 5.5 2.8 - 10 | slices=160 | T1w
TOF_3D_multi-slab |  | *fl3d1r_t70 | GR | 22 3.66 - 18 |  | -
 |  | *fl3d1r_t70 | GR | 22 3.66 - 18 | slices=160 | -
t2_fl2d_tra_hemo |  | *fl2d1 | GR | 800 25 - 20 |  | -
t2_swi3d_tra_p2 |  | *swi3d1r | GR | 28 20 - 15 |  | -
 |  | *swi3d1r | GR | 28 20 - 15 | slices=160 | -
Pha_Images | t2_swi3d_tra_p2 | *swi3d1r | GR | 28 20 - 15 |  | -
gre_field_mapping |  | *fm2d2r | GR | 400 4.92 - 60 |  | -
 |  | *fm2d2r | GR | 400 4.92 - 60 |  | -
ep2d_diff_3scan_trace_p2_ADC |  | *ep_b0_1000 | EP | 6400 98 |  | -
 |  | *ep_b1000t | EP | 6400 98 |  | -
 |  | ep_b0 | SE\EP | 6400 98 |  | -
 |  | *re_b1000t | EP | 5000 67 |  | -
ep2d_bold_rest |  | *epfid2d1_64 | EP | 2000 30 |  | -
t1_mprage_sag_SUB |  |  | GR\IR | 1900 2.5 900 9 | agent=Gadovist | -
tof_fl3d_tra_MIP_SAG |  | *fl3d1r | GR | 22 3.7 |  | -
CV_map_neuro_qT1_FA12nTI128 |  | fl2d1 | GR\IR | 50 2.5 6376 12 |  | -
Perfusion_Weighted | tgse_pcasl | tgse3d1 | - | 4000 21 |  | -
anat-T1w_acq-tfl | = | *tfl3d1_16ns | GR\IR | 1800 2.41 900 9 | type=ORIGINAL\PRIMARY\M\NONE | T1w
ABCD_T1w_MPR_vNav | = | tfl_me3d1_16ns | GR\IR | 2500 2.14 1060 8 |  | T1w
 |  | tfl_me3d1_16ns | GR\IR | 2500 2.14 1060 8 |  | T1w
 |  | spc_314ns | SE | 3200 564 - 120 |  | T2w
t2_spc_da-fl_sag_p2_iso_1.0 | = | *spcir_284ns | SE\IR | 5000 397 1800 120 |  | FLAIR
gre_field_mapping | = | *fm2d2r | GR | 600 10 - 90 |  | -
 |  | *fm2d2r | GR | 600 10 - 90 |  | -
 |  |  | GR | 600 10 - 90 |  | -
DCE_noGd | = | fl3d1 | GR | 3.5 1.65 - 15 | slices=80 | -
 |  | fl3d1 | GR | 3.5 1.65 - 15 | slices=80 | -
T1w_TSE_pre | = | tse2d1_8 | SE | 456 5.3 - 180 |  | T1w
<MPR Collection> | t1_vibe_fs_tra_bh_dyn | *fl3d1 | GR | 5.53 2.81 - 10 | agent=Gadovist | -
"""

GE = r"""
AX T1 | BRAIN W/WO CONTRAST |  | SE | 600 12 |  | T1w
AX T1 | ROUTINE BRAIN FLAIR T2 POST |  | SE | 600 12 |  | T1w
AX T1 +C | BRAIN W/WO CONTRAST |  | SE | 600 12 |  | T1wCE
AX T1 POST GD |  |  | SE | 600 12 |  | T1wCE
AX T1 PRE |  |  | SE | 600 12 | agent=Gadovist | T1w
AX T1 POST-OP |  |  | SE | 600 12 |  | T1w
AX T1 PRE-OP +C |  |  | SE | 600 12 |  | T1wCE
 |  |  | SE | 600 12 | agent=NONE | T1w
 |  |  | SE | 600 12 | agent=MULTIHANCE | T1wCE
AX T2 FLAIR |  |  | IR\SE | 9000 120 2250 |  | FLAIR
OAx T1Flair |  |  | IR\SE | 2300 24 760 |  | T1w
OAx_T1Flair+C |  |  | IR\SE | 2300 24 760 |  | T1wCE
OAx_T2Flair+C |  |  | IR\SE | 9000 120 2250 |  | FLAIR
 |  |  | IR\SE | 9000 120 2250 |  | FLAIR
 |  |  | IR\SE | 2300 24 760 |  | T1w
Sag FLAIR |  |  | IR\SE | 2300 24 760 |  | -
Ax FRFSE T2 |  |  | SE | 4500 102 |  | T2w
 |  |  | SE | 4500 102 |  | T2w
 |  |  | SE | 2200 30 |  | -
SAG 3D BRAVO |  |  | GR | 8.2 3.2 450 12 |  | T1w
 |  |  | RM | 7 2.8 400 11 |  | T1w
 |  | EFGRE3D | GR | 8.2 3.2 450 12 |  | T1w
 |  |  | GR | 8.2 3.2 - 12 | slices=160 | T1w
3D Ax T1 MP-RAGE_R22 | Brain Advanced Sequences |  | RM\IR | 2218 3.2 1000 8 |  | T1w
 |  |  | RM\IR | 2218 3.2 1000 8 |  | T1w
AX T1  POST : Processed_CaPTk |  |  | SE | 600 12 |  | T1wCE
AXIAL T1 FLOW COMP POST : Processed_CaPTk |  |  | SE | 600 12 |  | T1wCE
Ax IR-FSPGR |  |  | GR | 9 3.6 400 20 |  | T1w
 |  | BRAVO | GR | 8.2 3.2 450 12 |  | T1w
Sag CUBE FLAIR |  |  | SE\IR | 6500 120 1850 |  | FLAIR
OCor_CUBE_T1_fs_+C |  |  | SE | 600 13 |  | T1wCE
OCor_CUBE_T2 |  |  | SE | 2500 66 |  | T2w
3D TOF |  |  | GR | 23 3.2 - 18 |  | -
 |  |  | GR | 23 3.2 - 18 | slices=160 | -
Ax SWAN |  |  | GR | 40 24 - 15 |  | -
AX T2* GRE |  |  | GR | 600 20 - 20 |  | -
AX T2 GRE |  |  | GR | 600 20 - 20 |  | -
 |  |  | GR | 600 20 - 20 |  | -
FIESTA-C |  |  | GR | 5.6 2.2 - 55 |  | -
 |  |  | GR | 5.6 2.2 - 55 | slices=160 | -
ADC (10^-6 mm²/s):Apr 21 2019 12-59-32 CST |  |  | EP\SE | 5000 80 |  | -
eADC |  |  | EP | 5000 80 | type=DERIVED\SECONDARY\ADC | -
FAT: Ax T1 Dixon |  |  | GR | 7 2.1 - 12 |  | -
Ax MERGE |  |  | GR | 500 14 |  | -
STIR |  |  | SE\IR | 4500 45 150 |  | -
3-Pl Loc |  |  | SE | 1500 80 |  | -
AX T1 W/WO GD |  |  | SE | 600 12 | agent=Gadovist | T1wCE
sag t2 T1-T12 |  |  | SE | 3500 100 |  | T2w
SAG C7-T1 |  |  | SE | 3500 100 |  | -
AX T1 NO FS +C |  |  | SE | 600 12 |  | T1wCE
AX T1 WITHOUT FS |  |  | SE | 600 12 | agent=Gadovist | T1wCE
AX T1 POST FOSSA |  |  | SE | 600 12 |  | T1w
COR FS | PITUITARY T1 W/WO |  | SE | 3000 15 |  | -
SAG STIR C1-T1 |  |  | SE\IR | 4500 45 150 |  | -
"""

PHILIPS = r"""
sT1W_3D_TFE | WIP sT1W_3D_TFE SENSE |  | GR | 8.1 3.7 - 8 |  | T1w
sT1W_3D_TFE_PRE_GD |  |  | GR | 8.1 3.7 - 8 | agent=Gadovist | T1w
sT1W_3D+C |  |  | GR | 8.1 3.7 - 8 |  | T1wCE
CS sag sT1W_3D_TFE nativ |  |  | GR | 8.1 3.7 - 8 |  | T1w
eT1W_SE |  |  | SE | 550 15 |  | T1w
 |  | T1TFE | GR | 8.1 3.7 - 8 |  | T1w
 |  | TFE | GR | 8.1 3.7 - 8 | slices=160 | T1w
 |  | T2TSE | SE | 3000 80 |  | T2w
 |  | TSE | SE | 3000 80 |  | T2w
eFLAIR_longTR_SPIR |  |  | SE\IR | 11000 140 2800 |  | FLAIR
 |  | FLAIR | SE\IR | 11000 140 2800 |  | FLAIR
T2W_TSE |  |  | SE | 3000 80 |  | T2w
DUAL_TSE T2 |  |  | SE | 2700 14 |  | -
PDW_TSE |  |  | SE | 2700 90 |  | -
3D_Brain_VIEW_T2 |  |  | SE | 2500 250 |  | T2w
3D_Brain_VIEW_FLAIR |  |  | SE\IR | 4800 320 1650 |  | FLAIR
 |  |  | SE\IR | 4800 320 1650 |  | FLAIR
T1W_IR_TSE |  |  | SE\IR | 3200 15 400 |  | T1w
VEN_BOLD |  |  | GR | 20 29 - 10 |  | -
 |  |  | SE | 5000 70 | b=1000 | -
DwiSE |  | DwiSE | SE | 5000 70 |  | -
 |  | DwiSE | SE | 5000 70 |  | -
SmartBrain |  |  | GR | 5 2 - 10 |  | -
s3DI_MC_HR |  |  | GR | 23 3.5 - 18 | slices=160 | -
AnatBrain_T1W3D | WIP AnatBrain_T1W3D |  | GR | 8 4.6 - 8 | type=ORIGINAL\PRIMARY\T1\MIXED | T1w
 |  |  | GR | 8 4.6 - 8 | type=ORIGINAL\PRIMARY\T1\MIXED | T1w
 |  |  | SE | 3000 90 | type=ORIGINAL\PRIMARY\T2\NONE | T2w
 |  |  | SE | 3000 12 | type=ORIGINAL\PRIMARY\T2\NONE | -
 |  |  | SE\IR | 8000 120 | type=ORIGINAL\PRIMARY\FLUID_ATTENUATED\NONE | FLAIR
 |  |  | SE | 3000 90 | type=ORIGINAL\PRIMARY\STIR\NONE | -
 |  |  | GR | 600 20 | type=ORIGINAL\PRIMARY\T2_STAR\NONE | -
T2_map_5_echoes | WIP_T2_map_5_echoes |  | RM | 6385 80 - 90 | type=ORIGINAL\PRIMARY\T2\MAP | -
 |  |  | RM | 6385 80 - 90 | type=ORIGINAL\PRIMARY\T2\MAP | -
MPRAGE_S2 | MPRAGE_S2 SENSE |  | - |  |  | T1w
FAST LOCALIZER | = |  | GR | 16 3.7 - 20 |  | -
"""

OTHERS = r"""
t1_gre_fsp_3d_sag_iso_ACS | t1_gre_fsp_3d_sag | gre_fsp | GR | 7.2 3.1 750 10 |  | T1w
t1_gre_fsp_3d_sag_ACS+C |  | gre_fsp | GR | 7.2 3.1 750 10 |  | T1wCE
 |  | gre_fsp | GR | 7.2 3.1 750 10 |  | T1w
t2_fse_tra |  | fse | SE | 4300 110 |  | T2w
 |  | fse | SE | 4300 110 |  | T2w
T2_mx3D_Flair_Sag_fs |  | fse_mx | SE\IR | 6500 420 1900 |  | FLAIR
 |  | fse_flair | SE\IR | 9000 110 2400 |  | FLAIR
tof3d_tra_uCS |  | gre | GR | 20 3.4 - 18 |  | -
dti_tra_dir16_PA |  | epi_dwi | EP | 5000 80 |  | -
 |  |  | SE | 4000 240 - 90 | type=DERIVED\SECONDARY\OTHER | -
T2W |  |  | SE | 4000 105 |  | T2w
 |  |  | SE\IR | 8000 90 1200 | tesla=0.3 | FLAIR
 |  |  | SE\IR | 8000 90 1200 | tesla=1.5 | -
anat-T1w | = |  | - |  | type=DERIVED\SECONDARY | T1w
 |  | qit_conv v2.1 | SE | 4500 96 |  | T2w
 |  | NIFTI2DICOM | SE | 600 12 |  | T1w
 |  | 3dasl | RM | 4600 10 1525 |  | -
 |  | 3dasl | SE | 4600 80 |  | -
converted by dcm2niix v1.0.20210317 |  | x_1 | SE\IR | 9000 120 2500 |  | FLAIR
vessel wall | vessel wall | qit_conv | SE | 800 12 |  | -
sub-01_ses-02_T1w |  |  | - |  |  | T1w
sub-CTRL01_acq-space_T2w |  |  | - |  |  | T2w
sub-CTRL01_FLAIR |  |  | - |  |  | FLAIR
tfl3d1_16ns |  |  | - |  |  | T1w
T1 sans injection |  |  | - |  | agent=Gadovist | T1w
T1 SE AX SANS GADO |  |  | - |  | agent=Gadovist | T1w
3D T1 après injection |  |  | - |  |  | T1wCE
AX T1 EG GADO |  |  | - |  |  | T1wCE
T1 MPRAGE GADO |  |  | - |  |  | T1wCE
AX T2 2 ECHOS |  |  | SE | 3000 15 |  | -
T1 tra nach KM |  |  | - |  |  | T1wCE
T1 tra vor KM |  |  | - |  | agent=Gadovist | T1w
T1 ohne KM |  |  | - |  | agent=Gadovist | T1w
T1 senza mdc |  |  | - |  | agent=Gadovist | T1w
T1 dopo mdc |  |  | - |  |  | T1wCE
SAG T1 SIN CONTRASTE |  |  | - |  | agent=Gadovist | T1w
SAG T1 CON CONTRASTE |  |  | - |  |  | T1wCE
T1 平扫 |  |  | - |  | agent=Gadovist | T1w
T1 без контраста |  |  | - |  | agent=Gadovist | T1w
T1 с контрастом |  |  | - |  |  | T1wCE
T1 增强 |  |  | - |  |  | T1wCE
Ax T1 BRAVO daohang |  |  | - |  |  | T1w
AXIAL | HEAD ROUTINE |  | SE | 520 14 |  | T1w
Series 3 |  |  | SE | 4500 98 |  | T2w
AX POST GD |  |  | SE | 520 14 |  | T1wCE
anonymized | = |  | SE\IR | 9000 120 2500 |  | FLAIR
black blood wall |  |  | SE | 800 12 |  | -
T1 T2 overview |  |  | SE | 2500 60 |  | -
T1 map |  |  | SE | 500 10 |  | -
T1w |  |  | SE | 4000 100 |  | -
T2w |  |  | SE | 4000 12 |  | -
AX T1 |  |  | - |  | agent=Gadovist type=DERIVED\SECONDARY\SUBTRACT | -
t1 phase |  |  | - |  | type=ORIGINAL\PRIMARY\P\ND | -
t1_mprage |  |  | - |  | type=ORIGINAL\PRIMARY\P\ND | -
 |  |  | - |  |  | -
"""

NUMBERS = ("repetition_time", "echo_time", "inversion_time", "flip_angle")


def read(table, **shared):
    """The rows of a table: header fields, and the verdict."""
    for line in table.strip().splitlines():
        description, protocol, sequence, scanning, times, more, verdict = map(
            str.strip, line.split("|")
        )
        header = {
            **shared,
            "series_description": description,
            "protocol_name": description if protocol == "=" else protocol,
            "sequence_name": sequence,
            "scanning_sequence": tuple(scanning.replace("-", "").split("\\")),
        }
        for name, value in zip(NUMBERS, times.split(), strict=False):
            header[name] = None if value == "-" else float(value)
        for item in more.split():
            name, value = item.split("=")
            if name == "agent":
                header["contrast_agent"] = value
            elif name == "type":
                header["image_type"] = tuple(value.split("\\"))
            else:
                full = {"b": "b_value", "tesla": "field_strength"}.get(name, name)
                header[full] = float(value)
        yield pytest.param(header, None if verdict == "-" else verdict, id=line)


@pytest.mark.parametrize(
    ("header", "modality"),
    [
        *read(SIEMENS, manufacturer="SIEMENS"),
        *read(GE, manufacturer="GE MEDICAL SYSTEMS"),
        *read(PHILIPS, manufacturer="Philips Medical Systems"),
        *read(OTHERS, manufacturer="UIH"),
    ],
)
def test_real_headers_are_what_they_are_or_unknown(header, modality):
    header = {"modality": "MR", **header}
    (series,), _ = assemble(stack(range(int(header.pop("slices", 24))), **header))
    assert modality_by_rules(series, ()) == modality, header
