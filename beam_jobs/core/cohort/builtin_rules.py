"""The built-in rules: what the words, names and times of MR headers say, as data.

Words are those of descriptions and protocols in English, German, French, Spanish and Italian, and
of the vendors' sequences; names are SequenceName's; times are in ms. What contradicts itself (a
"T2" with the echo time of a proton density image) or says nothing is left unknown: a series that
is missing is seen, one of the wrong kind is learnt from. So is what is computed of other images:
maps, masks, fusions, reformats, differences.

Whether a T1-weighted series is enhanced is asked apart (`cohort.contrast`): the rules here give
"T1w" for both.
"""

from __future__ import annotations

import re
import unicodedata

from beam_jobs.core.cohort.contrast import (
    ENHANCED,
    PLAIN,
    with_signs_as_words,
    without_contrast_words,
    without_exams,
    words,
)
from beam_jobs.core.cohort.rules import ModalityRule

T1, T1CE, T2, FLAIR = "T1w", "T1wCE", "T2w", "FLAIR"
BUILT_IN = (FLAIR, T1, T1CE, T2)

_LONGEST = 256  # characters of a text that are looked at; the standard allows 64
_BIDS_SUBJECT = re.compile(r"^\s*sub-[a-z0-9]+_(?:ses-[a-z0-9]+_)?", re.IGNORECASE)
# "T1-T4", "C7/T1" and "T1 to L5" are vertebrae.
_VERTEBRAE = re.compile(
    r"(?<![a-z0-9])[ctls]\d{1,2} ?(?:[-/–]|to|bis) ?[ctls]\d{1,2}(?![a-z0-9])", re.IGNORECASE
)
# Words of other scripts that change what a series is; the rest is dropped.
_TRANSLATED = {
    "增强前": " plain ", "造影前": " plain ", "без контраст": " plain ", "平扫": " plain ",
    "до контраст": " plain ", "조영전": " plain ", "조영 전": " plain ", "単純": " plain ",
    "增强": " gd ", "增強": " gd ", "造影": " gd ", "조영": " gd ", "контраст": " gd ",
    # Letters that have no accent to take away.
    "ı": "i", "ø": "o", "ł": "l", "æ": "ae", "Ø": "O", "Ł": "L", "Æ": "AE",
}  # fmt: skip


def normalised(text: str) -> str:
    """A text as the rules below read it: small letters without accents, words apart by one blank.

    >>> normalised("t2_tirm_tra_dark-fluid"), normalised("T1W_3D+C")
    ('t2 tirm tra dark fluid', 't1w 3d +c')
    """
    text = text[:_LONGEST]
    for word, meaning in _TRANSLATED.items():
        text = text.replace(word, meaning)
    text = unicodedata.normalize(
        "NFKD", _VERTEBRAE.sub(" vertebrae ", _BIDS_SUBJECT.sub("", text)).casefold()
    )
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    text = with_signs_as_words(text).replace("+", " +")
    text = re.sub(r"[^a-z0-9+*]+", " ", text)
    return " ".join(without_exams(" ".join(text.split())).split())


_PREFIX = r"(?:[es]|3d|2d|ax|sag|sg|cor|tra|o?ax|o?sag|o?cor)?"
_T1_WORD = (
    words(
        rf"{_PREFIX}t1(?:wi?|weighted)?(?:ce|gd|c|km)?(?:se|tse|fse|ffe|tfe|ir|gre|mpr|fl[23]d|vibe|"
        r"mprage|space|spc|spgr|flair|tirm|fs|3d)?"
    )
    + "(?! level| vertebra)"
)
_T1_NAME = words(*(r"\w*mp ?rage\w*", r"\w*mp2rage\w*", r"bravo\w*", r"(?:ir ?)?f?spgr", "uni den"))
# Also of abdomens and dynamic series: T1-weighted where a text speaks of contrast agent.
_FAST_T1 = words(r"lava\w*", r"e? ?thrive", "vibe")
_T1 = rf"(?:{_T1_WORD}|{_T1_NAME})"
_T2 = words(
    _PREFIX + r"t2(?:wi?|weighted)?(?:se|tse|fse|frfse|space|spc|vista|cube|blade|propeller|"
    r"haste|fs|3d)?"
)
_FLAIR = words(r"\w*flair\w*", r"dark ?fl\w*", "da ?fl")
_FAST_T1_WITH_AGENT = rf"^(?!.*{_T2})(?!.*{_FLAIR})(?=.*{_FAST_T1})(?:.*{PLAIN}|.*{ENHANCED})"
_T1_ALONE = rf"^(?!.*{_T2})(?=.*{_T1})"
_T2_ALONE = rf"^(?!.*{_T1})(?!.*{_FLAIR})(?=.*{_T2})"
_FLAIR_ALONE = rf"^(?!.*{_T1})(?=.*{_FLAIR})"

