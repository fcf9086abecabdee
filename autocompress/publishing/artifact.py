"""Writes and reads a compressed model: manifest, safetensors, and the runtime's file. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from autocompress.compression import Recipe, rebuild
from autocompress.declared_types import require_types
from autocompress.errors import CompressionError, InputError
from autocompress.files import digest_of_file, read_json, write_atomically
from autocompress.graph import ModelGraph, inspect_model
from autocompress.results.records import FileNumbers, TrialRecord
from autocompress.settings_schema import require_kind
from autocompress.task import Task, as_inputs

SCHEMA_VERSION = 1
_DIGEST = "weights_digest"
_KINDS: dict[str, Any] = {
    "task": str,
    "uncompressed": Mapping[str, Any],
    "recipe": Mapping[str, Any],
    "numbers": Mapping[str, Any] | None,
    "files": Mapping[str, str],
    "runtime_file": str,
    "trial": int,
}
MANIFEST, RECIPE, WEIGHTS = "manifest.json", "recipe.json", "weights.safetensors"


def model_digest(model: nn.Module) -> str:
    """12 hex digits that change when the names, shapes or values of a model's tensors change."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def save_student(folder: Path, student: nn.Module, recipe: Recipe) -> None:
    """Writes `weights.safetensors` and `recipe.json` into `folder` (made if missing); whole files or none.

    The recipe holds the digest of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{WEIGHTS}.tmp"
    save_model(student, str(weights))
    digest = digest_of_file(weights)
    weights.replace(folder / WEIGHTS)
    write_atomically(folder / RECIPE, json.dumps({**recipe.to_dict(), _DIGEST: digest}, indent=1))


def load_student(folder: Path, model: nn.Module, graph: ModelGraph) -> tuple[nn.Module, Recipe]:
    """The compressed model that `save_student` wrote: the recipe replayed on the uncompressed model, then its weights.

    Args:
        folder: holds `weights.safetensors` and `recipe.json`, or a `manifest.json` with a recipe.
        model: the uncompressed model; not touched. Only its structure matters.
        graph: of the model.

    Raises:
        InputError: a file is missing or damaged, or is not of this model.
    """
    recipe_data, digest = _recipe_and_digest(folder)
    try:
        recipe = Recipe.from_dict(recipe_data)
        student = rebuild(model, graph, recipe)
    except CompressionError as error:
        raise InputError(f"the recipe in {folder} does not fit this model: {error}") from error
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise InputError(f"a compressed model's folder holds {WEIGHTS}, but {folder} does not")
    if digest is not None and digest_of_file(weights) != digest:
        raise InputError(f"{weights} differs from the digest that was written with it; put the file back")
    try:
        load_model(student, str(weights))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{weights} must hold the weights of this model, compressed by its recipe, but: {error}"
        ) from error
    return student.eval(), recipe


def _recipe_and_digest(folder: Path) -> tuple[Any, str | None]:
    """What is known of a folder's weights; runs of earlier versions have no digest beside a recipe."""
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        return manifest["recipe"], manifest["files"].get(WEIGHTS)
    recipe = read_json(folder / RECIPE, "recipe")
    return recipe, recipe.pop(_DIGEST, None)


def load(folder: str | Path, task: Task) -> nn.Module:
    """The compressed model in a front point's folder, as a plain module in evaluation mode.

    Args:
        folder: for example `runs/x/front/trial_0042`.
        task: the one that was searched; gives the uncompressed model's structure.

    Raises:
        InputError: not such a folder, damaged, or of another model.
    """
    require_kind("folder", folder, "a path", str, Path)
    path = Path(folder)
    manifest = read_manifest(path)
    model = task.build_model()
    n_expected, n_given = manifest["uncompressed"]["n_params"], sum(p.numel() for p in model.parameters())
    if n_expected != n_given:
        raise InputError(
            f"{path} was compressed from a model of {n_expected} parameters, but the task's model has {n_given}; "
            f"give the task that was searched ({manifest['task']})"
        )
    student, _ = load_student(path, model, inspect_model(model, as_inputs(task.example_inputs())))
    return student


def write_manifest(
    folder: Path,
    record: TrialRecord,
    recipe: Recipe,
    file: Path,
    facts: Mapping[str, Any],
) -> None:
    """Writes `manifest.json`: what was done, what was measured from which file, and where it came from.

    It has the digests of all files in the folder.

    Args:
        folder: of the front point.
        record: with the numbers of its file.
        recipe: replayed on load.
        file: the runtime's file, in `folder`.
        facts: of the run: task, runtime, n_threads, uncompressed model, versions, machine.
    """
    manifest = folder / MANIFEST
    data = {
        "schema": SCHEMA_VERSION,
        **facts,
        "trial": record.number,
        "candidate": record.candidate.to_dict(),
        "recipe": recipe.to_dict(),
        "files": {path.name: digest_of_file(path) for path in sorted(folder.iterdir()) if path != manifest},
        "runtime_file": file.name,
        "numbers": asdict(record.file) if record.file is not None else None,
        "search": {"metrics": dict(record.metrics), "latency": asdict(record.latency) if record.latency else None},
    }
    write_atomically(manifest, json.dumps(data, indent=1))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a front point.

    Raises:
        InputError: missing, damaged, or of another schema version.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise InputError(
            f"a compressed model's folder holds {MANIFEST}, but {folder} does not; name a folder in RUN/front/"
        )
    data = read_json(manifest)
    if data.get("schema") != SCHEMA_VERSION:
        raise InputError(f"{manifest} has schema {data.get('schema')!r}, but this version reads {SCHEMA_VERSION}")
    missing = [key for key in _KINDS if key not in data]
    if missing:
        raise InputError(f"{manifest} is damaged: it has no {', '.join(missing)}")
    for key, kind in _KINDS.items():
        try:
            require_types(data[key], kind)
            if key == "uncompressed":
                require_types(data[key].get("n_params"), int)
            if key == "numbers" and data[key] is not None:
                FileNumbers.from_dict(data[key])
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{manifest} is damaged: {key}: {error}") from error
    return data
