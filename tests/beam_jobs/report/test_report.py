"""The dataset's page: its numbers against the files, its pictures against the voxels, its keys."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from beam_jobs import dicom_to_tfrecord
from beam_jobs.common import cli
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.example import decode_case
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.reasons import Reason
from beam_jobs.core.record import PreparedCase
from beam_jobs.core.tfrecord import read_records
from beam_jobs.report.__main__ import main
from beam_jobs.report.advice import ADVICE
from tests.beam_jobs.convert.test_privacy import assert_no_canary, cohort  # noqa: F401
from tests.beam_jobs.report.pages import (
    MODALITIES,
    facts_in,
    make,
    table,
    without_blank_slices,
)
from tests.browser import Browser
from tests.datasets import make_cases, make_schema, write_cases, write_dataset

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def page(dataset: Path) -> str:
    return (dataset / "report.html").read_text()


@pytest.fixture(scope="module")
def cases(dataset) -> dict[str, PreparedCase]:
    manifest = Manifest.loads((dataset / "manifest.json").read_text())
    found = {}
    for shard in manifest.shards:
        with (dataset / shard.name).open("rb") as stream:
            for data in read_records(stream):
                case = decode_case(data, manifest.schema)
                found[case.patient_id] = case
    return found


def test_cohort_numbers_are_the_manifests(dataset, page):
    found = facts_in(page)["cohort"]
    manifest = json.loads((dataset / "manifest.json").read_text())
    patients = [(p["label"], s["fold"]) for s in manifest["shards"] for p in s["patients"]]
    assert found["patients"] == len(patients) == 6
    assert found["labels"] == {
        "0": sum(label == 0 for label, _ in patients),
        "1": sum(label == 1 for label, _ in patients),
        "none": 0,
    }
    for fold in found["folds"]:
        balance = manifest["label_balance"][str(fold["fold"])]
        assert (fold["negative"], fold["positive"]) == (balance.get("0", 0), balance.get("1", 0))
    assert found["files"] == manifest["counts"]["files"]
    assert found["bytes"] == sum(path.stat().st_size for path in dataset.glob("*.tfrecord"))


def test_series_numbers_are_those_of_series_csv(dataset, page):
    facts = facts_in(page)
    used = table(dataset, "series.csv").query("verdict == 'used'")
    assert [modality["name"] for modality in facts["modalities"]] == list(MODALITIES)
    for modality in facts["modalities"]:
        rows = used[used.modality == modality["name"]]
        assert modality["series"] == len(rows) > 0
        assert modality["planes"] == rows.plane.value_counts().to_dict()
        expected, _ = np.histogram(rows.slices, bins=facts["slice_edges"])
        assert modality["slices"] == expected.tolist()
        assert sum(modality["slices"]) == len(rows)
        for column in ("slice_step", "row_spacing", "thickness"):
            spread = modality["measures"][column]
            assert spread["median"] == pytest.approx(rows[column].median())
            assert (spread["min"], spread["max"]) == (rows[column].min(), rows[column].max())


def test_blank_slices_are_those_of_series_csv(dataset, page):
    facts = facts_in(page)
    used = table(dataset, "series.csv").query("verdict == 'used'")
    for modality in facts["modalities"]:
        rows = used[used.modality == modality["name"]]
        found, shares = modality["scanned_blank"], 100 * rows.blank_slices / rows.slices
        assert (found["blank"], found["slices"]) == (rows.blank_slices.sum(), rows.slices.sum())
        assert found["blank"] > 0
        assert found["spread"]["median"] == pytest.approx(shares.median())
        assert found["without"] == (shares == 0).sum()
        assert found["shares"] == np.histogram(shares, bins=20, range=(0, 100))[0].tolist()
        counts = f"({found['blank']} of {found['slices']})"
        assert f"{100 * found['share']:.1f} % of all slices {counts}" in page
    slices = int(used.slices.sum())
    share = 100 * used.blank_slices.sum() / slices
    assert f"<b>{share:.0f} %</b><span>of {slices} slices as scanned are blank" in page


def test_dataset_of_a_version_that_did_not_count_blank_slices_says_so(dataset, tmp_path):
    page = make(without_blank_slices(dataset, tmp_path / "old"))
    facts = facts_in(page)
    assert facts["cohort"]["blank"] is None
    assert {modality["scanned_blank"] for modality in facts["modalities"]} == {None}
    assert "Not recorded: an earlier version" in page
    assert "slices as scanned are blank" not in page
    assert facts["modalities"][0]["measures"]["slices"] is not None


def test_channel_numbers_are_those_of_the_records(cases, page):
    facts = facts_in(page)
    for channel, modality in enumerate(facts["modalities"]):
        volumes = [case.volume[..., channel] for case in cases.values() if case.present[channel]]
        assert modality["patients"] == len(volumes)
        blank = sum(int((volume.max(axis=(0, 1)) == 0).sum()) for volume in volumes)
        assert modality["blank_slices"] == blank
        foreground = np.concatenate([volume[volume > 0] for volume in volumes])
        assert modality["intensity"]["at_top"] == pytest.approx((foreground == 255).mean())
        means = [volume[volume > 0].mean() / 255 for volume in volumes]
        assert modality["intensity"]["means"]["median"] == pytest.approx(np.median(means))
        shares = [
            np.histogram(volume[volume > 0], bins=51, range=(0.5, 255.5))[0] / (volume > 0).sum()
            for volume in volumes
        ]
        median = np.median(shares, axis=0)
        np.testing.assert_allclose(modality["intensity"]["median"], median, atol=1e-5)
    absent = {case.patient_id: [int(there) for there in case.present] for case in cases.values()}
    assert {patient["id"]: patient["present"] for patient in facts["patients"]} == absent
    assert sum(pattern["patients"] for pattern in facts["missing"]) == len(cases)
    assert len(facts["missing"]) > 1


def test_every_reject_stands_there_with_its_reason_and_what_to_do(dataset, page):
    rejects = table(dataset, "rejects.csv")
    found = {row["reason"]: row for row in facts_in(page)["rejects"]}
    assert set(found) == set(rejects.reason)
    assert {"not_dicom", "too_few_slices"} <= set(found)
    for reason, row in found.items():
        assert row["count"] == (rejects.reason == reason).sum()
        assert row["advice"] == ADVICE[Reason(reason)]
        assert row["advice"][:30] in page
    assert set(ADVICE) == set(Reason)


def tile_of(page: str, patient: dict[str, Any], channel: int, slice_: int) -> npt.NDArray[Any]:
    """One slice's tile out of a page, at the size of its box."""
    sprite = patient["sprite"]
    (text,) = re.findall(rf'id="sprite-{sprite["at"]}">([^<]*)<', page)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    order = sum(patient["present"][:channel])
    number = order * sprite["count"] + (slice_ - sprite["first"]) // sprite["step"]
    width, height = sprite["tile"]
    top, left = number // sprite["across"] * height, number % sprite["across"] * width
    return sheet[top : top + height, left : left + width].astype(float)


