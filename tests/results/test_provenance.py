"""A run of somebody else's says what it would import, and does not without being trusted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.config import SearchSettings
from autocompress.errors import InputError
from autocompress.results.provenance import KEY_VARIABLE, imports_of, require_trust, signature_of
from autocompress.results.run_folder import RunFolder, RunInfo
from tests.shared.objectives import of_accuracy

SETTINGS = SearchSettings()
INFO = RunInfo("task", "/home/me/my_model.py:task", SETTINGS, of_accuracy(), "0" * 12, "1" * 12)


def signed(info: RunInfo) -> RunInfo:
    return replace(info, signature=signature_of(imports_of(info.task_spec, info.settings)))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_info(signed(INFO))
    return folder


@pytest.mark.parametrize(
    ("spec", "changes", "expected"),
    [
        (None, {}, []),
        ("digits", {}, []),
        ("cifar10:resnet20", {}, []),
        ("hf:./my-model?data=x.csv", {}, []),
        ("hf:./my-model?trust_remote_code=true", {}, ["task hf:./my-model?trust_remote_code=true"]),
        ("hf:./my-model?metric=os:system", {}, ["task hf:./my-model?metric=os:system"]),
        ("my_model.py:task", {}, ["task my_model.py:task"]),
        (None, {"sampler": "os:getcwd"}, ["sampler os:getcwd"]),
        (None, {"importance": "os:getcwd"}, ["importance os:getcwd"]),
        (None, {"runtime": "os:path"}, ["runtime os:path"]),
        (None, {"ray_address": "1.2.3.4:6379"}, ["ray_address 1.2.3.4:6379"]),
    ],
)
def test_what_would_be_imported(spec: str | None, changes: dict[str, str], expected: list[str]) -> None:
    assert imports_of(spec, SearchSettings.from_dict(changes)) == expected


def test_ones_own_run_needs_no_trust(folder: RunFolder) -> None:
    require_trust(folder, trust=False)


def test_another_user_or_machine_needs_it(folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "other" / "key"))
    for _ in range(2):
        with pytest.raises(InputError, match=r"my_model\.py:task.*--trust"):
            require_trust(folder, trust=False)
        signature_of([])  # the other one has a key of their own now
    require_trust(folder, trust=True)
    require_trust(folder, trust=False, gets_task=True)


@pytest.mark.parametrize(
    "change",
    [
        {"task_spec": "/home/eve/evil.py:task"},
        {"settings": {"sampler": "evil:sampler"}},
        {"settings": {"runtime": "evil:Runtime"}},
        {"settings": {"ray_address": "evil:6379"}},
        {"signature": ""},
        {"signature": "é"},
    ],
)
def test_an_edited_run_needs_it(folder: RunFolder, change: dict[str, object]) -> None:
    data = json.loads(folder.info.read_text())
    settings = {**data["settings"], **change.pop("settings", {})}  # type: ignore[dict-item]
    folder.info.write_text(json.dumps({**data, **change, "settings": settings}))
    with pytest.raises(InputError, match="--trust"):
        require_trust(folder, trust=False)


def test_the_key_is_for_this_user_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / "key"
    monkeypatch.setenv(KEY_VARIABLE, str(file))
    first = signature_of(["task x"])
    assert file.stat().st_mode & 0o777 == 0o600 and len(file.read_bytes()) == 32
    assert signature_of(["task x"]) == first != signature_of(["task y"])


def test_where_no_key_can_be_kept_nothing_is_trusted(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "file" / "key"))
    assert signature_of(["task x"]) == ""
    with pytest.raises(InputError, match="--trust"):
        require_trust(folder, trust=False)
