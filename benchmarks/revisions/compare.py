"""Two sides' files, one by one: equal, equal but for what is named as left out, or different."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from revisions.chain import STEPS
from revisions.contents import TEXT, THROUGH_MODEL, contents, differing, masked

RECORD = "ran.json"
FAILING = ("differs", "only before", "only after")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
    """A difference that is meant.

    Attributes:
      file: pattern of the files' paths, as fnmatch's.
      place: pattern of the places within, as they are printed; "file" for one that is on one side.
      why: what changed and why.
      relative: two numbers that differ by more than this part of the greater are not meant; None
        takes whatever differs.
    """

    file: str
    place: str
    why: str
    relative: float | None = None

    def takes(self, place: str, how: str) -> bool:
        """Whether a difference is this one.

        Args:
          place: where it is.
          how: what differs, for two numbers "before → after".
        """
        if not fnmatch.fnmatchcase(place, self.place):
            return False
        if self.relative is None:
            return True
        try:
            before, after = map(float, how.split(" → "))
        except ValueError:
            return False
        return math.isclose(before, after, rel_tol=self.relative)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One file of both sides.

    Attributes:
      file: path in the sides' directories.
      word: same | but times | in content | through model | expected | one of `FAILING`.
      detail: what differs first and in how many places, or why that is expected.
      expected: the entries that took it.
    """

    file: str
    word: str
    detail: str = ""
    expected: tuple[Expected, ...] = ()


def compare(
    before: Path, after: Path, stages: Sequence[str], expected: Sequence[Expected] = ()
) -> Iterator[tuple[str, Verdict]]:
    """(stage, verdict) of every file that the stages' commands wrote, and of wrong exit codes."""
    records = [json.loads((side / RECORD).read_text()) for side in (before, after)]
    roots = [record["root"] for record in records]
    for step in STEPS:
        if step.stage not in stages:
            continue
        ran = [record["steps"][step.name] for record in records]
        codes = [one["code"] for one in ran]
        if codes != [step.code, step.code]:
            detail = f"exit code {codes[0]} → {codes[1]}, must be {step.code}"
            yield step.stage, Verdict(f"({step.name})", "differs", detail)
        there, here = (_by_name(one["files"]) for one in ran)
        for name in sorted(there.keys() | here.keys()):
            if name in there and name in here:
                data = [(before / there[name]).read_bytes(), (after / here[name]).read_bytes()]
                verdict = compare_file(name, data, roots, expected)
            else:
                word = "only before" if name in there else "only after"
                verdict = _judged(name, {"file": word}, word, expected)
            yield step.stage, verdict


def _by_name(files: Sequence[str]) -> dict[str, str]:
    """{name: file}; TensorBoard puts time, host and process into its files' names, here is none."""
    named = {}
    for file in sorted(files):
        parent, slash, name = file.rpartition("/")
        if name.startswith("events.out.tfevents."):
            name = f"events.out.tfevents.*.{name.split('.')[-2]}.v2"
        named[f"{parent}{slash}{name}"] = file
    return named


def compare_file(
    name: str, data: Sequence[bytes], roots: Sequence[str], expected: Sequence[Expected] = ()
) -> Verdict:
    """One file's verdict.

    Args:
      name: path in the sides' directories; its suffix tells the format.
      data: its bytes before and after.
      roots: the sides' directories when these were written.
      expected: differences that are meant.
    """
    if data[0] == data[1]:
        return Verdict(name, "same")
    for inner, how in THROUGH_MODEL.items():
        if name.startswith("model") and name.endswith(f"/{inner}"):
            return Verdict(name, "through model", how)
    texts = [masked(name, one, root) for one, root in zip(data, roots, strict=True)]
    if texts[0] == texts[1]:
        return Verdict(name, "but times")
    places = differing(*(contents(name, text) for text in texts))
    if not places and name.endswith(TEXT):
        places = {"form": "the same values, written in another way"}
    if not places:
        return Verdict(name, "in content")
    return _judged(name, places, "differs", expected)


def _judged(name: str, places: dict[str, str], word: str, expected: Sequence[Expected]) -> Verdict:
    of_file = [entry for entry in expected if fnmatch.fnmatchcase(name, entry.file)]
    used, left = [], {}
    for place, how in places.items():
        meant = [entry for entry in of_file if entry.takes(place, how)]
        used += meant
        if not meant:
            left[place] = how
    if not left:
        entries = tuple(dict.fromkeys(used))
        why = "; ".join(dict.fromkeys(entry.why for entry in entries))
        return Verdict(name, "expected", why, entries)
    first, how = next(iter(left.items()))
    others = len(left) - 1
    more = f" (and {others} more place{'s' if others > 1 else ''})" if others else ""
    detail = "" if first == "file" else f"{first}: {how}{more}"
    return Verdict(name, word, detail, tuple(dict.fromkeys(used)))
