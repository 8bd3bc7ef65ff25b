"""Pages show what strangers wrote, and nothing of it acts on the page or on its reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from markupsafe import Markup

from beam_jobs.common import templating


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with one template."""
    folder = tmp_path / "pages_of_tests" / "templates"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "page.j2").write_text('<p title="{{ text }}">{{ text }}</p>{{ chart }} {{ number }}')
    monkeypatch.syspath_prepend(tmp_path)
    return "pages_of_tests"


def test_text_is_escaped_and_without_what_is_not_seen(package: str) -> None:
    page = templating.render(
        package,
        "page.j2",
        filters={},
        text='<b>\x1b[2J\u202eevil\u200b"\nnext',
        chart=Markup("<svg/>"),
        number=-1.5,
    )
    shown = "&lt;b&gt;\\x1b[2J\\u202eevil\\u200b&#34;\nnext"
    assert page == f'<p title="{shown}">{shown}</p><svg/> -1.5'
