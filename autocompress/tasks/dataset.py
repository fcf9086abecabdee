"""The samples of an id's task by split: read, cut, labelled as the model's classes, and encoded on first use."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.task import Inputs
from autocompress.tasks.identifiers import TaskId
from autocompress.tasks.model_source import ModelSource, class_indices, class_order
from autocompress.tasks.samples import IMAGES, Content, Samples, few, read_files, read_texts

SPLITS = ("train", "selection", "test")
SELECTION_SHARE, TEST_SHARE = 0.15, 0.15
_SEED = 0
_FILE_BYTES = 2**16


def content_key(content: Content) -> Hashable:
    """Equal for equal contents; files are known by their size and first 64 KiB."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            begin = file.read(_FILE_BYTES)
        return content.stat().st_size, hashlib.blake2b(begin, digest_size=16).digest()
    return content


def cut_splits(contents: Sequence[Content], given: Sequence[str | None]) -> dict[str, list[int]]:
    """Places of the samples of each split, in an order that the seed decides.

    Splits that the source names are taken. Missing ones are cut from training by a fixed seed; where only the test
    split is missing, the selection split is halved. Without a training split the selection split takes its place.
    Samples of the same content come into the same split; of given splits, what is in test leaves selection and
    training, and what is in selection leaves training.

    Args:
        contents: of the samples.
        given: name of each sample's split, or None.

    Raises:
        InputError: a split comes out empty.
    """
    order = torch.randperm(len(contents), generator=torch.Generator().manual_seed(_SEED)).tolist()
    groups: dict[Hashable, list[int]] = {}
    for place in order:
        groups.setdefault(content_key(contents[place]), []).append(place)
    pools: dict[str, list[list[int]]] = {split: [] for split in SPLITS}
    for members in groups.values():
        named = {given[place] for place in members}
        split = next((name for name in ("test", "selection") if name in named), "train")
        pools[split].append([place for place in members if (given[place] or "train") == split])
    _cut_missing_(pools)
    splits = {split: [place for members in groups for place in members] for split, groups in pools.items()}
    for split, places in splits.items():
        if not places:
            raise InputError(
                f"the data must give at least one sample for {split}, but {len(contents)} samples of {len(groups)} "
                f"different contents give none; more data is needed"
            )
    return splits


def _cut_missing_(pools: dict[str, list[list[int]]]) -> None:
    if not pools["train"]:  # what is there for selection is trained on first, then what is there for the test
        source = "selection" if pools["selection"] else "test"
        pools["train"], pools[source] = pools[source], []
    n_groups = len(pools["train"])
    if pools["selection"] and not pools["test"]:
        half = len(pools["selection"]) // 2
        pools["test"], pools["selection"] = pools["selection"][:half], pools["selection"][half:]
    shares = {"selection": SELECTION_SHARE, "test": TEST_SHARE}
    for split, share in shares.items():
        if not pools[split]:
            n_cut = max(1, round(share * n_groups)) if n_groups > 2 else 0
            pools[split], pools["train"] = pools["train"][:n_cut], pools["train"][n_cut:]


def describe_splits(splits: Mapping[str, Sequence[int]]) -> str:
    """Sizes in words."""
    return ", ".join(f"{len(places)} {split}" for split, places in splits.items())


UNLABELLED = -100
"""Stands for no class, as in PyTorch's losses."""
_MOST_KEPT_BYTES = 256 * 2**20


@dataclass
class Split:
    """The samples of one split.

    Attributes:
        source: encodes them.
        contents: one for each sample.
        labels: class indices or values, shape (n,); `UNLABELLED` (of values: NaN) where there is none.
    """

    source: ModelSource
    contents: list[Content]
    labels: Tensor
    _kept: dict[int, Inputs] = field(default_factory=dict)
    _n_bytes: int = 0

    def __len__(self) -> int:
        return len(self.contents)

    @property
    def labelled(self) -> Tensor:
        """Which samples have a label, shape (n,)."""
        return ~self.labels.isnan() if self.labels.is_floating_point() else self.labels != UNLABELLED

    def inputs(self, places: Sequence[int]) -> Inputs:
        """Encoded samples at these places; what fits into 256 MiB is kept for the next time."""
        missing = [place for place in places if place not in self._kept]
        fresh: dict[int, Inputs] = {}
        if missing:
            encoded = self.source.encode([self.contents[place] for place in missing])
            fresh = {place: _row(encoded, row) for row, place in enumerate(missing)}
            self._keep_(fresh)
        return _stacked([self._kept[place] if place in self._kept else fresh[place] for place in places])

    def _keep_(self, rows: dict[int, Inputs]) -> None:
        size = sum(tensor.numel() * tensor.element_size() for row in rows.values() for tensor in _tensors(row))
        if self._n_bytes + size <= _MOST_KEPT_BYTES:
            self._kept.update(rows)
            self._n_bytes += size


