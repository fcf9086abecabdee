"""A model by id: its folder (no pickles, no untrusted code), its classes, its preprocessing and its one output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from autocompress.errors import InputError, MissingExtraError
from autocompress.files import read_json
from autocompress.tasks.samples import Content, few

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


@dataclass(frozen=True)
class Kind:
    """The kind of a model (classifier, regressor, ...) and its properties.

    Attributes:
        name: one of `autocompress.tasks.identifiers.KINDS`.
        reads: "text" or "image".
        metric: with labels, see `autocompress.tasks.scoring`.
        teacher_loss: how a student is taught by its teacher's outputs.
        likeness: without labels: "agreement" of classes, "cosine" of embeddings, "spearman_to_teacher" of values.
    """

    name: str
    reads: str
    metric: str | None
    teacher_loss: str
    likeness: str


CLASSIFIED = {"metric": "accuracy", "teacher_loss": "kl", "likeness": "agreement"}
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("text-classification", "text", **CLASSIFIED),
        Kind("image-classification", "image", **CLASSIFIED),
        Kind("text-regression", "text", "spearman", "mse", "spearman_to_teacher"),
        Kind("causal-lm", "text", None, "kl", "perplexity"),
        Kind("sentence-embedding", "text", None, "cosine", "cosine"),
    )
}


class ModelSource(Protocol):
    """A model by id, opened."""

    @property
    def kind(self) -> Kind:
        """What it does."""

    @property
    def classes(self) -> Mapping[str, int]:
        """Class name -> its index; empty where there are none."""

    @property
    def n_outputs(self) -> int:
        """How many classes or values each output has."""

    @property
    def title(self) -> str:
        """Of the architecture, for a reader."""

    def build(self) -> nn.Module:
        """The trained model in eval mode and float32; it returns one tensor."""

    def fit(self, contents: Sequence[Content]) -> str | None:
        """Chooses shapes that suit these samples; returns what was chosen, for a reader."""

    def example_inputs(self) -> dict[str, Tensor] | tuple[Tensor, ...]:
        """Inputs of one sample; needs no data."""

    def encode(self, contents: Sequence[Content]) -> dict[str, Tensor] | tuple[Tensor, ...]:
        """Samples as the model's inputs, the first dimension counts them."""

    def unreadable(self, contents: Sequence[Content]) -> dict[int, str]:
        """Places of the samples that cannot be read, each with its name and the reason."""


def class_indices(labels: Sequence[Any], source: ModelSource, data: str) -> list[int]:
    """Labels as the model's class indices: numbers as they are, names by the model's own.

    Raises:
        InputError: labels outside the model's classes, or names that the model does not know.
    """
    values = {_plain(label) for label in labels}
    if all(isinstance(value, int) for value in values):
        outside = sorted(value for value in values if not 0 <= value < source.n_outputs)
        if outside:
            raise InputError(
                f"labels must be within the model's {source.n_outputs} classes (0 to {source.n_outputs - 1}), "
                f"but {data} has {few(outside)}"
            )
        return [_plain(label) for label in labels]
    exact = {str(value): source.classes.get(str(value)) for value in values}
    lower = {name.lower(): index for name, index in source.classes.items()}
    found = {name: index if index is not None else lower.get(name.lower()) for name, index in exact.items()}
    if all(index is None for index in found.values()) and len(found) == source.n_outputs and _are_nameless(source):
        raise InputError(
            f"{data} names its classes ({few(sorted(found))}), but the model's config does not: write numbers, or set "
            "`id2label` and `label2id` in the model's config.json"
        )
    unknown = sorted(name for name, index in found.items() if index is None)
    if unknown:
        raise InputError(f"labels must be classes of the model ({few(source.classes)}), but {data} has {few(unknown)}")
    return [int(found[str(_plain(label))] or 0) for label in labels]


def class_order(names: Sequence[str], source: ModelSource, data: str) -> list[int]:
    """As `class_indices`, of folder names: as many as the classes, none of them known, stand in sorted order.

    That is what torchvision's `ImageFolder` does, with which most such models were trained.
    """
    known = {name.lower() for name in source.classes}
    distinct = sorted(set(names))
    if len(distinct) == source.n_outputs and not any(name.lower() in known for name in distinct):
        order = {name: index for index, name in enumerate(distinct)}
        return [order[name] for name in names]
    numbers = [int(name) if name.isdecimal() else name for name in names]
    return class_indices(numbers if all(isinstance(n, int) for n in numbers) else names, source, data)


def _are_nameless(source: ModelSource) -> bool:
    return all(name.upper().startswith("LABEL_") for name in source.classes)


def _plain(label: Any) -> Any:
    """A label as int where it is one, also as the float or the text that a table made of it; else as text."""
    if isinstance(label, str):
        text = label.strip()
        return int(text) if text.removeprefix("-").isdecimal() else text
    if hasattr(label, "item"):
        label = label.item()
    return int(label) if isinstance(label, bool | int) or float(label).is_integer() else str(label)
