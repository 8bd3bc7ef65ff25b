"""What the documentation promises: commands that run, reference from code, no page that fetches."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import fnmatch
import functools
import importlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from beam_jobs.common.console import VERBS
from beam_jobs.core import record
from beam_jobs.core.cohort.rules import UNDECIDED, read_rules_file
from beam_jobs.core.reasons import SENTENCES
from beam_jobs.report.advice import ADVICE
from docs import generate, python_pages
from serving.predict.reasons import SENTENCES as UNPREDICTED
from tests.test_walls import ROOMS
from trainer.config.network import MODELS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README, TUTORIAL = ROOT / "README.md", DOCS / "tutorial.md"
PAGES = [
    README,
    ROOT / "ARCHITECTURE.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted(DOCS.rglob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
      language: after the fence.
      text: between the fences.
      exempt: why it is not run; "" where it is.
    """

    language: str
    text: str
    exempt: str


def blocks_of(page: Path, language: str = "") -> list[Block]:
    """The blocks of a page, of one language or of all."""
    found = re.findall(
        r"(?:^<!-- not run: (.+) -->\n)?^```(\w+)\n(.*?)^```$",
        page.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    blocks = [Block(language=kind, text=text, exempt=reason) for reason, kind, text in found]
    return [block for block in blocks if language in ("", block.language)]


# The reference.


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    return generate.pages()


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_every_command_is_on_its_page(
    verb: str, reference: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    page = reference[f"reference/commands/{verb}.md"]
    command = importlib.import_module(VERBS[verb][0])
    if hasattr(command, "__path__"):
        command = importlib.import_module(f"{VERBS[verb][0]}.__main__")
    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = capsys.readouterr().out
    options = re.findall(r"^  (?:-h, )?(--\w+)", shown.partition("\nexamples:")[0], re.MULTILINE)
    assert len(options) >= 3
    assert set(re.findall(r"^\| `(--\w+)` \|", page, re.MULTILINE)) == {*options} - {"--help"}
    assert f"voxelbeam {verb} " in page  # an example
    assert "| `130` | interrupted (Ctrl-C) |\n| `143` | terminated (SIGTERM) |\n" in page


def test_every_reason_has_its_sentence_and_advice_on_the_page(reference: dict[str, str]) -> None:
    for reason, sentence in SENTENCES.items():
        assert (
            f"| `{reason.value}` | {sentence} | {ADVICE[reason]} |"
            in (reference["reference/reasons.md"])
        )
    for own, sentence in UNPREDICTED.items():
        assert f"| `{own.value}` | {sentence} |" in reference["reference/reasons.md"]


def test_every_feature_of_the_record_is_explained(reference: dict[str, str]) -> None:
    assert [name for name, *_ in generate.record_features()] == [*record.FEATURES, "covariates"]
    for name in record.FEATURES:
        assert f"| `{name}` | " in reference["reference/record.md"]


def test_every_module_says_what_it_is_for(reference: dict[str, str]) -> None:
    assert "|  |" not in reference["reference/modules.md"]


def test_everything_that_python_users_import_is_explained(reference: dict[str, str]) -> None:
    assert len(python_pages.APIS) > 1
    for name in python_pages.APIS:
        api = importlib.import_module(name)
        for public in api.__all__:
            explained = f"\n### {public}\n" in reference["reference/python.md"]
            assert explained or not callable(getattr(api, public)), f"{name}.{public}"


def test_every_network_is_listed() -> None:
    page = (DOCS / "reference/networks.md").read_text(encoding="utf-8")
    numbered = [f"efficientnet_b{number}" for number in range(1, 7)]  # b0 … b7 stands there
    assert {name for name in MODELS if f"`{name}`" not in page} == set(numbered)


def test_every_variable_that_the_code_reads_is_listed() -> None:
    page = (DOCS / "reference/environment.md").read_text(encoding="utf-8")
    pattern = r"(?:AIP|AWS|AZURE|CLUSTER|GOOGLE|KERASTUNER|STORAGE|TF|VOXELBEAM)_[A-Z0-9_]*[A-Z0-9]"
    read = set()
    for package in ("beam_jobs", "trainer", "serving"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and re.fullmatch(pattern, str(node.value)):
                    read.add(str(node.value))
    assert len(read) > 10
    assert not {name for name in read if f"`{name}" not in page}


# ARCHITECTURE, README and the site.


def test_architecture_lists_every_room_and_no_other() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `((?:beam_jobs|trainer|serving)/[\w/]+)` \|", text, re.MULTILINE)
    rooms = {
        str(path.parent.relative_to(ROOT))
        for package in ("beam_jobs", "trainer", "serving")
        for path in (ROOT / package).glob("*/**/__init__.py")
    }
    assert set(listed) == rooms
    order = [f"{package}/{room}" for package, found in ROOMS.items() for room in found]
    assert [room for room in listed if room.count("/") == 1] == [o for o in order if o in rooms]
    assert len(text.splitlines()) <= 150


def test_readme_is_read_in_one_sitting() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 140


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_of_the_repository(name: str, reference: dict[str, str]) -> None:
    page = ROOT / name
    links = re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8"))
    made = {DOCS / path for path in (*reference, *generate.ROOT_PAGES.values())}
    for link in links:
        if "://" not in link:
            target = Path(os.path.normpath(page.parent / link))
            assert target.exists() or target in made, f"{name}: {link}"


def test_pictures_are_small_and_all_shown() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    pictures = list((DOCS / "images").iterdir())
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size < 150_000
        assert f"images/{picture.name})" in text


@pytest.mark.slow  # draws diagrams in a browser engine
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=\"(\w+:)?//", text)
        assert not fetched, page
        assert "```" not in re.sub(r"(?s)<code.*?</code>", "", text), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    diagrams = [block for page in PAGES for block in blocks_of(page, "mermaid")]
    drawn = sum(page.read_text(encoding="utf-8").count('class="diagram"') for page in pages)
    assert drawn == len(diagrams) >= 4


# Commands.


@functools.cache
def parser_of(verb: str) -> argparse.ArgumentParser:
    return generate.parser_of(VERBS[verb][0])


@pytest.mark.parametrize("name", NAMES)
def test_every_command_line_is_one_that_its_command_takes(name: str) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for block in blocks_of(ROOT / name, "sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"\w+=", words[0]):
                del words[0]
            if not words:
                continue
            if words[0] == "voxelbeam":
                taken, beam = parser_of(words[1]).parse_known_args(words[2:])
                assert taken
                assert not beam or words[1] in ("convert", "predict"), f"{name}: {beam}"
            elif words[0] == "make":
                assert words[1] in targets, f"{name}: {line}"
            elif words[0] == "pip":
                files = [after for word, after in itertools.pairwise(words) if word == "-r"]
                assert all((ROOT / file).exists() for file in files), f"{name}: {line}"
            else:
                # What clusters want: tests/test_images.py and tests/test_manifests.py.
                others = ("docker", "gcloud", "kubectl")
                assert words[0] in ("echo", *others), f"{name}: {line}"


@pytest.mark.parametrize("name", NAMES)
def test_json_and_python_can_be_read(name: str, tmp_path: Path) -> None:
    for block in blocks_of(ROOT / name, "json"):
        data = json.loads(block.text)
        if isinstance(data, list):
            (tmp_path / "rules.json").write_text(block.text, encoding="utf-8")
            finished = [rule for rule in data if rule["modality"] != UNDECIDED]
            assert len(read_rules_file(str(tmp_path / "rules.json"))) == len(finished)
    for block in blocks_of(ROOT / name, "python"):
        compile(block.text, name, "exec")


def test_what_is_not_run_has_a_reason() -> None:
    exempt = [block for page in (README, TUTORIAL) for block in blocks_of(page) if block.exempt]
    assert [block.text.split()[0] for block in exempt] == ["make"]
    assert all(len(block.exempt.split()) > 3 for block in exempt)


def run_blocks(page: Path, directory: Path, small: dict[str, str]) -> None:
    """Runs a page's sh and python blocks one after another, as its reader would.

    Args:
      page: Markdown.
      directory: where they run.
      small: verb -> options behind its command lines that only make it small.
    """
    console = "from beam_jobs.common.console import main; main()"
    cases = "\n".join(f'{verb}) set -- "$@" {options};;' for verb, options in small.items())
    shim = directory / ".bin" / "voxelbeam"
    shim.parent.mkdir(exist_ok=True)
    command = shlex.join([sys.executable, "-c", console])
    shim.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}\nesac\nexec {command} "$@"\n')
    shim.chmod(0o755)
    environment = {
        "PATH": f"{shim.parent}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "HOME": str(directory),
    }
    blocks = [block for block in blocks_of(page) if block.language in ("sh", "python")]
    assert blocks
    for block in blocks:
        if block.exempt:
            continue
        words = ["bash", "-euo", "pipefail"] if block.language == "sh" else [sys.executable]
        done = subprocess.run(
            [*words, "-c", block.text],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        report = f"{block.text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == 0, report
        assert done.stderr == "", report


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_readmes_blocks_run(tmp_path: Path) -> None:
    phantoms = "--output cohort --patients 24 --test_patients 6 --matrix 40,48 --slices 12,20"
    subprocess.run(
        [sys.executable, "-m", "beam_jobs.phantoms", *phantoms.split(), "--quiet"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    run_blocks(
        README,
        tmp_path,
        {"convert": "--shape 16,16,12 --folds 2", "train": "--epochs 2 --learning_rate 1e-3"},
    )
    assert (tmp_path / "submission.csv").read_text().count("\n") == 7
    assert (tmp_path / "series.nii.gz").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_tutorials_blocks_run_and_write_the_files_that_the_reference_lists(tmp_path: Path) -> None:
    run_blocks(TUTORIAL, tmp_path, {})
    run_blocks(DOCS / "how-to/python.md", tmp_path, {})
    differences = differing_files(tmp_path)
    assert not differences, "\n".join(differences)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_blocks_of_any_label_run(tmp_path: Path) -> None:
    small = {
        "phantoms": "--patients 12 --test_patients 6 --matrix 16,20 --slices 10,12",
        "convert": "--shape 12,12,10 --folds 2",
        "train": "--epochs 1",
    }
    run_blocks(DOCS / "how-to/any-label.md", tmp_path, small)


def differing_files(tutorial: Path) -> list[str]:
    """Where what the tutorial's commands wrote and docs/reference/files.md differ, a line each."""
    places = {
        "convert": "dataset",
        "train": "run",
        "tune": "study",
        "baseline": "forest",
        "evaluate": "evaluation",
        "saliency": "saliency",
        "export": "model",
        "predict": "",
    }
    found = []
    for verb, rows in listed_files().items():
        place = tutorial / places[verb]
        written = {path.name for path in place.glob("submission.*.*" if verb == "predict" else "*")}
        for pattern, always in rows.items():
            if always and not any(place.glob(pattern.rstrip("/"))):
                found.append(f"{verb}: {pattern} is listed and not written: {sorted(written)}")
        tops = {pattern.split("/")[0] for pattern in rows}
        found += [
            f"{verb}: {name} is written and not listed"
            for name in sorted(written)
            if not name.startswith(".") and not any(fnmatch.fnmatch(name, top) for top in tops)
        ]
    return found


def listed_files() -> dict[str, dict[str, bool]]:
    """Verb -> glob of each file in docs/reference/files.md -> whether it is always written."""
    listed: dict[str, dict[str, bool]] = {}
    for line in (DOCS / "reference/files.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            rows = listed.setdefault(line.removeprefix("## "), {})
        elif line.startswith("| `"):
            names, meaning = line.strip("| ").rsplit(" | ", 1)
            always = not re.search(r"\bonly (if|while)\b|\bonly:|gone when", meaning)
            for name in re.findall(r"`([^`]+)`", names):
                rows[re.sub(r"<[^>]+>", "*", name)] = always
    return listed