def test_sprites_show_every_channels_slices_where_they_are(cases, page):
    compared = 0
    for patient in facts_in(page)["patients"]:
        case = cases[patient["id"]]
        row, column, rows, columns = patient["sprite"]["box"]
        for channel in map(int, np.flatnonzero(case.present)):
            for slice_ in range(patient["sprite"]["first"], patient["sprite"]["count"]):
                voxels = case.volume[row : row + rows, column : column + columns, slice_, channel]
                tile = tile_of(page, patient, channel, slice_)[: voxels.shape[0], : voxels.shape[1]]
                assert np.abs(tile - voxels).mean() < 4
                compared += 1
        outside = case.volume.astype(int)
        outside[row : row + rows, column : column + columns] = 0
        assert outside.max() <= 12
    assert compared > 150


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag, attrs):
        named = ("src", "href", "srcset", "action", "poster", "data", "xlink:href")
        self.targets += [value or "" for name, value in attrs if name in named]


def test_page_needs_nothing_but_itself(page):
    links = Links()
    links.feed(page)
    assert len(links.targets) > 12
    assert all(target.startswith(("data:", "#")) for target in links.targets)
    without_pictures = re.sub(r"[A-Za-z0-9+/=]{200,}", "", page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", without_pictures.split("<script>")[0])
    assert "default-src 'none'" in page


def test_same_dataset_gives_the_same_page_whatever_the_workers(
    dataset, page, tmp_path, monkeypatch
):
    monkeypatch.setattr("beam_jobs.report.make._WORTH_PROCESSES", 0)
    again = make(dataset, "--output", str(tmp_path / "again.html"), "--workers", "2")
    assert again == page


def test_no_canary_in_the_page_of_an_hmac_run(cohort, tmp_path, capfd):  # noqa: F811
    argv = [
        *("--input", str(cohort), "--output", str(tmp_path / "d"), "--modalities", "T1w,FLAIR"),
        *("--id_policy", "hmac", "--id_key", str(cohort.parent / "key"), "--shape", "16,16,8"),
        *("--labels", str(cohort.parent / "labels.csv")),
    ]
    assert dicom_to_tfrecord.main(argv) == cli.EXIT_OK
    page = (tmp_path / "d" / "report.html").read_text()
    printed = capfd.readouterr()
    assert_no_canary(tmp_path / "d", printed.out.encode(), printed.err.encode())
    facts = facts_in(page)
    assert facts["rejects"]
    assert not any(row["subjects"] for row in facts["rejects"])
    tokens = set(table(tmp_path / "d", "series.csv").path)
    assert tokens
    assert not [token for token in tokens if token in page]


def test_ids_cannot_write_into_the_page(tmp_path):
    schema = make_schema()
    (case,) = make_cases(schema, patients=1)
    name = "</script><script>alert('1')</script>\"é 1"
    hostile = PreparedCase(
        patient_id=name,
        volume=case.volume,
        affine=case.affine,
        present=case.present,
        label=1,
        fold=0,
    )
    write_cases(tmp_path / "d", [hostile], schema, folds=2)
    page = make(tmp_path / "d")
    assert "<script>alert" not in page
    assert facts_in(page)["patients"][0]["id"] == name


def test_dataset_without_tables_has_a_page_that_says_so(tmp_path):
    write_dataset(tmp_path / "d", patients=4, folds=2, unlabelled=1, dtype="float16")
    page = make(tmp_path / "d")
    facts = facts_in(page)
    assert facts["rejects"] is None
    assert "rejects.csv is not beside the records" in page
    assert "series.csv is not beside the records" in page
    assert facts["cohort"]["labels"] == {"0": 2, "1": 2, "none": 1}


def test_missing_and_damaged_datasets_are_reported_in_a_line(dataset, tmp_path):
    with pytest.raises(cli.UsageError, match="nowhere: no such directory"):
        main([str(tmp_path / "nowhere")])
    with pytest.raises(cli.UsageError, match=r"no manifest\.json"):
        main([str(dataset), "--against", str(tmp_path)])
    with pytest.raises(cli.UsageError, match="--output"):
        main([str(dataset), "--output", str(tmp_path)])
    copy = shutil.copytree(dataset, tmp_path / "copy")
    victim = sorted(copy.glob("*.tfrecord"))[0]
    victim.write_bytes(victim.read_bytes()[:-9])
    before = (copy / "report.html").read_bytes()
    with pytest.raises(ContractError, match=victim.name):
        main([str(copy)])
    victim.write_bytes(b"")
    with pytest.raises(ContractError, match=rf"{victim.name}: 0 bytes, the manifest says \d+"):
        main([str(copy)])
    assert (copy / "report.html").read_bytes() == before


def test_changed_dataset_keeps_no_page_of_the_old_one(dataset, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    root = dataset.parent / "c"
    argv = [
        *("--input", str(root / "train"), "--labels", str(root / "train_labels.csv"), "--quiet"),
        *("--output", str(copy), "--shape", "48,48,12", "--patients_per_shard", "2"),
    ]
    assert dicom_to_tfrecord.main([*argv, "--folds", "3", "--no_report"]) == cli.EXIT_OK
    assert not (copy / "report.html").exists()
    assert (copy / "manifest.json").read_bytes() == (dataset / "manifest.json").read_bytes()


@pytest.fixture(scope="module")
def browser():
    with Browser() as running:
        yield running


# Copied before it is read: Chromium warns of canvases that are read themselves.
LIT = """[...document.querySelectorAll('#viewer canvas')].map((canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d');
  copy.drawImage(canvas, 0, 0);
  const data = copy.getImageData(0, 0, canvas.width, canvas.height).data;
  return data.reduce((sum, value, place) => sum + (place % 4 < 3 ? value : 0), 0);
})"""
SLICE = "Number(document.getElementById('slice').value)"
WHO = "document.getElementById('who').textContent"


def visible(opened) -> list[str]:
    found: list[str] = opened.value(
        "[...document.querySelectorAll('.card:not([hidden]) b')].map((id) => id.textContent)"
    )
    return found


def test_page_answers_keys_mouse_and_filters_and_asks_nothing_of_a_network(browser, dataset, page):
    opened = browser.open(dataset / "report.html", width=1280, height=900)
    patients = facts_in(page)["patients"]
    assert visible(opened) == [patient["id"] for patient in patients]
    opened.value("document.querySelector('.card a').focus()")
    opened.key("Enter")
    opened.until("document.getElementById('viewer').dataset.ready === '0'")
    assert opened.value(WHO) == patients[0]["id"]
    lit = opened.value(LIT)
    assert [total > 0 for total in lit] == [bool(there) for there in patients[0]["present"]]
    start = opened.value(SLICE)
    assert start == patients[0]["slice"]
    opened.key("ArrowRight")
    assert opened.value(SLICE) == start + 1
    assert opened.value(LIT) != lit
    opened.key("ArrowDown")
    assert opened.value(SLICE) == start
    assert opened.value(LIT) == lit
    opened.key("End")
    assert opened.value(SLICE) == 11
    opened.drag((600, 300), (600, 500))
    assert opened.value(SLICE) < 11
    opened.key("Home")
    opened.key(" ")
    opened.until(f"{SLICE} > 1")
    opened.key(" ")
    opened.key("PageDown")
    opened.until("document.getElementById('viewer').dataset.ready === '1'")
    assert opened.value(WHO) == patients[1]["id"]
    opened.screenshot(ROOT / "build" / "screenshots" / "report-viewer.png")
    opened.key("Escape")
    opened.until("!document.getElementById('viewer').open")
    focused = "document.activeElement.querySelector('b')?.textContent"
    opened.until(f"{focused} === '{patients[1]['id']}'")
    opened.value(
        "document.getElementById('by-label').value = '1',"
        "document.getElementById('controls').dispatchEvent(new Event('input'))"
    )
    assert visible(opened) == [p["id"] for p in patients if p["label"] == 1]
    opened.value(
        "document.getElementById('by-label').value = '',"
        "document.getElementById('by-has').value = '3',"
        "document.getElementById('controls').dispatchEvent(new Event('input'))"
    )
    assert visible(opened) == [p["id"] for p in patients if not p["present"][3]] != []
    opened.screenshot(ROOT / "build" / "screenshots" / "report-desktop.png", whole=True)
    assert opened.requests == [(dataset / "report.html").as_uri()]
    assert opened.complaints == []


def test_page_fits_a_phone(browser, dataset):
    opened = browser.open(dataset / "report.html", width=390, height=844)
    assert opened.value("document.documentElement.scrollWidth") == 390
    opened.screenshot(ROOT / "build" / "screenshots" / "report-phone.png", whole=True)
    opened.value("document.querySelector('.card a').click()")
    opened.until("document.getElementById('viewer').dataset.ready === '0'")
    inside = opened.value(
        "[...document.querySelectorAll('#viewer figure, #viewer button')].every((part) => {"
        "const box = part.getBoundingClientRect();"
        "return box.left >= 0 && box.right <= 390 && box.top >= 0 && box.bottom <= 844;})"
    )
    assert inside
    opened.screenshot(ROOT / "build" / "screenshots" / "report-phone-viewer.png")
    assert opened.complaints == []
