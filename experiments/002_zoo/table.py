"""Turns results.jsonl into the tables of the README: python table.py results.jsonl"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

MOST_LEFT = 0.6


def main(path: Path) -> None:
    """Prints a summary by source, every model, and how often each reason occurs."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    print(_head("source", "models", "no crash", "forward right", "of these ≤ 60 % left", "exports"))
    for source in dict.fromkeys(row["source"] for row in rows):
        mine = [row for row in rows if row["source"] == source]
        whole = [row for row in mine if "error" not in row]
        right = [row for row in whole if row["forward_ok"]]
        small = sum(row["left"] <= MOST_LEFT for row in right)
        exports = sum(row["exports"] == "yes" for row in whole)
        print(f"| {source} | {len(mine)} | {len(whole)} | {len(right)} | {small} | {exports} |")
    print(_head("model", "groups", "branches", "frozen", "parameters left", "graph, CPU s", "note"))
    for row in rows:
        print(_line(row))
    reasons: Counter[str] = Counter()
    for row in rows:
        for reason, count in row.get("frozen", {}).items():
            reasons[reason] += count
    print(_head("times", "reason"))
    for reason, count in reasons.most_common():
        print(f"| {count} | {reason.replace('|', '/')} |")


def _head(*names: str) -> str:
    return f"\n| {' | '.join(names)} |\n|{' --- |' * len(names)}"


def _line(row: dict[str, Any]) -> str:
    name = f"{row['source']}/{row['name']}"
    if "error" in row:
        return f"| {name} | | | | | | {row['error'][:120].replace('|', '/')} |"
    note = "; ".join(
        text
        for text, holds in (
            ("cannot be traced", row["untraced"]),
            ("forward wrong", not row["forward_ok"]),
            ("does not export", row["exports"] != "yes"),
        )
        if holds
    )
    figures = (row["n_groups"], row["n_branches"], row["n_frozen"], f"{row['left']:.3f}", row["graph_cpu_s"], note)
    return f"| {name} | {' | '.join(map(str, figures))} |"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
