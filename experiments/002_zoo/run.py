"""Runs the zoo: each model in a process of its own with a limit of CPU time and of memory; resumable.

python run.py [--only REGEX] [--again] [--timeout CPU_SECONDS] [--memory-gib N] [--results FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import subprocess
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from models import names
from one import examine

HERE = Path(__file__).parent
FORK = multiprocessing.get_context("fork")  # the imports, which take longer than most models, are made once


def main() -> None:
    """Runs every model that has no line in the results yet; a line says which commit it comes from."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="pattern of source/name")
    parser.add_argument("--again", action="store_true", help="also models that have a line already, which is replaced")
    parser.add_argument("--timeout", type=int, default=900, help="CPU seconds for each model")
    parser.add_argument("--memory-gib", type=float, default=16.0, help="address space of each process")
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    commit = _commit()
    for source, name in names():
        rows = _rows(options.results)
        if not re.search(options.only, f"{source}/{name}") or ((source, name) in rows and not options.again):
            continue
        row = run(source, name, options.timeout, options.memory_gib) | {"commit": commit}
        rows[source, name] = row
        new = options.results.with_suffix(".new")
        new.write_text("".join(json.dumps(item) + "\n" for item in rows.values()))
        new.replace(options.results)
        found = row.get("error") or f"left {row['left']} groups {row['n_groups']} forward {row['forward_ok']}"
        print(f"{source}/{name}: {found} ({row['wall_s']:.0f} s)", flush=True)


def _rows(results: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The lines so far by model, in their order."""
    lines = results.read_text().splitlines() if results.exists() else []
    return {(row["source"], row["name"]): row for row in map(json.loads, lines)}


def _commit() -> str:
    """The commit that is checked out, and whether Python sources differ from it."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, check=True, capture_output=True, text=True)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ":/*.py"], cwd=HERE).returncode
    return head.stdout.strip() + (" with changes" if changed else "")


def run(source: str, name: str, timeout: int, memory_gib: float) -> dict[str, Any]:
    """The result line of one model; a crash, too much CPU time or too much memory is an `error`."""
    start = time.perf_counter()
    ours, theirs = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_child, args=(source, name, timeout, memory_gib, theirs))
    child.start()
    theirs.close()
    row: dict[str, Any] = {"source": source, "name": name}
    try:
        row = ours.recv()
    except EOFError:
        child.join()
        row["error"] = (
            f"the process ended with exit code {child.exitcode} (-24 and -9: more than {timeout} CPU seconds)"
        )
    child.join()
    row["wall_s"] = round(time.perf_counter() - start, 1)
    return row


def _child(source: str, name: str, timeout: int, memory_gib: float, answer: Connection) -> None:
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + timeout, used + timeout + 5))
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_gib * 2**30),) * 2)
    try:
        answer.send(examine(source, name))
    except Exception as error:  # whatever goes wrong is the result
        text = f"{type(error).__name__}: {str(error)[:300]}"
        answer.send({"source": source, "name": name, "error": text})


if __name__ == "__main__":
    main()
