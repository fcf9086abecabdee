"""A point's folder: its files are those that were measured, and nothing but what the run wrote is touched."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autocompress as ac
from autocompress.errors import InputError
from autocompress.publishing.artifact import MANIFEST, WEIGHTS, read_manifest
from autocompress.publishing.point_folder import (
    copy_point,
    is_point_of,
    remove_point,
    replace_point,
    require_as_measured,
    require_own_place,
)
from autocompress.results.run_folder import check_output
from tests.shared.points import Point
from tests.shared.tasks import tiny_task


@pytest.fixture
def point(float_point: Point, tmp_path: Path) -> Path:
    return Path(shutil.copytree(float_point[0], tmp_path / "trial_0007"))


def edited(point: Path, **changes: Any) -> None:
    manifest = json.loads((point / MANIFEST).read_text())
    (point / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def ran(point: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, point / "run.py"], capture_output=True, text=True, check=False)


def test_the_manifest_has_a_digest_of_every_file(point: Path) -> None:
    files = {path.name for path in point.iterdir()} - {MANIFEST, "README.md"}
    assert set(read_manifest(point)["files"]) == files
    require_as_measured(point)


def swapped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def missing(file: Path) -> None:
    file.unlink()


def linked(file: Path) -> None:
    moved = file.rename(file.with_suffix(".moved"))
    file.symlink_to(moved)


@pytest.mark.parametrize("change", [swapped, missing, linked])
@pytest.mark.parametrize("name", ["model.onnx", WEIGHTS, "run.py"])
def test_a_file_that_is_another_is_named_by_every_reader(
    point: Path, change: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    change(point / name)
    with pytest.raises(InputError, match=name):
        require_as_measured(point)
    with pytest.raises(InputError, match=name):
        copy_point(point, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    if name == WEIGHTS and change is swapped:
        with pytest.raises(InputError, match=name):
            ac.load(point, tiny_task())
    if name != "run.py":
        done = ran(point)
        assert done.returncode != 0 and name in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime_file": "../other.onnx"}, "no file of this folder"),
        ({"runtime_file": "/etc/passwd"}, "no file of this folder"),
        ({"runtime": "os"}, "the runtime must be one of"),
        ({"files": {"../x": "0"}}, "no file of this folder"),
    ],
)
def test_a_bundle_leads_nowhere_else(point: Path, changes: dict[str, Any], message: str) -> None:
    edited(point, **changes)
    done = ran(point)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["../weights", "/etc/passwd", "a/b", "", "..", ".", "x\0y"])
def test_names_that_lead_elsewhere_are_refused(point: Path, name: str) -> None:
    edited(point, files={name: "0"})
    with pytest.raises(InputError, match="must name files in itself"):
        require_as_measured(point)


def test_a_link_beside_the_files_is_not_copied(point: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (point / "notes").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="notes is none"):
        copy_point(point, tmp_path / "copy")


def test_what_the_user_put_beside_the_files_stays(point: Path, float_point: Point, tmp_path: Path) -> None:
    (point / "notes.txt").write_text("mine")
    draft = Path(shutil.copytree(float_point[0], tmp_path / "draft"))
    replace_point(draft, point)
    assert (point / "notes.txt").read_text() == "mine" and not draft.exists()
    require_as_measured(point)
    remove_point(point)
    assert [path.name for path in point.iterdir()] == ["notes.txt"]
    (point / "notes.txt").unlink()
    remove_point(point)
    assert not point.exists()


def test_only_points_of_the_run_are_known_as_such(point: Path, tmp_path: Path) -> None:
    digest = read_manifest(point)["uncompressed"]["digest"]
    assert is_point_of(point, 7, digest)
    assert not is_point_of(point, 8, digest)
    assert not is_point_of(point, 7, "f" * 12)
    (tmp_path / "link").symlink_to(point)
    assert not is_point_of(tmp_path / "link", 7, digest)
    (point / MANIFEST).write_text("{")
    assert not is_point_of(point, 7, digest)


def test_a_file_in_a_points_place_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "trial_0001").write_text("mine")
    (tmp_path / "trial_0002").symlink_to(tmp_path)
    for name in ("trial_0001", "trial_0002"):
        with pytest.raises(InputError, match="move it away"):
            require_own_place(tmp_path / name)
    require_own_place(tmp_path / "trial_0003")


def test_a_model_does_not_go_into_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "front").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    for output in (run / "model", run / "front" / "trial_0001", run / "a" / "b"):
        with pytest.raises(InputError, match="outside of runs"):
            check_output(output)
    check_output(tmp_path / "model")
    assert not (tmp_path / "model").exists()
