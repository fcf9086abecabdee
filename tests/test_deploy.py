"""The cluster files: they parse, and every command and flag in them and in the guide exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from autocompress.cli import _parser

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
SLURM = ROOT / "deploy" / "slurm.sbatch"
KUBERAY = ROOT / "deploy" / "kuberay.yaml"


def commands(text: str) -> list[list[str]]:
    """Every `autocompress ...` line, continuation lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [re.search(r"\bautocompress ((?:search|resume|status)\b[^`#;&]*)", line) for line in lines]
    return [match[1].split() for match in found if match]


def folded(text: str) -> str:
    """The manifest's entrypoint as the one line that it is."""
    (context,) = [part for part in yaml.safe_load_all(text) if part["kind"] == "RayJob"]
    return str(context["spec"]["entrypoint"]).replace(";", "\n")


@pytest.mark.parametrize(
    "source", [GUIDE, SLURM.read_text(), folded(KUBERAY.read_text())], ids=["guide", "slurm", "k8s"]
)
def test_every_command_is_one_that_the_command_line_takes(source: str) -> None:
    found = commands(source)
    assert len(found) >= 2
    for arguments in found:
        rest = [argument for argument in arguments if argument != '"$@"']
        _parser().parse_args(rest)


def test_every_flag_of_the_guides_table_exists() -> None:
    flags = set(re.findall(r"`(--[a-z-]+)", "\n".join(line for line in GUIDE.splitlines() if line.startswith("| `--"))))
    text = subprocess.run(
        ["python", "-m", "autocompress", "search", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert flags and {flag for flag in flags if flag not in text} == set()


def test_the_manifest_is_yaml_and_names_no_secret() -> None:
    parts = list(yaml.safe_load_all(KUBERAY.read_text()))
    assert [part["kind"] for part in parts] == ["PersistentVolumeClaim", "RayJob", "NetworkPolicy"]
    cluster = parts[1]["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    (claim,) = cluster["headGroupSpec"]["template"]["spec"]["volumes"]
    assert claim["persistentVolumeClaim"]["claimName"] == parts[0]["metadata"]["name"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for container in group["template"]["spec"]["containers"]:
            for variable in container.get("env", []):
                secret = re.search("KEY|TOKEN|PASSWORD|SECRET", variable["name"])
                assert not (secret and "value" in variable), "only by reference"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_batch_script_is_one() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)


def test_what_the_guide_links_to_is_there() -> None:
    for target in re.findall(r"\]\((\.\./[^)#]+)\)", GUIDE):
        assert (ROOT / "docs" / target).resolve().is_file(), target
