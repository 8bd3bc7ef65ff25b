"""What MkDocs calls while it builds the site: pages from code, and diagrams drawn at build time.

Diagrams are Mermaid's own drawing, run by an embedded engine, so that neither the build nor the
reader's browser fetches anything.
"""

from __future__ import annotations

import re
from typing import Any

import mermaidx
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from beam_jobs.common.imports import quiet_tensorflow
from docs import generate

_DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and those of the repository's root."""
    quiet_tensorflow()
    for path, text in (generate.pages() | generate.root_pages()).items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Draws every Mermaid block in place."""
    return _DIAGRAM.sub(lambda block: f'<div class="diagram">{draw(block[1])}</div>', markdown)


def draw(source: str) -> str:
    """A Mermaid diagram as SVG in one line, its ids its own."""
    svg = mermaidx.render(source, theme="neutral").svg()
    name = f"diagram-{abs(hash(source)):x}"
    return " ".join(svg.replace("my-svg", name).split())
