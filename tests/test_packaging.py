"""What a release is made of: the version in one place, the entry point, the release workflow, the container file."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from autocompress import __version__
from autocompress.cli import _parser, main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
CONTAINERFILE = (ROOT / "Containerfile").read_text(encoding="utf-8")


def steps(job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"][job]["steps"]
    return found


def test_the_version_is_that_of_the_newest_heading_of_the_changelog(capsys: pytest.CaptureFixture[str]) -> None:
    headings = re.findall(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == __version__
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "autocompress/__init__.py"
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"autocompress {__version__}\n"


def test_the_changelog_of_a_version_is_read_in_a_minute() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (newest,) = re.findall(
        rf"^## \[{re.escape(__version__)}\].*?(?=^#+ Details|^## \[|\Z)", text, re.MULTILINE | re.DOTALL
    )
    lines = [line for line in newest.splitlines() if line.startswith("- ")]
    assert 5 <= len(lines) <= 25
    assert max(map(len, newest.splitlines())) <= 130


def test_the_command_has_the_packages_name_so_that_pipx_and_uvx_run_it() -> None:
    project = PROJECT["project"]
    module, _, name = project["scripts"][project["name"]].partition(":")
    assert getattr(importlib.import_module(module), name) is main


@pytest.mark.parametrize(
    ("tag", "says"),
    [(f"v{__version__}", ""), ("v99.0", f"says {__version__}"), (__version__, f"says {__version__}")],
)
def test_a_release_needs_the_tag_of_the_version(tag: str, says: str) -> None:
    (step,) = [step for step in steps("build") if "tag is the version" in step.get("name", "")]
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "GITHUB_REF_NAME": tag},
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == (not says)
    assert says in done.stdout


def test_the_workflow_builds_both_from_a_tag_and_tries_the_wheel() -> None:
    whole = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert whole[True] == {"push": {"tags": ["v*"]}}, "YAML reads the key `on` as true"
    scripts = "\n".join(step.get("run", "") for step in steps("build"))
    assert "python -m build\n" in scripts and "twine check --strict dist/*" in scripts
    for line in re.findall(r"fresh/bin/autocompress (.*)", scripts):
        if line != "--version":
            _parser().parse_args(line.split())
    assert whole["jobs"]["release"]["needs"] == "build"
    assert whole["permissions"] == {"contents": "read"}


def test_the_container_copies_what_the_package_is_built_from() -> None:
    copied = {word for line in re.findall(r"^COPY (.+) \S+$", CONTAINERFILE, re.MULTILINE) for word in line.split()}
    built = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = PROJECT["project"]
    needed = {
        *built["packages"],
        *built["force-include"],
        project["readme"],
        *project["license-files"],
        "pyproject.toml",
    }
    assert copied == needed
    assert all((ROOT / name).exists() for name in copied)
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert kept == copied
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", CONTAINERFILE, re.MULTILINE)
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def test_the_container_runs_the_command_and_not_as_root() -> None:
    assert 'ENTRYPOINT ["autocompress"]' in CONTAINERFILE
    assert CONTAINERFILE.index("USER user") < CONTAINERFILE.index("ENTRYPOINT")
    (run,) = re.findall(r"autocompress (search [^\n]+)", CONTAINERFILE)
    _parser().parse_args(shlex.split(run))
