"""Cuts samples into train, selection and test by a fixed seed, so that no content is in two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import torch

from autocompress.errors import InputError
from autocompress.tasks.samples import Content

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
