"""Pages from templates: each complete in one file, its text escaped, a name not given an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import jinja2


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
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    environment.globals.update(functions or {})
    return environment.get_template(template).render(**values)


def source(package: str, name: str) -> str:
    """A file beside the templates as it stands."""
    return resources.files(package).joinpath("templates", name).read_text(encoding="utf-8")