@dataclass(frozen=True)
class Dataset:
    """All splits, and what a reader should know of them.

    Attributes:
        splits: "train", "selection" and "test".
        notes: lines for a reader.
    """

    splits: dict[str, Split]
    notes: tuple[str, ...]


def read_dataset(task_id: TaskId, source: ModelSource) -> Dataset:
    """Reads, cuts and labels what a task's id names.

    Raises:
        InputError: neither data nor inputs are named, or they do not fit.
    """
    if task_id.data is None and task_id.inputs is None:
        raise InputError(
            f"{task_id.source}:{task_id.name} needs data: --data FILE_OR_FOLDER with labels, or "
            "--inputs FILE_OR_FOLDER without, which the uncompressed model labels"
        )
    notes: list[str] = []
    parts: list[tuple[str, Samples, bool]] = []
    for name, labelled in ((task_id.data, source.kind.metric is not None), (task_id.inputs, False)):
        if name is not None:
            samples = _read(task_id, source, name, labelled)
            samples = _readable(samples, source)
            parts.append((name, samples, labelled))
            if samples.skipped:
                notes.append(f"{name}: {len(samples.skipped)} skipped: {few(samples.skipped)}")
    found: dict[str, list[tuple[Content, float]]] = {"train": [], "selection": [], "test": []}
    known: set[object] = set()
    for name, samples, labelled in parts:
        samples = _unknown(samples, known)
        labels = _labels(samples, source, name) if labelled else [float("nan")] * len(samples)
        splits = cut_splits(samples.contents, samples.splits)
        limits = {"train": task_id.n_train, "selection": task_id.n_selection, "test": task_id.n_test}
        used = {split: places[: limits[split]] for split, places in splits.items()}
        known |= {content_key(content) for content in samples.contents}
        for split, places in used.items():
            found[split].extend((samples.contents[place], labels[place]) for place in places)
        kept = "" if labelled else ", labelled by the uncompressed model"
        notes.append(f"{name}: {describe_splits(used)} of {len(samples)} samples{kept}")
    chosen = source.fit([content for content, _ in found["train"]])
    notes += [chosen] if chosen else []
    return Dataset({split: _split(source, rows) for split, rows in found.items()}, tuple(notes))


def _read(task_id: TaskId, source: ModelSource, name: str, labelled: bool) -> Samples:
    if source.kind.reads == "text":
        return read_texts(name, task_id.text_column, task_id.label_column, labelled)
    return read_files(name, IMAGES, labelled)


def _readable(samples: Samples, source: ModelSource) -> Samples:
    unreadable = source.unreadable(samples.contents)
    return samples.without(unreadable) if unreadable else samples


def _unknown(samples: Samples, known: set[object]) -> Samples:
    """Without those whose content occurs among labelled samples already."""
    kept = [i for i, content in enumerate(samples.contents) if content_key(content) not in known] if known else None
    if kept is None or len(kept) == len(samples):
        return samples
    labels = None if samples.labels is None else tuple(samples.labels[i] for i in kept)
    return Samples(tuple(samples.contents[i] for i in kept), labels, tuple(samples.splits[i] for i in kept))


def _labels(samples: Samples, source: ModelSource, name: str) -> list[float]:
    labels = samples.labels or ()
    if source.kind.metric == "spearman":
        return _values(labels, name)
    if isinstance(samples.contents[0], Path):
        return [float(index) for index in class_order([str(label) for label in labels], source, name)]
    return [float(index) for index in class_indices(labels, source, name)]


def _values(labels: Sequence[object], name: str) -> list[float]:
    try:
        return [float(str(label)) for label in labels]
    except ValueError as error:
        raise InputError(f"the labels of a regression must be numbers, but {name} has others: {error}") from error


def _split(source: ModelSource, rows: Sequence[tuple[Content, float]]) -> Split:
    labels = torch.tensor([label for _, label in rows])
    if source.kind.metric != "spearman":
        labels = labels.nan_to_num(nan=UNLABELLED).long()
    return Split(source, [content for content, _ in rows], labels)


def _tensors(inputs: Inputs) -> Sequence[Tensor]:
    return list(inputs.values()) if isinstance(inputs, dict) else inputs


def _row(inputs: Inputs, row: int) -> Inputs:
    if isinstance(inputs, dict):
        return {name: tensor[row].clone() for name, tensor in inputs.items()}
    return tuple(tensor[row].clone() for tensor in inputs)


def _stacked(rows: Sequence[Inputs]) -> Inputs:
    first = rows[0]
    if isinstance(first, dict):
        return {name: torch.stack([row[name] for row in rows]) for name in first}  # type: ignore[call-overload]
    return tuple(torch.stack(list(tensors)) for tensors in zip(*rows, strict=True))
