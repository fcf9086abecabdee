"""The machine around a search: load, folders, data, and what a CPU's instruction sets say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autocompress.doctor import surroundings
from autocompress.doctor.surroundings import (
    Folder,
    Load,
    find_data,
    find_folders,
    find_load,
    int8_text,
    telling_features,
)


@pytest.mark.parametrize(("average", "n_cores", "is_quiet"), [(0.1, 2, True), (1.0, 2, False), (1.0, 64, True)])
def test_a_machine_is_quiet_when_most_of_it_idles(average: float, n_cores: int, is_quiet: bool) -> None:
    assert Load(average, n_cores).is_quiet == is_quiet


def test_the_load_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 9.0, 9.0))
    assert find_load() == Load(1.5, os.cpu_count() or 1)

    def refuse() -> None:
        raise OSError

    monkeypatch.setattr(os, "getloadavg", refuse)
    assert find_load() is None


@pytest.mark.parametrize(
    ("features", "text"),
    [
        ({"avx2", "avx512_vnni"}, "exact"),
        ({"avx2", "avx_vnni"}, "exact"),
        ({"avx2", "fma"}, "saturate"),
        ({"asimd", "asimddp"}, "exact"),
        (set(), "nothing is known"),
    ],
)
def test_eight_bits_by_instruction_set(features: set[str], text: str) -> None:
    assert text in int8_text(frozenset(features))


def test_features_are_named_in_one_order_and_others_left_out() -> None:
    assert telling_features(frozenset({"fma", "sse2", "avx2"})) == ["avx2", "fma"]


def test_data_that_is_there_or_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path))
    assert find_data().found and find_data().path == str(tmp_path)
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path / "nowhere"))
    assert not find_data().found and "must name a folder" in find_data().text
    monkeypatch.delenv("AUTOCOMPRESS_DATA")
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    assert not find_data().found and "AUTOCOMPRESS_DATA" in find_data().text


def test_folders_need_not_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "a" / "b"))
    runs, _, cache = find_folders()
    assert runs.path == str(tmp_path) and cache.path == str(tmp_path / "a" / "b")
    assert cache.free_gib == pytest.approx(runs.free_gib, rel=0.1)
    assert not (tmp_path / "a").exists()


def test_a_working_folder_that_was_removed_is_no_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    runs = find_folders()[0]
    assert runs.free_gib is None and runs.path.startswith("unknown")
    monkeypatch.chdir(tmp_path)


def test_little_space_is_told() -> None:
    assert Folder("runs", "/", surroundings.LITTLE_GIB / 2).is_full
    assert not Folder("runs", "/", surroundings.LITTLE_GIB * 2).is_full
    assert not Folder("runs", "/", None).is_full
