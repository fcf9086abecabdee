"""What an id gives: a model that returns one tensor, the classes it knows, and its own preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.tasks.samples import Content, few


@dataclass(frozen=True)
class Kind:
    """What a model does, and what follows from it.

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
