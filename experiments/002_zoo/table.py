"""Turns results.jsonl into the tables of the README: python table.py results.jsonl README.md"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_LEFT = 0.6
BEGIN, END = "<!-- tables, made by table.py -->", "<!-- end of the tables -->"


def main(results: Path, readme: Path) -> None:
    """Writes a summary by source, every model, and how often each reason occurs, between the README's two marks."""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    before, _, rest = readme.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text("\n".join([before + BEGIN, *_summary(rows), *_models(rows), *_reasons(rows), "", END + after]))


def _summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield _head("source", "models", "no crash", "forward right", "of these ≤ 60 % left", "share of all", "exports")
    for source in dict.fromkeys(row["source"] for row in rows):
        mine = [row for row in rows if row["source"] == source]
        whole = [row for row in mine if "error" not in row]
        right = [row for row in whole if row["forward_ok"]]
        small = sum(row["left"] <= MOST_LEFT for row in right)
        exports = sum(row["exports"] == "yes" for row in whole)
        figures = (len(mine), len(whole), len(right), small, f"{small / len(mine):.1%}", exports)
        yield f"| {source} | {' | '.join(map(str, figures))} |"


def _models(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield _head("model", "groups", "branches", "frozen", "parameters left", "graph, CPU s", "commit", "note")
    yield from map(_line, rows)


def _reasons(rows: list[dict[str, Any]]) -> Iterator[str]:
    times: Counter[str] = Counter()
    models: Counter[str] = Counter()
    for row in rows:
        times.update(row.get("frozen", {}))
        models.update(row.get("frozen", {}).keys())
    yield _head("times", "models", "reason")
    for reason, count in times.most_common():
        yield f"| {count} | {models[reason]} | {reason.replace('|', '/')} |"


def _head(*names: str) -> str:
    return f"\n| {' | '.join(names)} |\n|{' --- |' * len(names)}"


def _line(row: dict[str, Any]) -> str:
    name = f"{row['source']}/{row['name']}"
    if "error" in row:
        return f"| {name} | | | | | | {row['commit']} | {row['error'][:120].replace('|', '/')} |"
    note = "; ".join(
        text
        for text, holds in (
            ("cannot be traced", row["untraced"]),
            ("forward wrong", not row["forward_ok"]),
            ("does not export", row["exports"] != "yes"),
        )
        if holds
    )
    figures = (
        row["n_groups"],
        row["n_branches"],
        row["n_frozen"],
        f"{row['left']:.3f}",
        row["graph_cpu_s"],
        row["commit"],
        note,
    )
    return f"| {name} | {' | '.join(map(str, figures))} |"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
