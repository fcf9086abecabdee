"""Tries every case of `cases.py` and writes `results.csv`: what was said, how it ended, how long it took, a verdict.

python run.py            all cases, one after the other, each in a copy of one small finished run
python run.py task: api  those whose names begin so

A verdict is "good" (the expected exit code, or an `AutocompressError` from Python, one line that names the rule, no
traceback, within 15 seconds, and no result lost), "slow", "silent" (accepted), "traceback" or "lost".
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cases as bad

from autocompress.cli import main as command
from autocompress.errors import AutocompressError
from autocompress.machine import describe_machine, describe_versions

HERE = Path(__file__).parent
SLOW_SECONDS = 15.0


def finished_run(folder: Path) -> None:
    """A search of six trials, with its files."""
    bad.prepare(folder)
    flags = ["--trials", "6", "--workers", "1", "--rungs", "0,2", "--polish-points", "0", "--sampler", "random"]
    with contextlib.redirect_stdout(io.StringIO()):
        code = command(["search", f"{folder}/tasks.py:good", "--run-dir", f"{folder}/run", *flags])
    assert code == 0, "the run that all cases damage"


def results_in(run: Path) -> dict[str, str]:
    """Digests of what must not be lost: records, tables and the front's files."""
    kept = [run / "trials.jsonl", run / "front.csv", *sorted((run / "front").glob("*/model.onnx"))]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in kept if file.is_file()}


def tried(case: bad.Case, template: Path) -> dict[str, object]:
    """One case in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="bad-") as name:
        folder = Path(name) / "here"
        shutil.copytree(template, folder, symlinks=True)
        out, err = io.StringIO(), io.StringIO()
        begin, said, code, kind = time.monotonic(), "", None, ""
        changed: dict[str, dict[str, str]] = {}
        call = _noting(case, folder, changed)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                code = call()
            except AutocompressError as error:
                said, kind = str(error), type(error).__name__
            except BaseException as error:  # whatever a user would see as a traceback
                said, kind = f"{type(error).__name__}: {error}", "traceback"
        seconds = time.monotonic() - begin
        said = (said or err.getvalue()).strip().replace(name, "...")
        for place in (sysconfig.get_path("purelib"), str(HERE.parents[1])):
            said = said.replace(f"{place}/", "")
        lost = changed.get("before", {}) != changed.get("after", {}) and code not in (0,)
    return {
        "case": case.name,
        "verdict": verdict(case, code, kind, said, seconds, lost),
        "exit": code if kind == "" else kind,
        "seconds": round(seconds, 2),
        "said": " ".join(said.split())[-300:],
    }


def _noting(case: bad.Case, folder: Path, changed: dict[str, dict[str, str]]) -> Callable[[], object]:
    """Notes what results there are between the damage and the command, and after it."""

    def call() -> object:
        before = bad.cli

        def watched(*arguments: str) -> object:
            inner = before(*arguments)

            def run(place: Path) -> object:
                changed["before"] = results_in(place / "run")
                try:
                    return inner(place)
                finally:
                    changed["after"] = results_in(place / "run")

            return run

        bad.cli = watched  # type: ignore[assignment]
        try:
            return case.call(folder)
        finally:
            bad.cli = before

    return call


def verdict(case: bad.Case, code: object, kind: str, said: str, seconds: float, lost: bool) -> str:
    """See the module."""
    if kind == "traceback" or "Traceback" in said:
        return "traceback"
    if lost:
        return "lost"
    right = kind not in ("", "traceback") if case.good is None else kind == "" and code in case.good
    if not right:
        return "silent" if kind == "" else "raised"
    if case.says and case.says not in said:
        return "unclear"
    if case.good != (0,) and code != 0 and not said:
        return "silent"
    return "slow" if seconds > SLOW_SECONDS else "good"


def main(wanted: list[str]) -> None:
    """Tries the cases and writes the table."""
    chosen = [case for case in bad.cases() if not wanted or case.name.startswith(tuple(wanted))]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False
    )
    with tempfile.TemporaryDirectory(prefix="bad-input-") as name:
        template = Path(name) / "template"
        template.mkdir()
        finished_run(template)
        rows = []
        for case in chosen:
            rows.append(tried(case, template))
            if rows[-1]["verdict"] != "good":
                print(rows[-1], flush=True)
    with (HERE / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    counts = Counter(str(row["verdict"]) for row in rows)
    machine = describe_machine()
    versions = ", ".join(f"{key} {value}" for key, value in describe_versions().items())
    print(f"{len(rows)} cases: {dict(counts)}")
    print(
        f"commit {commit.stdout.strip()}; {machine['cpu']}, {machine['cores']} cores, {platform.system()}; {versions}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
