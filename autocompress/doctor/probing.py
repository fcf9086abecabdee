"""Runs the program of `probe` with a deadline, and reads what it found, also where it crashed or hung."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from autocompress.doctor.probe import LIBRARIES

State = Literal["ok", "missing", "failed", "unknown"]
_ACCELERATORS = "accelerators"
_MAY_FORK = {"OMP_NUM_THREADS": "1", "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}
"""A process with threads should not fork; macOS refuses it in one that has loaded its own frameworks."""


@dataclass(frozen=True)
class Probe:
    """What was found about a runtime, or a module that a search imports.

    Attributes:
        name: of it.
        library: that it belongs to; a key of `LIBRARIES`.
        state: "ok"; "missing": its package or its device is not here; "failed"; or "unknown": no answer in time.
        text: what was found, in a line.
        executes: precision -> kind of layer -> what its kernels compute here.
    """

    name: str
    library: str
    state: State
    text: str
    executes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Probes:
    """All of them.

    Attributes:
        found: in the order of `LIBRARIES`.
        accelerators: that PyTorch sees, "" where there is none; None where it gave no answer.
    """

    found: tuple[Probe, ...]
    accelerators: str | None


@dataclass(frozen=True)
class _Answer:
    """What the process of a library left: its findings, what it wrote besides, how it ended.

    An `exit_code` of None is one that was killed at the deadline.
    """

    lines: tuple[dict[str, Any], ...]
    errors: str
    exit_code: int | None


def program(folder: Path) -> str:
    """The code of the process that tries all; modules are found where this process finds them."""
    return f"import sys; sys.path[:] = {sys.path!r}; from autocompress.doctor.probe import main; main({str(folder)!r})"


def probe_all(seconds: float, code: Callable[[Path], str] = program) -> Probes:
    """Tries all of `LIBRARIES`.

    Args:
        seconds: after which processes that still run are killed; what they found until then counts.
        code: the program, from the folder for its findings.
    """
    with tempfile.TemporaryDirectory(prefix="autocompress-doctor-") as name:
        folder = Path(name)
        exit_code = _run(code(folder), folder / "all.err", seconds)
        answers = {library: _answer(folder, library, exit_code) for library in LIBRARIES}
    found = [probe for library, answer in answers.items() for probe in _probes(library, answer, seconds)]
    accelerators = [line["text"] for line in answers["torch"].lines if line["name"] == _ACCELERATORS]
    return Probes(tuple(found), accelerators[0] if accelerators else None)


def _run(code: str, errors: Path, seconds: float) -> int | None:
    """Runs a program in a process group of its own, which is killed at the deadline, compilers and all.

    Returns:
        Its exit code, or None where it was killed.
    """
    with errors.open("wb") as stream:
        child = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            env={**os.environ, **_MAY_FORK},
            start_new_session=True,
        )
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _answer(folder: Path, library: str, exit_code: int | None) -> _Answer:
    """Reads what the process of a library left; the exit code of the program stands for one that never started."""
    text, errors, own_code = (_text(folder / f"{library}.{end}") for end in ("out", "err", "exit"))
    lines = tuple(filter(None, map(_read, text.splitlines())))
    return _Answer(lines, errors or _text(folder / "all.err"), int(own_code) if own_code else exit_code)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _read(line: str) -> dict[str, Any] | None:
    """A finding; None for anything else that a library prints."""
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) and {"name", "state", "text"} <= data.keys() else None


def _probes(library: str, answer: _Answer, seconds: float) -> list[Probe]:
    by_name = {line["name"]: line for line in answer.lines}
    probes = []
    for name in LIBRARIES[library]:
        if name in by_name:
            line = by_name[name]
            probes.append(Probe(name, library, line["state"], line["text"], line.get("executes", {})))
        elif answer.exit_code is None:
            text = f"gave no answer within {seconds:g} s; try again when the machine is idle"
            probes.append(Probe(name, library, "unknown", text))
        else:
            probes.append(Probe(name, library, "failed", _crash_text(answer.errors, answer.exit_code)))
    return probes


def _crash_text(errors: str, exit_code: int) -> str:
    """How a process ended, and the last line that it wrote."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    how = f"exit code {exit_code}" if exit_code >= 0 else _signal_name(-exit_code)
    return f"its process ended with {how}" + (f": {lines[-1][:300]}" if lines else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
