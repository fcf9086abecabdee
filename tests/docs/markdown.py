"""Reads the project's Markdown: pages, fenced blocks, links and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
"""What a user reads."""

_FENCE = re.compile(r"^ *```(?P<language>[\w-]*)\n(?P<text>.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(?P<ticks>`+).+?(?P=ticks)", flags=re.DOTALL)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(?P<title>.+)$", flags=re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def name_of(page: Path) -> str:
    """The page's path within the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(name_of(page), text[: found.start()].count("\n") + 1, found["language"], found["text"])
        for found in _FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> Iterator[str]:
    """What stands between backticks in a page's prose."""
    return (" ".join(found[0].strip("`").split()) for found in _CODE.finditer(prose(page)))


def links(page: Path) -> list[str]:
    """Targets of a page's links and images."""
    return [found["target"] for found in _LINK.finditer(_CODE.sub("`code`", prose(page)))]


def headings(page: Path) -> list[str]:
    """Titles of a page's sections, as they are written."""
    return [found["title"].strip() for found in _HEADING.finditer(prose(page))]


def anchor(title: str) -> str:
    """The anchor that Python-Markdown gives a section."""
    plain = re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower()
    return re.sub(r"[-\s]+", "-", plain)
