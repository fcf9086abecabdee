"""CIFAR-10 as uint8 tensors: read from lossless image sheets or downloaded by torchvision, and cut into splits."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import MissingDataError, MissingExtraError
from autocompress.tasks.data import DATA_VARIABLE, cache_folder, data_folder

SPLIT_SEED = 0
SHEET_ROWS, SHEET_COLUMNS, SIDE = 50, 40, 32


def load_images(part: str) -> tuple[Tensor, Tensor]:
    """The images (n, 32, 32, 3) uint8 RGB and labels (n,) int64 of "train" (50,000) or "test" (10,000).

    Looks in `cifar10/` of the data folder, then for torchvision, which downloads. Kept once per process: read only.

    Raises:
        MissingDataError: neither is there, or the images are damaged.
        MissingExtraError: the image sheets are there, but Pillow is not.
    """
    sheets = data_folder() / "cifar10"
    if (sheets / "labels.npz").is_file():
        return _load_sheets(sheets, part)
    return _load_torchvision(cache_folder() / "cifar10-torchvision", part, sheets)


@functools.lru_cache(maxsize=2)
def _load_sheets(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Reads sheets of 50 x 40 images, and checks the pixels against the SHA-256 in `info.json`."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(
            "CIFAR-10's image sheets need Pillow; run: pip install 'autocompress[vision]'"
        ) from error
    with np.load(folder / "labels.npz", allow_pickle=False) as archive:
        labels = archive[f"y_{part}"].astype(np.int64)
    per_sheet = SHEET_ROWS * SHEET_COLUMNS
    images = np.empty((len(labels), SIDE, SIDE, 3), np.uint8)
    for start in range(0, len(labels), per_sheet):
        path = folder / f"{part}_{start // per_sheet:02d}.webp"
        if not path.is_file():
            raise MissingDataError(
                f"CIFAR-10's {part} images must be complete, but there is no {path}; copy the folder again"
            )
        with Image.open(path) as sheet:
            tiles = np.asarray(sheet.convert("RGB")).reshape(SHEET_ROWS, SIDE, SHEET_COLUMNS, SIDE, 3)
        images[start : start + per_sheet] = tiles.swapaxes(1, 2).reshape(per_sheet, SIDE, SIDE, 3)
    expected = json.loads((folder / "info.json").read_text())[f"sha256_x_{part}"]
    found = hashlib.sha256(images.data).hexdigest()
    if found != expected:
        raise MissingDataError(
            f"CIFAR-10's {part} images in {folder} must have SHA-256 {expected}, but have {found}; copy them again"
        )
    return torch.from_numpy(images), torch.from_numpy(labels)


@functools.lru_cache(maxsize=2)
def _load_torchvision(folder: Path, part: str, sheets: Path) -> tuple[Tensor, Tensor]:
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as error:
        raise MissingDataError(
            f"CIFAR-10 must be in {sheets}, but is not there; set {DATA_VARIABLE} to the folder that holds cifar10/, "
            "or run: pip install 'autocompress[vision]' (torchvision then downloads it)"
        ) from error
    try:
        dataset: Any = CIFAR10(str(folder), train=part == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise MissingDataError(
            f"CIFAR-10 is not in {sheets}, and its download to {folder} failed ({error}); set {DATA_VARIABLE} to the "
            "folder that holds cifar10/, or try again with a network"
        ) from error
    return torch.from_numpy(dataset.data), torch.tensor(dataset.targets)


@functools.lru_cache(maxsize=2)
def _halves(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Indices of "selection" and "test": each class's images in the order of their salted digests, cut in the middle.

    The order of the files does not matter: every source of CIFAR-10 is cut alike, and equal images stay together.
    """
    salt = SPLIT_SEED.to_bytes(8, "little")
    digests = [hashlib.blake2b(image.tobytes(), digest_size=8, salt=salt).digest() for image in images.numpy()]
    rank = torch.empty(len(digests), dtype=torch.long)
    rank[sorted(range(len(digests)), key=digests.__getitem__)] = torch.arange(len(digests))
    halves: dict[str, list[Tensor]] = {"selection": [], "test": []}
    for label in range(10):
        members = torch.nonzero(labels == label).flatten()
        members = members[rank[members].argsort()]
        halves["selection"].append(members[: len(members) // 2])
        halves["test"].append(members[len(members) // 2 :])
    return {name: torch.cat(parts).sort().values for name, parts in halves.items()}


def split_indices(split: str) -> Tensor:
    """Indices into the 10,000 test images: "selection" and "test" are 5,000 each, disjoint; "test10000" is all of them.

    Raises:
        KeyError: another split.
    """
    if split == "test10000":
        return torch.arange(len(load_images("test")[1]))
    return _halves(*load_images("test"))[split]
