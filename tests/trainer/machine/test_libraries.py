"""Imports that fail: the root is told once, with what it stops and how to mend it."""

import re

from tests.test_images import declared
from trainer.machine import libraries
from trainer.machine.apart import Answer
from trainer.machine.findings import Section
from trainer.machine.libraries import LIBRARIES

FOUND = {one.package: "1.0" for one in LIBRARIES}
REQUIRED = {one.package: ">=1" for one in LIBRARIES if not one.extra}


def name_of(requirement: str) -> str:
    return re.split(r"[^\w-]", requirement)[0]


def section_of(problems: dict[str, Answer], absent: tuple[str, ...] = ()) -> Section:
    """The section where some imports fail, and some packages are not installed."""
    found = {name: version for name, version in FOUND.items() if name not in absent}
    answers = [problems.get(one.package, Answer()) for one in LIBRARIES]
    return libraries.section(answers, found, REQUIRED)


def test_the_libraries_are_those_that_the_project_requires() -> None:
    lists = declared()
    needs = [*lists["CONVERSION"], *lists["LEARNING"]]
    assert {one.package for one in LIBRARIES if not one.extra} == set(map(name_of, needs))
    for one in LIBRARIES:
        if one.extra:
            assert one.package in map(name_of, lists["EXTRAS"][one.extra])


def test_where_all_imports_nothing_is_told_but_versions() -> None:
    section = section_of({})
    assert section.faults == ()
    assert [row.name for row in section.rows] == ["versions", "imports"]


def test_what_fails_for_anothers_reason_is_told_with_it() -> None:
    broken = Answer(problem="libstuff.so.9: no such file")
    second = Answer(problem="needs TensorFlow: libstuff.so.9: no such file")
    section = section_of({"tensorflow": broken, "keras": second, "keras-tuner": broken})
    (fault,) = section.faults
    assert fault.what == "tensorflow 1.0 does not import: libstuff.so.9: no such file"
    assert fault.stops.endswith("and all that needs keras, keras-tuner")
    assert fault.mend.startswith("pip install --force-reinstall --no-deps 'tensorflow>=1',")
    assert section.rows[-1].text.endswith("; nor do keras, keras-tuner")


def test_outside_a_source_tree_there_is_no_make_setup() -> None:
    answers = [Answer(problem="it is broken")] + [Answer()] * (len(LIBRARIES) - 1)
    for found in (FOUND, {name: "1" for name in FOUND if name != "numpy"}):
        (fault,) = libraries.section(answers, found, REQUIRED, locked=False).faults
        assert fault.mend.startswith("pip install ")
        assert "make" not in fault.mend.replace("made", "")


def test_what_is_missing_is_a_fault_where_it_is_required_and_a_note_in_an_extra() -> None:
    gone = Answer(problem="No module named 'tensorflow'", missing="tensorflow")
    boto = Answer(problem="No module named 'boto3'", missing="boto3")
    problems = {"tensorflow": gone, "keras": gone, "keras-tuner": gone, "boto3": boto}
    section = section_of(problems, absent=("tensorflow", "boto3"))
    (fault,) = section.faults
    assert fault.what == "tensorflow is not installed"
    assert "pip install 'tensorflow>=1'" in fault.mend
    marks = {row.name: row.mark for row in section.rows}
    assert (marks["tensorflow"], marks["boto3"], "keras" in marks) == ("fault", "note", False)


def test_what_fails_for_want_of_one_that_is_told_is_not_told_again() -> None:
    gone = Answer(problem="No module named 'numpy'", missing="numpy")
    wrapped = Answer(problem="Unable to import dependencies: numpy: No module named 'numpy'")
    section = section_of({"numpy": gone, "pandas": wrapped, "scipy": gone}, absent=("numpy",))
    assert [fault.what for fault in section.faults] == ["numpy is not installed"]
    # TensorBoard stands before it.
    gone = Answer(problem="Keras cannot be imported (No module named 'keras')", missing="keras")
    section = section_of({"tensorboard": gone, "keras": gone}, absent=("keras",))
    assert [fault.what for fault in section.faults] == ["keras is not installed"]


def test_a_package_that_no_library_of_ours_is_can_be_what_is_missing() -> None:
    gone = Answer(problem="No module named 'packaging'", missing="packaging")
    (fault,) = section_of({"nibabel": gone, "keras": gone}).faults
    assert fault.stops.endswith("and all that needs keras")
    assert fault.mend.startswith("pip install packaging, ")


def test_a_worker_that_only_converts_need_not_have_tensorflow() -> None:
    gone = Answer(problem="No module named 'tensorflow'", missing="tensorflow")
    answers = [gone if one.package == "tensorflow" else Answer() for one in LIBRARIES]
    found = {name: "1" for name in FOUND if name != "tensorflow"}
    section = libraries.section(answers, found, {"numpy": ">=1"})
    assert section.faults == ()
    assert section.rows[-1].name == "tensorflow"
