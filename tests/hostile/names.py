"""A cohort whose every name is an attack: directories, files, headers, labels."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pydicom

# Of patients' directories, thus ids; no two of them for one purpose.
IDS = (
    "=HYPERLINK(\"http:__x.test\",\"open\")",
    "\x1b]8;;http:x.test\x1b\\\x1b[2J\x9b31m",
    "[bold red]x[link=file:x]y[blink]",
    "$\\frac{1}{0}$ $x",
    "<script>alert(1)<!--\"'><img src=x onerror=alert(1)>",
    "\u202e\u2066evil\u200b",
    "a\nb: error: forged\r=1+1",
    "{{7*7}}{%raw%}%(x)s%n{0}",
)  # fmt: skip
TEST_IDS = ("@SUM(1)", "-2+3 cmd|' _C calc'!A0\x07")
DESCRIPTION = "=T1+\x1b[31m[/red]$^$</script><b>\u202e"


def spoil(cohort: Path) -> None:
    """Gives a cohort's patients the names, its files' headers the description, labels the ids."""
    for part, ids in (("train", IDS), ("test", TEST_IDS)):
        patients = sorted((cohort / part).iterdir())
        names = {patient.name: name for patient, name in zip(patients, ids, strict=True)}
        for patient in patients:
            for number, path in enumerate(sorted(patient.rglob("*.dcm"))):
                dataset = pydicom.dcmread(path)
                dataset.SpecificCharacterSet = "ISO_IR 192"
                dataset.PatientID = names[patient.name]
                dataset.SeriesDescription = DESCRIPTION
                dataset.save_as(path)
                if number == 0:
                    path.rename(path.with_name(f"\x1b[1m[b]={path.name}"))
            patient.rename(cohort / part / names[patient.name])
        table = cohort / ("train_labels.csv" if part == "train" else "sample_submission.csv")
        header, *rows = csv.reader(io.StringIO(table.read_text()))
        stream = io.StringIO(newline="")
        writer = csv.writer(stream)  # of "\r\n": a carriage return in an id is quoted
        writer.writerow(header)
        found = {name.lstrip("0"): name for name in names}
        writer.writerows([names[found[row[0].lstrip("0")]], *row[1:]] for row in rows)
        table.write_bytes(stream.getvalue().encode())
