"""A vendor's header has a real one's length and depth, and every reader takes it as sound."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset

from beam_jobs.phantoms.series import SeriesSpec, write_series
from beam_jobs.phantoms.vendor_headers import VENDORS, Vendor

KILOBYTES = {"GE": (8, 12), "Philips": (10, 20), "UIH": (8, 12), "Siemens": (60, 100)}
FORMS = [(vendor, syntax) for vendor in VENDORS for syntax in ("explicit", "implicit")]


def series(vendor: Vendor, syntax: Any, folder: Path) -> list[Path]:
    spec = SeriesSpec(modality="T1w", rows=16, columns=20, slices=5, vendor=vendor,
                      transfer_syntax=syntax)  # fmt: skip
    return list(write_series(spec, folder, lambda xyz: np.rint(900 + xyz @ [1, 2, 1.5])).paths)


def sequences(dataset: Dataset) -> Iterator[tuple[int, Any]]:
    """(depth, element) of every sequence."""
    for element in dataset:
        if element.VR == "SQ":
            yield 1, element
            for item in element.value:
                yield from ((depth + 1, inner) for depth, inner in sequences(item))


@pytest.mark.parametrize(("vendor", "syntax"), FORMS)
def test_pydicom_reads_it_without_a_warning(vendor: Vendor, syntax: str, tmp_path: Path) -> None:
    path = series(vendor, syntax, tmp_path)[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = pydicom.dcmread(path)
        str(dataset)  # reads every element
    found = list(sequences(dataset))
    assert max(depth for depth, _ in found) >= 2
    assert all(element.is_undefined_length for _, element in found)
    assert all(i.is_undefined_length_sequence_item for _, e in found for i in e.value)
    least, most = KILOBYTES[vendor]
    assert least <= (path.stat().st_size - len(dataset.PixelData)) / 1000 <= most
    assert any(element.tag.is_private_creator for element in dataset)


@pytest.mark.parametrize(("vendor", "syntax"), FORMS)
def test_simpleitk_and_dcm2niix_read_the_same_volume(
    vendor: Vendor, syntax: str, tmp_path: Path
) -> None:
    paths = series(vendor, syntax, tmp_path / "in")
    expected = np.stack([pydicom.dcmread(path).pixel_array for path in paths])
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "in")))
    read = reader.Execute()
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(read), expected)
    assert read.GetSpacing() == pytest.approx((3, 3, 5))
    done = subprocess.run(
        [str(Path(sys.executable).with_name("dcm2niix")), "-f", "read", "-b", "n", "-o",
         str(tmp_path), str(tmp_path / "in")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = done.stdout.splitlines()[1:]  # the first is the version
    expected_lines = ("Found 5 DICOM", "Convert 5 DICOM", "Conversion required", "::autoBids")
    assert not [line for line in said if not line.startswith(expected_lines)]
    ras = nibabel.funcs.as_closest_canonical(nibabel.nifti1.load(tmp_path / "read.nii"))
    volume = np.asarray(ras.dataobj)
    np.testing.assert_array_equal(volume[::-1, ::-1].transpose(2, 1, 0), expected)


@pytest.mark.parametrize("vendor", VENDORS)
def test_nested_content_changes_from_slice_to_slice(vendor: Vendor, tmp_path: Path) -> None:
    one, other = (pydicom.dcmread(path) for path in series(vendor, "explicit", tmp_path)[:2])
    differing = {e.tag for e in one if e.VR == "SQ" and other[e.tag].value != e.value}
    assert differing
    nested = {e.value for d in (one, other) for e in d.iterall() if e.VR == "UI"}
    assert len(nested) > 8


def test_siemens_blocks_are_csa_headers(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(series("Siemens", "implicit", tmp_path)[3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nibabel, about its whole DICOM part
        from nibabel.nicom import csareader
    image = csareader.read(dataset[0x00291010].value)["tags"]
    assert image["ProtocolSliceNumber"]["items"] == ["3"]
    assert len(csareader.read(dataset[0x00291020].value)["tags"]) > 50


def test_without_a_vendor_nothing_private_is_written(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(series("", "explicit", tmp_path)[0])
    assert not [element for element in dataset if element.tag.is_private or element.VR == "SQ"]


def test_an_unknown_vendor_is_refused() -> None:
    with pytest.raises(ValueError, match="vendor must be one of"):
        SeriesSpec(vendor="Acme")  # type: ignore[arg-type]