_NOTHING = (
    words(
        # Diffusion, perfusion, function.
        r"dwi?|\w+dwi|dw(?:se|ssh)\w*|diff\w*|d?dti\w*|dmri\w*|tensor\w*|trace\w*|[a-z]*adc|ivim|"
        r"noddi|dki|fa map|perf\w*|dsc|dce|pwi|\w*asl|r?cb[fv]|mtt|ttp|tmax|\w*bold\w*|"
        r"\w*fmri\w*|resting|rest state|task|dyn\w*|twist|tricks|time ?resolved|4d|ep[23]d\w*|epi|"
        r"epi2d\w*|mbep2d\w*|b ?(?:0|\d{3,4})|permeab\w*|k ?trans|kep|cvr|csf flow",
        # Scouts, calibration, fields, reports.
        r"\w*scout\w*|lo[ck]ali[sz]er\w*|loc|survey|smartbrain|pilot|3 ?plane|calib\w*|asset cal|"
        r"ref ?scan|setter|field ?map\w*|fmap|gre field.*|b[01] ?map\w*|b1|screen ?s\w*|"
        r"report|phoenix.*|posdisp|mobiview|key images?",
        # What is computed of other images, and maps of quantities.
        r"\w*mask\w*|\w*seg|segm\w*|parcel\w*|tract\w*|fib(?:er|re)s?|overlay\w*|fus(?:ed|ion\w*)|"
        r"atlas|template|ratio|vrt?|ssd|render\w*|surface|curved|cpr|thick (?:mpr|mip|slab|range)|"
        r"mpr thick|\w*map(?:p(?:ing|e)\w*)?|\w*relax\w*|mean curve|colou?r\w*|minus|differen\w*|"
        r"delta|capture|snapshots?|cine|movie|z ?score|labels?|prob\w*|pet|ct|rt ?dose|"
        r"vfa|fa ?\d+|despot\w*|hifi|mpm",
        # Contrasts of their own: nulled tissue, signed inversion, black blood, neuromelanin.
        r"fgatir|edge|wmn\w*|flaws\w*|psir\w*|(?:white matter|gr[ae]y matter|wm|gm|csf) ?null\w*|"
        r"(?:inv|ir|t1) real|real|phase ?sens\w*|qalas|grase|tgse|"
        r"bb|(?:black|dark) ?blood|dante|msde\w*|vwi|vw|(?:vessel ?)?wall|plaque|neuromel\w*|nm",
        r"subtr\w*|(?<=\w )subs?|mip|minip|projections?|projected|pha(?:se)? ?im\w*|phase|"
        r"mag(?:nitude)? ?im\w*|"
        r"(?:q?t[12]|pd|r2|r1)? ?maps?|qt[12]|r2 ?(?:s|star)|t1 images|t1 ?rho|cest|synthetic|"
        r"\w*magic\w*|mre|elasto\w*|inv ?[12]|mrs|svs|csi|spectro\w*",
        # Vessels, susceptibility, steady state, fluids and fat.
        r"\w*tof\w*|c?e?mra|mrv|mrcp|angio\w*|inhance|pca?|phase contrast|q ?flow|swip?|swan|"
        r"\w*veno?bold|t2 ?\*.*|t2w? ?st(?:ar|ern)\w*|medic|merge|me ?gre|hemo|qsm|ciss|fiesta\w*|"
        r"tru ?fi\w*|true ?fisp|b ?ffe|b?ssfp|dess|stir|dir|myelo\w*|mtc?|mt (?:on|off)|"
        r"(?:out|in) ?phase|opp\w*|oop|dixon (?:f|fat|in|ip|op)|fat ?(?:frac\w*|only|images?)",
    )
    + r"|^fat (?!sat|sup)|^col (?=ax|sag|cor|tra|[23]d|t[12])|^isotropic(?: images?)?$|^sub (?!\d)"
)

# Names of pulse sequences, at the beginning of SequenceName or of a text that repeats it.
_NAME = r"^\*?(?:wip ?)?"
_NO_WEIGHTING = _NAME + (
    r"(?:ep|re ?b|resolve|fm\d|fm2d|swi|tof|fl[23]d\d+r|fl mt|me ?fl|qfl|tfi|ci3d|de3d|fid|svs|csi|"
    r"tgse|grase|tfl2d|pc|dwi|hdwi|gre fieldmap|gre fm|tfl b1|b1|asl|spiral|mag|pha)"
)
# Families whose times tell the weighting, whatever the description says.
KNOWN_FAMILY = _NAME + (
    r"(?:q?tse|se|spc|t?ir|tfl|fl[23]d|h2d|fse|frfse|gre|ffe|tfe|spgr|space|cube|vista|mx3d|efgre3d)"
)

