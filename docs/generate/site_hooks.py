"""What mkdocs does besides: files of the repository that the pages link to become part of the site."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

PAGES = {
    "changelog.md": "CHANGELOG.md",
    **{
        f"experiments/{path.parent.name}.md": str(path.relative_to(ROOT))
        for path in ROOT.glob("experiments/*/README.md")
    },
}
"""Page of the site -> Markdown file outside of `docs/`."""

_LINK = re.compile(r"\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Puts the pages in place of the nav's patterns, such as `decisions/*.md`."""
    names = sorted({*PAGES, *(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))})
    config["nav"] = _expanded(config["nav"], names)
    return config


def _expanded(nav: list[Any], names: list[str]) -> list[Any]:
    items: list[Any] = []
    for item in nav:
        if isinstance(item, dict):
            items += [{title: _expanded(of, names) if isinstance(of, list) else of} for title, of in item.items()]
        elif "*" in item:
            items += fnmatch.filter(names, item)
        else:
            items.append(item)
    return items


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages, and the folder `deploy/` as downloads."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for path in sorted((ROOT / "deploy").iterdir()):
        files.append(File.generated(config, f"deploy/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Turns links that are right in the repository into those of the site."""
    source = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def on_site(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        known = {original: name for name, original in PAGES.items()}
        place = known.get(path) or path.removeprefix("docs/")
        return f"]({posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    return _LINK.sub(on_site, markdown)
