"""The pages of this package: templates filled in, each page complete in one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def render(template: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """Fills in a file of `trainer/reports/templates`; a name that is not given is an error.

    Args:
      template: its name.
      filters: what the template may send values through.
      values: what it may use; text is escaped unless it is `markupsafe.Markup`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("trainer.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(template).render(**values)
