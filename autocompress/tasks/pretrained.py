"""Finds the folder of a Hugging Face model: given, in the cache, or downloaded; refuses pickles and remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.errors import InputError, MissingExtraError
from autocompress.files import read_json

_CONFIG, _WEIGHTS, _SHARDS = "config.json", "model.safetensors", "model.safetensors.index.json"
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
"""What is downloaded: no pickles, no code."""


def model_folder(name: str, trust_remote_code: bool) -> Path:
    """The folder that holds a model's config and safetensors.

    Args:
        name: a folder that `save_pretrained` wrote, or an id of the hub.
        trust_remote_code: whether a model may bring its own Python code.

    Raises:
        InputError: no such folder or id, weights that are pickled, or code that was not asked for.
        MissingExtraError: transformers is not installed.
    """
    folder = Path(name) if Path(name).is_dir() else _from_hub(name, trust_remote_code)
    if not (folder / _CONFIG).is_file():
        raise InputError(f"a model's folder must hold {_CONFIG}, as `save_pretrained` writes it, but {folder} has none")
    _refuse_code(folder, trust_remote_code)
    if not (folder / _WEIGHTS).is_file() and not (folder / _SHARDS).is_file():
        pickled = [file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        found = f"only pickled weights ({', '.join(pickled)}), which run code when they are read" if pickled else "none"
        raise InputError(
            f"a model's weights must be {_WEIGHTS}, but {folder} has {found}; where you trust it, write them anew: "
            "model.save_pretrained(folder, safe_serialization=True)"
        )
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The model's `config.json`.

    Raises:
        InputError: it is no JSON object.
    """
    return read_json(folder / _CONFIG, "model's config")


def _refuse_code(folder: Path, trust_remote_code: bool) -> None:
    for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        if trust_remote_code or not (folder / file).is_file():
            continue
        if read_json(folder / file, "model's config").get("auto_map"):
            raise InputError(
                f"a model must not bring its own Python code unless it is trusted, but {folder / file} names some "
                "(`auto_map`); read it, then allow it with --trust-remote-code"
            )


def _from_hub(name: str, trust_remote_code: bool) -> Path:
    try:
        from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
    except ImportError as error:
        raise MissingExtraError("`hf:` ids need transformers; run: pip install 'autocompress[hf]'") from error
    if name.startswith(("/", ".", "~")):
        raise InputError(f"the model's folder must be there, but there is no {name}")
    if isinstance(cached := _cached(try_to_load_from_cache, name), str) and _has_weights(Path(cached).parent):
        return Path(cached).parent
    patterns = [*_FILES, "*.py"] if trust_remote_code else _FILES
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the library raises its own, its client's and the system's errors
        cause = "the network is turned off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else type(error).__name__
        raise InputError(
            f"hf:{name} must be a folder here or a model of the hub, but it could not be fetched ({cause}); looked for "
            f"{_CONFIG} and {_WEIGHTS} in the cache {constants.HF_HUB_CACHE}"
            f"/models--{name.replace('/', '--')}; without a network, copy the model's folder here and name that"
        ) from error


def _cached(find: Any, name: str) -> Any:
    try:
        return find(name, _CONFIG)
    except ValueError as error:  # the library's HFValidationError
        raise InputError(f"hf:{name} must be a folder or an id like OWNER/NAME, but: {error}") from error


def _has_weights(folder: Path) -> bool:
    return (folder / _WEIGHTS).is_file() or (folder / _SHARDS).is_file()
