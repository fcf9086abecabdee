"""The tasks "cifar10:resnet20" and "cifar10:resnet56": CIFAR-10 and published weights of the standard ResNets."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import InputError, MissingDataError, MissingExtraError
from autocompress.metrics import accuracy
from autocompress.task import Batch, Inputs, Predict, first_samples, predict_all
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


SPLITS = ("selection", "test", "test10000")
N_BLOCKS = {"resnet20": 3, "resnet56": 9}  # residual blocks in each of three stages
BATCH_SIZE, EVALUATION_BATCH_SIZE, CALIBRATION_BATCH_SIZE = 128, 250, 64
N_CALIBRATION = 512
CALIBRATION_SEED = 0
CROP_PADDING = 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the published weights were trained with


class PaddedShortcut(nn.Module):
    """He et al.'s option A, without weights: every second pixel, and zeros for the channels that are new."""

    def __init__(self, n_new: int) -> None:
        super().__init__()
        self.n_before = n_new // 2
        self.n_after = n_new - self.n_before

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, c, h, w) to (n, c + n_new, h / 2, w / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.n_before, self.n_after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        narrower = n_in != n_out
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=2 if narrower else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = PaddedShortcut(n_out - n_in) if narrower else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Halves the image where the channels double."""
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """The CIFAR ResNet of He et al. (2016), section 4.2: 6 n_blocks + 2 layers, (n, 3, 32, 32) -> (n, 10)."""

    def __init__(self, n_blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, n_blocks)
        self.layer2 = _stage(16, 32, n_blocks)
        self.layer3 = _stage(32, 64, n_blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the ten classes."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def _stage(n_in: int, n_out: int, n_blocks: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(n_in, n_out), *(BasicBlock(n_out, n_out) for _ in range(n_blocks - 1)))


@dataclass(frozen=True)
class Cifar10Task:
    """CIFAR-10 with a published ResNet; accuracy first, then the mean cross-entropy.

    The published weights remember all 50,000 training images, so the splits come from the 10,000 test images: 5,000 for
    "selection", 5,000 for "test", and "test10000" for tables that must compare with papers. Holds names only;
    images and weights are read where the task is used.

    Attributes:
        architecture: "resnet20" or "resnet56".

    Raises:
        InputError: another architecture.
    """

    architecture: str

    def __post_init__(self) -> None:
        if self.architecture not in N_BLOCKS:
            raise InputError(f"`architecture` must be one of {sorted(N_BLOCKS)}, but got {self.architecture!r}")

    @property
    def name(self) -> str:
        """The spec that names this task."""
        return f"cifar10:{self.architecture}"

    def build_model(self) -> nn.Module:
        """The network with its published weights in fp32.

        Raises:
            MissingDataError: the data folder has no such weights.
        """
        path = data_folder() / "cifar10_resnet" / f"{self.architecture}.pt"
        if not path.is_file():
            raise MissingDataError(
                f"{self.name} needs its published weights, but there is no {path}; set {DATA_VARIABLE} to the folder "
                "that holds cifar10_resnet/, or save there the state dict, its keys without 'module.', of the "
                "checkpoint in github.com/akamaster/pytorch_resnet_cifar10 (pretrained_models)"
            )
        weights = torch.load(path, map_location="cpu", weights_only=True)
        model = CifarResNet(N_BLOCKS[self.architecture])
        model.load_state_dict(weights)  # copies into fp32 parameters, whatever the file's precision
        return model.eval()

    def example_inputs(self) -> Inputs:
        """One image's worth of zeros, (1, 3, 32, 32): needs no data."""
        return (torch.zeros(1, 3, 32, 32),)

    def train_batches(self, seed: int) -> Iterator[Batch]:
        """One epoch of 390 batches of 128, without replacement, randomly cropped (padding 4) and flipped."""
        images, labels = load_images("train")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(labels), generator=generator)
        for members in order[: len(order) - len(order) % BATCH_SIZE].split(BATCH_SIZE):
            yield _to_inputs(_augmented(images[members], generator)), labels[members]

    def calibration_batches(self) -> Iterator[Inputs]:
        """512 fixed training images, not augmented, in batches of 64."""
        images, _ = load_images("train")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(CALIBRATION_SEED))
        return (_to_inputs(images[members]) for members in order[:N_CALIBRATION].split(CALIBRATION_BATCH_SIZE))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(outputs, batch[1])

    def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        """Accuracy in [0, 1] and mean cross-entropy, in batches of 250.

        Raises:
            InputError: the split is not one of "selection", "test", "test10000".
        """
        return self.evaluate_subset(predict, split, None)

    def evaluate_subset(self, predict: Predict, split: str, n_samples: int | None) -> dict[str, float]:
        """As `evaluate`, on about this number of images; None takes all."""
        if split not in SPLITS:
            raise InputError(f"`split` must be one of {', '.join(SPLITS)}, but got {split!r}")
        images, labels = load_images("test")
        parts = split_indices(split).split(EVALUATION_BATCH_SIZE)
        batches = ((_to_inputs(images[members]), labels[members]) for members in parts)
        outputs, targets = predict_all(predict, first_samples(batches, n_samples))
        return {"accuracy": accuracy(outputs, targets), "loss": F.cross_entropy(outputs, targets).item()}


def _to_inputs(images: Tensor) -> tuple[Tensor, ...]:
    """Normalises uint8 (n, 32, 32, 3) to float (n, 3, 32, 32)."""
    scale, shift = torch.tensor(STD) * 255, torch.tensor(MEAN) / torch.tensor(STD)
    return ((images.float() / scale - shift).permute(0, 3, 1, 2).contiguous(),)


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pads with black by 4 pixels, crops at random, and mirrors half of the images; uint8 (n, 32, 32, 3)."""
    n, side = images.shape[:2]
    padded = F.pad(images, (0, 0, CROP_PADDING, CROP_PADDING, CROP_PADDING, CROP_PADDING))
    top, left = torch.randint(0, 2 * CROP_PADDING + 1, (2, n, 1), generator=generator)
    mirrored = torch.rand((n, 1), generator=generator) < 0.5
    columns = torch.arange(side)
    rows, columns = top + columns, left + torch.where(mirrored, columns.flip(0), columns)
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def resnet20() -> Cifar10Task:
    """The task of "cifar10:resnet20": 91.73 % of the 10,000 test images."""
    return Cifar10Task("resnet20")


def resnet56() -> Cifar10Task:
    """The task of "cifar10:resnet56": 93.39 % of the 10,000 test images."""
    return Cifar10Task("resnet56")
