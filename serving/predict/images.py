"""The images that an answer was made of, as a report will name them: packed by who reads them.

Workers know which series a case is made of, and read whose they are; the reports are written where
the answers are known. Between these travels a line a patient, packed: a series is a thousand UIDs.
"""

from __future__ import annotations

import base64
import json
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydicom import Dataset

from beam_jobs.core.dicom_out.origin import is_uid, read_origin
from beam_jobs.core.dicom_out.structured_report import Instance
from beam_jobs.core.reasons import RejectedError
from beam_jobs.core.series import Series


class Images(NamedTuple):
    """What a patient's report needs of the images.

    Attributes:
      patient_id: as the prediction has it.
      packed: of `Origin`; "" where there can be no report.
      refusal: why there can be none; "" where there can.
    """

    patient_id: str
    packed: str
    refusal: str = ""

    @property
    def origin(self) -> Origin:
        """Unpacked."""
        data = json.loads(zlib.decompress(base64.b64decode(self.packed)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are not quite as they should be
            header = Dataset.from_json(data["header"])
        return Origin(header, [Instance(*one) for one in data["instances"]], data["series"])


class Origin(NamedTuple):
    """Whose the images are, and which.

    Attributes:
      header: of `read_origin`, of an image of the study that most of the series are of.
      instances: every object, once.
      series: modality -> SeriesInstanceUID.
    """

    header: Dataset
    instances: list[Instance]
    series: dict[str, str]


def images_of(patient_id: str, used: Mapping[str, Series], looked_at: Sequence[str]) -> Images:
    """What a patient's report needs; reads one header.

    Args:
      patient_id: as the prediction has it.
      used: modality -> the series that the case is made of.
      looked_at: the modalities that the model looks at.
    """
    series = {name: used[name] for name in looked_at if name in used}
    if why := _refusal(series):
        return Images(patient_id, "", why)
    headers = [header for one in series.values() for header in one.headers]
    studies = Counter(one.first.study_uid for one in series.values())
    [(study, _)] = studies.most_common(1)  # the first of several
    try:
        header = read_origin(next(one.path for one in headers if one.study_uid == study))
    except RejectedError as error:
        return Images(patient_id, "", str(error.reason))
    found = [
        Instance(h.study_uid, h.series_uid, h.sop_class, h.sop_uid, h.modality) for h in headers
    ]
    data = {
        "header": header.to_json_dict(),
        "instances": list(dict.fromkeys(found)),
        "series": {name: one.first.series_uid for name, one in series.items()},
    }
    packed = base64.b64encode(zlib.compress(json.dumps(data, sort_keys=True).encode()))
    return Images(patient_id, packed.decode())


def _refusal(series: Mapping[str, Series]) -> str:
    """Why series cannot be named in a report, "" where they can."""
    headers = [header for one in series.values() for header in one.headers]
    if not headers:
        return "no series that the model looks at"
    if any(header.is_nifti for header in headers):
        return "NIfTI"
    if len({header.patient_id for header in headers}) > 1:
        return "series of several PatientIDs"
    uids = {uid for h in headers for uid in (h.study_uid, h.series_uid, h.sop_class, h.sop_uid)}
    if not all(map(is_uid, uids)):
        return "images without UIDs"
    return ""
