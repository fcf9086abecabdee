"""No link of the documentation is broken: relative files and folders exist, and so do the sections that are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.markdown import PAGES, ROOT, anchor, headings, links, name_of

ALL = (*PAGES, ROOT / "CHANGELOG.md", *sorted(ROOT.glob("experiments/*/README.md")))


def broken(page: Path) -> list[str]:
    """Targets of the page's links that lead nowhere."""
    found = []
    for target in links(page):
        path, _, section = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (section and section not in map(anchor, headings(file))):
            found.append(target)
    return found


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A title\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#a-title) [c](gone.md) ![d](there.md#gone) [e](https://example.org/x) `[f](no)`\n"
        "```\n[g](no)\n```\n",
        encoding="utf-8",
    )
    assert broken(page) == ["gone.md", "there.md#gone"]
