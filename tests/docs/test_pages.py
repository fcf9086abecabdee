"""Pages that are made from the code are up to date, and what pages say of the code is there."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml

import autocompress
from tests.docs.markdown import ROOT, headings

DOCS = ROOT / "docs"
MESSAGES = [title for title in headings(DOCS / "troubleshooting.md") if title.startswith("`")]


@pytest.mark.parametrize("name", ["cli", "space"])
def test_pages_made_from_the_code_are_up_to_date(name: str) -> None:
    made = runpy.run_path(str(DOCS / "generate" / f"{name}_page.py"))[f"{name}_page"]()
    page = {"cli": "cli.md", "space": "search_space.md"}[name]
    assert (DOCS / page).read_text(encoding="utf-8") == made, "run `make docs-pages`"


def test_the_reference_has_each_public_name() -> None:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: autocompress\.(\w+)$", text, flags=re.MULTILINE)) == sorted(autocompress.__all__)


def test_each_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    patterns = list(_leaves(nav))
    pages = [page.relative_to(DOCS) for page in DOCS.rglob("*.md")]
    assert [str(page) for page in pages if not any(page.match(pattern) for pattern in patterns)] == []
    outside = {"changelog.md"}
    missing = [p for p in patterns if "*" not in p and p not in outside and not (DOCS / p).is_file()]
    assert missing == []


def _leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for item in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _leaves(item)


@cache
def templates() -> list[str]:
    """The texts in the package's code, with an ellipsis in place of each value."""
    found = []
    for file in sorted((ROOT / "autocompress").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def is_said(message: str) -> bool:
    """Whether the code has this message; an ellipsis stands for anything."""
    parts = [re.escape(part) for part in message.split("…")]
    pattern = re.compile(".*".join(parts), flags=re.DOTALL)
    return any(pattern.search(template) for template in templates())


@pytest.mark.parametrize("title", MESSAGES)
def test_messages_of_the_troubleshooting_page_exist(title: str) -> None:
    message = title.strip("`").strip()
    assert max(map(len, message.split("…"))) > 12, "too little of it is fixed"
    assert is_said(message)


def test_the_troubleshooting_page_has_messages_and_others_are_found() -> None:
    assert len(MESSAGES) >= 20
    assert not is_said("the budget … is within reach of everybody")
