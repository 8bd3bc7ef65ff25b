"""Pages from templates: each complete in one file, its text escaped, a name not given an error.

Text that was filled in shows no more than is seen: a mark of writing direction in an id would turn
round what stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from beam_jobs.common.printable import printable


def render(
    package: str,
    template: str,
    /,
    *,
    filters: Mapping[str, Callable[..., Any]],
    functions: Mapping[str, Callable[..., Any]] | None = None,
    **values: Any,
) -> str:
    """Fills in a template.

    Args:
      package: whose folder `templates` holds it.
      template: its name.
      filters: what the template may send values through.
      functions: what it, and the macros that it imports, may call.
      values: what it may use; text is escaped unless it is `markupsafe.Markup`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    environment.globals.update(functions or {})
    return environment.get_template(template).render(**values)


def _visible(value: Any) -> Any:
    """Text as it may stand in a page; markup was made by us, of text that came through here."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value, keep="\n\t")
    return value


def source(package: str, name: str) -> str:
    """A file beside the templates as it stands."""
    return resources.files(package).joinpath("templates", name).read_text(encoding="utf-8")
