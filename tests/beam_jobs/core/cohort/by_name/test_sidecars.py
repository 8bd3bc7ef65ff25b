"""What lies beside NIfTI files is counted, and nothing of a heap of DICOM is."""

from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.by_name.sidecars import listing, without_sidecars

BIDS = (
    "README", "CHANGES", "dataset_description.json", "participants.tsv",
    "sub-01/anat/sub-01_T1w.json", "sub-01/anat/sub-01_T1w.nii.gz",
    "sub-01/func/sub-01_task-rest_bold.nii.gz",
    "sub-01/dwi/sub-01_dwi.nii.gz", "sub-01/dwi/sub-01_dwi.bval", "derivatives/x/sub-01_T1w.nii.gz",
    "sourcedata/sub-01/1.dcm", "code/run.py", "sub-01/anat/1.dcm",
)  # fmt: skip


def of(names, root="r"):
    entries = [files.Entry(f"{root}/{name}") for name in names]
    found = without_sidecars(files.Listing(entries, {"hidden": 1}), root)
    return [entry.path.removeprefix(f"{root}/") for entry in found.entries], dict(found.left_out)


def test_what_lies_beside_nifti_is_left_out_and_counted():
    entries, left_out = of(BIDS)
    assert entries == ["sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/1.dcm"]
    assert left_out == {
        "hidden": 1, "README": 1, "CHANGES": 1, ".json": 2, ".tsv": 1, "_bold": 1, "_dwi": 1,
        ".bval": 1, "in derivatives/": 1, "in sourcedata/": 1, "in code/": 1,
    }  # fmt: skip
    assert len(entries) + sum(left_out.values()) == len(BIDS) + 1


def test_a_derivative_that_is_the_input_is_read():
    names = ["sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"]
    assert of(names, "ds/derivatives/fmriprep")[0] == names


def test_nothing_is_left_out_where_there_is_no_nifti():
    names = [name for name in BIDS if ".nii" not in name]
    assert of(names) == (names, {"hidden": 1})


def test_names_that_images_may_have_are_read():
    names = ["a/1_t1.nii", "a/IM0001", "a/1.3.12.2", "a/x.mgz", "a/_dwi.nii", "json", "a/CHANGES1"]
    assert of(names) == (names, {"hidden": 1})


def test_a_listing_leaves_them_out(tmp_path):
    for name in ("1/1_t1.nii.gz", "1/1_t1.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = listing(str(tmp_path))
    assert [entry.path for entry in found.entries] == [f"{tmp_path}/1/1_t1.nii.gz"]
    assert found.left_out == {".json": 1}
