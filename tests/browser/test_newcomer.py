"""A newcomer's path in a real browser, and how fast the page is; run by `make test-browser`, which says what it needs.

Playwright drives Debian's Chromium from an environment of its own; AUTOCOMPRESS_PYTHON is the interpreter that has the
package. The figures are printed: they depend on the machine.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="`make test-browser` installs it in its own environment")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PYTHON = os.environ.get("AUTOCOMPRESS_PYTHON", sys.executable)
ROOT = Path(__file__).parents[2]
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Debian: apt-get install chromium")]


def ours(*arguments: object, **options: Any) -> str:
    """Runs the package's Python."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [PYTHON, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    print(ours("-m", "tests.browser.pages", folder, cwd=ROOT))
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page in a fresh context without a network; whatever it logs as an error fails the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, offline=True)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened, errors = context.new_page(), []
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("request", lambda request: errors.append(request.url) if not request.url.startswith("file:") else None)
    yield opened
    context.close()
    assert errors == []


def slide(page: Any, share: float) -> float:
    """Moves the slider; returns the milliseconds until the page had been drawn again."""
    return float(
        page.evaluate(
            """(value) => new Promise((done) => {
                const slider = document.getElementById("budget");
                const begin = performance.now();
                slider.value = value;
                slider.dispatchEvent(new Event("input", { bubbles: true }));
                requestAnimationFrame(() => setTimeout(() => done(performance.now() - begin)));
            })""",
            round(1000 * share),
        )
    )


def test_2000_trials_of_60_layers_are_quick(page: Any, pages: Path) -> None:
    file = pages / "large" / "report.html"
    assert file.stat().st_size < 6_000_000
    begin = time.perf_counter()
    page.goto(file.as_uri())
    page.wait_for_selector("#details .tile")
    slide(page, 0.5)
    opened = time.perf_counter() - begin
    timings = sorted(slide(page, share / 20) for share in range(1, 20))
    print(f"opened and answering in {opened:.2f} s; slider: median {timings[9]:.0f} ms, slowest {timings[-1]:.0f} ms")
    assert opened <= 2
    assert timings[9] <= 100
    assert page.locator("path.point").count() > 100


def test_thousands_of_layers_stay_usable(page: Any, pages: Path) -> None:
    page.goto((pages / "thousands" / "report.html").as_uri())
    assert page.locator(".layers .path").count() == 300
    page.get_by_role("button", name="Show all 3000 layers").click()
    assert page.locator(".layers .path").count() == 3000


def test_hostile_names_are_text(page: Any, pages: Path) -> None:
    page.goto((pages / "hostile" / "report.html").as_uri())
    assert page.locator("img").count() == 0
    assert page.locator(".layers .path").first.text_content() == "</script><img src=x onerror=alert(1)>"


def test_it_can_be_used_by_keyboard_alone(page: Any, pages: Path) -> None:
    page.goto((pages / "large" / "report.html").as_uri())
    page.locator("#plot [tabindex='0']").focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    last = page.locator("#details-title").text_content()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.locator("#details-title").text_content() != last
    page.locator("#budget").focus()
    page.keyboard.press("ArrowRight")
    assert "latency up to" in page.locator("#budget-value").text_content()
    page.locator("input[name=x][value=latency]").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("input[name=x][value=ms]").is_checked()


def test_nothing_is_wider_than_a_phone(browser: Any, pages: Path) -> None:
    for name in ("large", "hostile"):
        phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        phone.goto((pages / name / "report.html").as_uri())
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390
        phone.close()


def test_a_newcomer_leaves_with_a_model_that_runs(page: Any, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    task = tmp_path / "my_model.py"
    task.write_text(next(block for block in blocks if block.startswith("# my_model.py")))
    run = tmp_path / "run"
    search = ["search", f"{task}:task", "--run-dir", run, "--trials", 8, "--rungs", "0,10", "--latency-budget", "0.9x"]
    ours("-m", "autocompress", *search)

    page.goto((run / "report.html").as_uri())
    slide(page, 0.7)
    point = page.locator("path.point.front").first
    point.click(force=True)
    number = point.get_attribute("data-trial")
    assert page.locator("#details-title").text_content().startswith(f"Trial {number},")
    said = re.search(r"example inputs: ([\d, ]+)\.", page.locator("#details").text_content())
    assert said is not None
    page.get_by_role("button", name="Copy: Take it with you").click()
    pick = page.evaluate("navigator.clipboard.readText()")

    words = shlex.split(pick)
    assert words[0] == "autocompress"
    ours("-m", "autocompress", *words[1:], cwd=tmp_path)
    lines = ours(tmp_path / "model" / "run.py").splitlines()
    assert lines[0] == f"largest output: [{said[1]}]", "the file's answers are those that the report shows"
    assert lines[1] == "as measured: 8 of 8"
    print(f"copied: {pick}\n" + "\n".join(lines))