# Texts and names that say nothing of the weighting: the times may.
_SILENT_WORD = re.compile(
    r"ax\w*|tra|trans\w*|sag\w*|sg|cor\w*|obl\w*|o(?:ax|sag|cor)|[23]d|\d*t|mri?|head|brain|neuro\w*|"
    r"kopf|schadel|schaedel|hirn|gehirn|cerebr\w*|crane|cranio|encephale|tete|testa|"
    r"routine|standard|protocol|protokoll|seri\w*|stud\w*|scan|sequence|images?|volume|wip|sense|cs|"
    r"anon\w*|de|identified|removed|redacted|deleted|blank|unknown|unnamed|none|no|not|found|name|n|a|"
    r"null|empty|default|x+|repeat|rpt|"
    # Tools, in whatever they wrote.
    r"nii\w*|nifti\w*|dicom\w*|dcm\w*|convert\w*|conversion|created|generated|export\w*|by|from|of|"
    r"v\d*|[0-9a-f]{8,}|"
    r"itk|simpleitk|slicer|mricro\w*|osirix|horos|orthanc|xnat|plastimatch|pydicom|matlab|python|"
    r"q?tse|f?se|gre|ffe|ir|iso\w*|mm|p\d|\d+\w?|fs|fat|sat|hr|hd|high|low|res|resolution|thin|thick|"
    r"slices?|with|without|w|wo|o|and|contrast|tumou?r|mpr|dual|double|\d*echo(?:e?s)?|"
    r"frfse|iac|iam|orbits?|[*+]+"
)
# Further words that leave an image what its weighting's name says.
_HARMLESS_WORD = re.compile(
    r"anat\w*|acq|run|rms|vnav|tfl|tfe|tse|fse|spc|space|cube|vista|view|vibe|spgr|fspgr|blade|"
    r"propeller|haste|mx|spair|spir|stealth|navi\w*|pituitary|sella|hypophyse|hippo\w*|post|pre|"
    r"flow|comp|weighted|sat|water|spine|neck|epileps\w*|stereo\w*|gamma|knife|baseline"
)


def says_nothing(text: str) -> bool:
    """Whether a normalised text has no word that could tell what a series shows."""
    return all(map(_SILENT_WORD.fullmatch, without_contrast_words(text).split()))


def is_plainly_named(text: str) -> bool:
    """Whether a normalised text names a weighting, and no word of it could say anything else.

    >>> is_plainly_named("anat t1w"), is_plainly_named("fa on t1"), is_plainly_named("")
    (True, False, False)
    """
    rest = without_contrast_words(text)
    for weighting in (_T1, _T2, _FLAIR):
        rest = re.sub(weighting, " ", rest)
    return rest != text and all(
        _SILENT_WORD.fullmatch(word) or _HARMLESS_WORD.fullmatch(word) for word in rest.split()
    )


# Images of no modality whatever their texts say: ImageType's values, diffusion, echo-planar images.
EXCLUDED: tuple[ModalityRule, ...] = (
    ModalityRule(
        modality=None,
        image_type=r"(?:^|\\|_)(?:ADC|EADC|TRACEW?|FA|DIFFUSION|PERFUSION|ASL|FMRI|MIP|MNIP|"
        r"SUB(?:TRACT(?:ION)?)?|SWI|T[12]_?(?:STAR_?)? ?MAP|R2_?STAR.*|T1R?HO.*|PHASE(?: MAP)?|"
        r"VELOCITY(?: MAP)?|MAP|T2_STAR|FLOW_ENCODED|STIR|PROTON_DENSITY|TEMPERATURE|TAGGING|"
        r"(?:B0|B1|FIELD)[_ ]?MAP|FAT|FAT_FRACTION|OPP_PHASE|OUT_PHASE|IN_PHASE|"
        r"R?CB[FV]|MTT|TTP|TMAX|CSA REPORT|POSDISP|SPECTROSCOPY|SYNTHETIC|DENSITY MAP|"
        r"MPR|CSA MPR|CPR|CURVED|REFORMATTED|VRT|SSD|VOLREN|PROJECTION IMAGE|SCREEN ?SAVE|"
        r"SEGMENTATION|FUSION|RGB)(?:\\|$)"
        # Phase and the signed parts of complex images; fat and phases of Dixon images.
        r"|^[^\\]*\\[^\\]*\\(?:[^\\]*\\)?(?:[PIR](?:_[^\\]*)?|REAL|IMAGINARY|F|FF|IP|OP)(?:\\|$)",
    ),
    ModalityRule(modality=None, b_value=(1, None)),
    ModalityRule(modality=None, scanning_sequence=r"\bEP\b"),
)

