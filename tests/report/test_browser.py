"""The page as a real browser leaves it once its script has run; skipped where there is no Chromium."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from autocompress.report.files import write_report_page
from autocompress.report.wording import metric_text
from autocompress.results.records import TrialRecord
from autocompress.results.run_folder import Run
from autocompress.space.candidate import Candidate
from tests.report.conftest import MakeRun
from tests.report.searches import HOSTILE, LAYERS, bad_searches, hostile_records

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH (Debian: apt-get install chromium)")


def opened(run: Run, profile: Path) -> str:
    """The document after its script ran; fails when the page logged anything, such as an error or a blocked request."""
    assert BROWSER is not None
    options = ["--headless=new", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # Chromium refuses to run as root with one
    command = [BROWSER, *options, f"--user-data-dir={profile}", write_report_page(run).as_uri()]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    log = done.stderr.decode(errors="replace")
    assert "CONSOLE" not in log, log
    return done.stdout.decode()


def element(document: str, name: str) -> str:
    """Inner HTML of the element with this id, up to its first closing tag of the same kind."""
    match = re.search(rf'<(\w+)[^>]*\bid="{name}"[^>]*>(.*?)</\1>', document, re.DOTALL)
    assert match is not None
    return match[2]


def paths(document: str) -> list[str]:
    """Layer names in the order in which they are shown."""
    return [html.unescape(path) for path in re.findall(r'<bdi class="path"[^>]*>([^<]*)</bdi>', document)]


def test_the_budget_chooses_the_best_point_within_it(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    document = opened(run, tmp_path / "profile")
    best = run.front.pick(latency_budget="0.6x")
    assert best.file is not None
    chosen = f"trial {best.number}, {metric_text(best.file.metrics['selection']['accuracy'], 'accuracy')}"
    assert element(document, "budget-value") == f"latency up to 0.600× (0.414 ms) → best: {chosen}"
    assert element(document, "details-title").startswith(f"Trial {best.number}, on the front")
    assert f"autocompress pick {run.folder.path} --trial {best.number} -o model/" in element(document, "details")
    assert len(re.findall(r'class="point front ', document)) == len(run.front.points)
    assert [path for path in re.findall(r'<bdi class="path"[^>]*>([^<]*)</bdi>', document) if path in LAYERS][
        :20
    ] == list(LAYERS)


def test_hostile_names_are_shown_as_text(make_run: MakeRun, tmp_path: Path) -> None:
    names = HOSTILE[:-1]  # Chromium's --dump-dom crashes on a lone surrogate; the page itself does not
    document = opened(make_run(hostile_records(names), names, task=names[0]), tmp_path / "profile")
    assert "<img" not in document
    assert html.unescape(element(document, "title")).startswith(HOSTILE[0])
    assert set(HOSTILE[:5]) <= set(paths(document))


@pytest.mark.parametrize("name", bad_searches())
def test_bad_runs_leave_a_readable_page(make_run: MakeRun, tmp_path: Path, name: str) -> None:
    run = make_run(bad_searches()[name])
    document = opened(run, tmp_path / "profile")
    reason = element(document, "reason")
    assert reason
    assert run.front.reason in html.unescape(reason)
    assert "Machine and versions" in document


def test_coupled_layers_and_removed_blocks_are_drawn_where_they_are_known(make_run: MakeRun, tmp_path: Path) -> None:
    record = TrialRecord(0, "complete", "sampler", Candidate({"conv1": 0.25}, frozenset({"layer1.0"})))
    run = make_run(
        [record],
        details=[
            {"path": "conv1", "kind": "conv2d"},
            {"path": "layer1.0.conv1", "kind": "conv2d", "branch": "layer1.0"},
            {"path": "layer1.1.conv1", "kind": "conv2d", "group": "conv1"},
        ],
    )
    document = opened(run, tmp_path / "profile")
    layers = document[document.index('class="layers"') : document.index('id="progress"')]
    assert layers.count(">75%<") == 2
    assert layers.count("removed with its block") == 1
