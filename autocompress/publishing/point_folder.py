"""The folder of a point as files: whether they are those that were measured, copying and replacing them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.files import digest_of_file, path_inside, read_json
from autocompress.publishing.artifact import MANIFEST, RECIPE, WEIGHTS, read_manifest
from autocompress.publishing.model_card import CARD
from autocompress.publishing.runner import EXAMPLES, RUNNER
from autocompress.results.run_folder import LAYER_TIMES

_WRITTEN = (WEIGHTS, RECIPE, LAYER_TIMES, EXAMPLES, RUNNER, CARD)


def require_as_measured(folder: Path, manifest: Mapping[str, Any] | None = None) -> None:
    """Refuses a point's folder whose files are not those that its manifest has the digests of.

    Args:
        folder: of the point.
        manifest: of the folder, where it was read before.

    Raises:
        InputError: a file is missing, a link, or differs; names it.
    """
    manifest = read_manifest(folder) if manifest is None else manifest
    require_digests(folder, manifest["files"])


def require_digests(folder: Path, digests: Mapping[str, str]) -> None:
    """Refuses a folder whose files have other digests.

    Raises:
        InputError: a file is missing, a link, or differs; names it.
    """
    for name, digest in digests.items():
        file = path_inside(folder, name)
        if not file.is_file():
            raise InputError(f"{folder} is not as it was measured: {name} is missing; put it back, or measure it anew")
        if digest_of_file(file) != digest:
            raise InputError(
                f"{folder} is not as it was measured: {name} differs from its digest; put the file back, "
                "or remove the folder and `autocompress resume` the run, which measures it anew"
            )


def copy_point(folder: Path, output: Path) -> None:
    """Copies a point's folder to a new one.

    Raises:
        InputError: there is a link or a folder in it, or the files are not those that were measured.
    """
    require_as_measured(folder)
    copy_files(folder, output)


def copy_files(folder: Path, output: Path) -> None:
    """Copies a folder of plain files to a new one.

    Raises:
        InputError: there is a link or a folder in it, or it is a link itself.
    """
    for file in (folder, *folder.iterdir()):
        if file.is_symlink() or (file != folder and not file.is_file()):
            raise InputError(f"a point's folder holds plain files, but {file} is none; remove it")
    try:
        shutil.copytree(folder, output, symlinks=True)
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)  # half a copy would only refuse its name to the next try
        raise


def require_own_place(point: Path) -> None:
    """Refuses to write a point where there is something that the run did not write.

    Raises:
        InputError: a file, a link, or a folder without a manifest is there.
    """
    for path in (point.parent, point):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise InputError(
                f"{path} must be a folder of the run, but it is a file or a link; move it away, then resume"
            )


def replace_point(draft: Path, point: Path) -> None:
    """Moves a new folder to the point's place; files there that the run did not write stay."""
    remove_point(point)
    if not point.exists():
        draft.rename(point)
        return
    for file in sorted(draft.iterdir(), key=lambda file: file.name == MANIFEST):  # last: it says that all is there
        file.replace(point / file.name)
    draft.rmdir()


def remove_point(point: Path) -> None:
    """Removes a point's files that the run wrote, and the folder where nothing else is in it."""
    if not point.is_dir() or point.is_symlink():
        return
    for name in (MANIFEST, *_WRITTEN, *_named(point)):
        file = point / name
        if file.is_symlink() or file.is_file():
            file.unlink()
    if not any(point.iterdir()):
        point.rmdir()


def is_point_of(point: Path, number: int, model_digest: str) -> bool:
    """Whether a folder holds that trial of a run of that model."""
    if point.is_symlink() or not (point / MANIFEST).is_file():
        return False
    try:
        manifest = read_manifest(point)
    except InputError:
        return False
    return bool(manifest.get("trial") == number and manifest["uncompressed"].get("digest") == model_digest)


def _named(point: Path) -> list[str]:
    """The files that a point's manifest names."""
    try:
        files = read_json(point / MANIFEST).get("files", {})
    except InputError:
        return []
    return [name for name in files if Path(name).name == name] if isinstance(files, Mapping) else []