# For one text at a time. T1-FLAIR is T1-weighted: the inversion shortens contrast, it does not make
# it T2.
_GRADIENT_ECHO = r"^(?!.*\bSE\b).*\b(?:GR|EP)\b"
_INVERTED_SPIN_ECHO = r"^(?!.*\bGR\b).*\bIR\b"
_SPIN_ECHO_SAID = r"^(?!.*\b(?:GR|EP|IR)\b).*\bSE\b"
TEXT_RULES: tuple[ModalityRule, ...] = (
    ModalityRule(modality=None, text=_NOTHING),
    ModalityRule(modality=None, text=_T1_ALONE, echo_time=(40, None)),
    ModalityRule(
        modality=None, text=_T1_ALONE, scanning_sequence=_GRADIENT_ECHO, echo_time=(15, None)
    ),
    # White matter nulled (FGATIR, EDGE), fat or white matter suppressed, the second image of an
    # MP2RAGE. GE's and UIH's prepared gradient echoes, of short repetition, are sound at 400 ms.
    ModalityRule(
        modality=None,
        text=_T1_ALONE,
        scanning_sequence=_GRADIENT_ECHO,
        repetition_time=(1500, None),
        inversion_time=(1, 599),
    ),
    ModalityRule(
        modality=None,
        text=_T1_ALONE,
        scanning_sequence=_INVERTED_SPIN_ECHO,
        inversion_time=(1, 399),
    ),
    ModalityRule(modality=T1, text=_T1_ALONE, inversion_time=(400, None)),
    # A spin echo of long repetition without inversion weights proton density.
    ModalityRule(
        modality=None,
        text=_T1_ALONE,
        scanning_sequence=_SPIN_ECHO_SAID,
        repetition_time=(2000, None),
    ),
    ModalityRule(modality=T1, text=_T1_ALONE),
    ModalityRule(modality=T1, text=_FAST_T1_WITH_AGENT),
    ModalityRule(modality=None, text=_FLAIR_ALONE, scanning_sequence=_GRADIENT_ECHO),
    ModalityRule(
        modality=None, text=_FLAIR_ALONE, scanning_sequence="SE", repetition_time=(1, 2499)
    ),
    ModalityRule(modality=None, text=_FLAIR_ALONE, echo_time=(0.1, 50)),
    ModalityRule(
        modality=None, text=_FLAIR_ALONE, scanning_sequence="IR", inversion_time=(1, 1000)
    ),
    ModalityRule(modality=FLAIR, text=_FLAIR_ALONE),
    ModalityRule(
        modality=FLAIR, text=words("ti[rm]m"), inversion_time=(1100, None), echo_time=(60, None)
    ),
    ModalityRule(modality=None, text=words("ti[rm]m")),
    ModalityRule(modality=None, text=_T2_ALONE, scanning_sequence=r"\b(?:GR|EP)\b"),
    ModalityRule(modality=None, text=rf"{_T2_ALONE}.*{words('fl[23]d', 'gre', 'ffe')}"),
    ModalityRule(modality=None, text=_T2_ALONE, echo_time=(0.1, 50)),
    # Fat (STIR) or water suppressed by inversion: not what the name says.
    ModalityRule(modality=None, text=_T2_ALONE, scanning_sequence="IR", inversion_time=(1, None)),
    ModalityRule(modality=T2, text=_T2_ALONE),
    ModalityRule(modality=None, text=rf"^(?!.*{_T1})(?!.*{_T2}).*{words('pdw?', 'proton', 'dp')}"),
)

# Pulse sequences by name. MPRAGE is known by its name, where its times do not show the second image
# of an MP2RAGE (its first and second have a long repetition, the second a long inversion time).
NAME_RULES: tuple[ModalityRule, ...] = (
    ModalityRule(modality=None, text=_NO_WEIGHTING),
    ModalityRule(modality=T1, text=rf"{_NAME}tfl", image_type=r"\\UNI(?:\\|$)"),
    ModalityRule(modality=None, text=rf"{_NAME}tfl", inversion_time=(1400, None)),
    ModalityRule(modality=None, text=rf"{_NAME}tfl", repetition_time=(3600, None)),
    ModalityRule(modality=None, text=rf"{_NAME}tfl", echo_time=(15, None)),
    ModalityRule(
        modality=None, text=rf"{_NAME}tfl", repetition_time=(1500, None), inversion_time=(1, 599)
    ),
    ModalityRule(modality=T1, text=rf"{_NAME}tfl(?: me)?3d\d+ \d*ns"),
    ModalityRule(modality=None, text=rf"{_NAME}fl2d", flip_angle=(None, 64.9)),
    ModalityRule(
        modality=T1, text=rf"{_NAME}fl2d\d", echo_time=(None, 6), repetition_time=(60, 700)
    ),
    # Over 28 degrees: time-of-flight has less, and its name ends on "r".
    ModalityRule(
        modality=T1, text=rf"{_NAME}fl3d\d", echo_time=(None, 12), repetition_time=(12, 60),
        flip_angle=(28, 60),
    ),
    ModalityRule(
        modality=T1, text=rf"{_NAME}fl3d\d", echo_time=(2.3, 6), repetition_time=(5, 12),
        flip_angle=(7, 13), slices=(60, None),
    ),
    ModalityRule(modality=None, text=rf"{_NAME}fl[23]d"),
)  # fmt: skip

# Times alone, for spin echo (absent ScanningSequence counts as such) and gradient echo.
_SPIN_ECHO = r"^(?!.*\b(?:GR|EP|IR)\b)"
_NOT_GRADIENT = r"^(?!.*\b(?:GR|EP)\b)"
_RECALLED = r"\b(?:GR|RM)\b"  # "RM", research mode, is what GE writes for its prepared 3D sequences
_FLAVOUR = r"^[^\\]*\\[^\\]*\\"
TIME_RULES: tuple[ModalityRule, ...] = (
    ModalityRule(modality=T1, image_type=r"\\UNI(?:\\|$)"),  # of an MP2RAGE
    # The flavour of enhanced objects (PS3.3 C.8.13.3.1.1), where the echo time does not contradict.
    ModalityRule(modality=T1, image_type=rf"{_FLAVOUR}T1\\", echo_time=(0.1, 40)),
    ModalityRule(modality=T2, image_type=rf"{_FLAVOUR}T2\\", echo_time=(50, None)),
    ModalityRule(modality=FLAIR, image_type=rf"{_FLAVOUR}FLUID_ATTENUATED\\", echo_time=(50, None)),
    # Fluid is nulled the later the longer the repetition; two inversions (DIR) have a later one.
    *(
        ModalityRule(
            modality=FLAIR, scanning_sequence=_NOT_GRADIENT, echo_time=(60, None),
            repetition_time=(repetition, None), inversion_time=(1500, latest),
        )
        for repetition, latest in ((4000, 2000), (6000, 2300), (7500, 2600), (9500, 2950))
    ),
    # Fluid is nulled sooner at low field.
    ModalityRule(
        modality=FLAIR, scanning_sequence=_NOT_GRADIENT, field_strength=(0.05, 0.6),
        echo_time=(60, None), repetition_time=(3000, None), inversion_time=(1000, 2950),
    ),
    # MPRAGE, and T1-FLAIR.
    ModalityRule(
        modality=T1, echo_time=(None, 30), repetition_time=(1500, 3500), inversion_time=(500, 1300)
    ),
    # The same as GE and UIH write it: the repetition time is that between two echoes.
    ModalityRule(
        modality=T1, scanning_sequence=_RECALLED, echo_time=(None, 8), repetition_time=(4, 15),
        inversion_time=(300, 1300),
    ),
    ModalityRule(modality=None, scanning_sequence=r"^$|\bIR\b", inversion_time=(1, None)),
    ModalityRule(
        modality=T2, scanning_sequence=_SPIN_ECHO, echo_time=(75, None),
        repetition_time=(1800, None),
    ),
    ModalityRule(
        modality=T1, scanning_sequence=_SPIN_ECHO, echo_time=(None, 30),
        repetition_time=(250, 1200),
    ),
    # Gradient echo: the flip angle is far above Ernst's. Localizers, field maps and steady states
    # have other angles or few slices, angiograms and perfusion shorter times or larger angles.
    ModalityRule(
        modality=T1, scanning_sequence=_RECALLED, echo_time=(None, 6), repetition_time=(60, 700),
        flip_angle=(65, 90),
    ),
    ModalityRule(
        modality=T1, scanning_sequence=_RECALLED, echo_time=(2.3, 6), repetition_time=(5, 12),
        flip_angle=(7, 13), slices=(60, None),
    ),
)  # fmt: skip
