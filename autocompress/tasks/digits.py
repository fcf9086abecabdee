"""The tasks "digits" and "digits:noisy": a small CNN on scikit-learn's 8x8 digits, trained on first use and cached."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.metrics import accuracy
from autocompress.task import Batch, Inputs, Predict, predict_all
from autocompress.tasks.data import cache_folder


@dataclass(frozen=True)
class Recipe:
    """All that decides the trained weights; its digest names the cached file."""

    widths: tuple[int, int] = (32, 64)
    n_blocks: int = 2
    n_epochs: int = 12
    batch_size: int = 32
    max_lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.05
    seed: int = 0
    noise: float = 0.0

    @property
    def digest(self) -> str:
        """12 hex digits of the SHA-256 of the values."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


RECIPE = Recipe()
NOISY_RECIPE = Recipe(noise=0.3)
SPLIT_SEED = 0
N_HELD_OUT_PER_CLASS = 40
BATCH_SIZE = 64
N_CALIBRATION = 256
MAX_SHIFT = 1  # pixels of the 8x8 image
MEAN, STD = 0.306, 0.376  # of the training pixels, scaled to [0, 1]


class ResidualBlock(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))) at constant width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, width, h, w) to the same shape."""
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + x)


class DigitsNet(nn.Module):
    """Two stages of residual blocks, (n, 1, 16, 16) -> (n, 10)."""

    def __init__(self, widths: tuple[int, int] = (32, 64), n_blocks: int = 2) -> None:
        super().__init__()
        narrow, wide = widths
        self.conv1 = nn.Conv2d(1, narrow, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.stage1 = nn.Sequential(*(ResidualBlock(narrow) for _ in range(n_blocks)))
        self.conv2 = nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.stage2 = nn.Sequential(*(ResidualBlock(wide) for _ in range(n_blocks)))
        self.linear = nn.Linear(wide, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the ten digits."""
        x = self.stage1(F.relu(self.bn1(self.conv1(x))))
        x = self.stage2(F.relu(self.bn2(self.conv2(x))))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=1)
def load_splits() -> dict[str, tuple[Tensor, Tensor]]:
    """Images (n, 8, 8) in [0, 1] and labels (n,) of "train", "selection" and "test", disjoint and class-balanced."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = torch.from_numpy(bunch.images).float() / 16, torch.from_numpy(bunch.target).long()
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    parts: dict[str, list[Tensor]] = {"train": [], "selection": [], "test": []}
    for digit in range(10):
        members = torch.nonzero(labels == digit).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        parts["selection"].append(members[:N_HELD_OUT_PER_CLASS])
        parts["test"].append(members[N_HELD_OUT_PER_CLASS : 2 * N_HELD_OUT_PER_CLASS])
        parts["train"].append(members[2 * N_HELD_OUT_PER_CLASS :])
    order = {name: torch.cat(members) for name, members in parts.items()}
    order = {name: members[torch.randperm(len(members), generator=generator)] for name, members in order.items()}
    return {name: (images[members], labels[members]) for name, members in order.items()}


def _to_inputs(images: Tensor) -> tuple[Tensor]:
    """Normalises and doubles each side, so that convolutions, not overhead, take the time: (n, 1, 16, 16)."""
    doubled = images.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    return (((doubled - MEAN) / STD).unsqueeze(1),)


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves each image by up to one pixel each way, with empty pixels at the border."""
    n, side, _ = images.shape
    padded = F.pad(images, (MAX_SHIFT,) * 4)
    top, left = torch.randint(0, 2 * MAX_SHIFT + 1, (2, n, 1), generator=generator) + torch.arange(side)
    return padded[torch.arange(n)[:, None, None], top[:, :, None], left[:, None, :]]


def _noisy(images: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """With normal noise of that standard deviation on each pixel."""
    return images + noise * torch.randn(images.shape, generator=generator) if noise else images


class DigitsTask:
    """The digits with a CNN that reaches about 99 % of the test split; accuracy first, then the mean cross-entropy."""

    name = "digits"
    recipe = RECIPE

    def build_model(self) -> nn.Module:
        """The trained network; trains for some seconds when the cache has none."""
        path = weights_path(self.recipe)
        if not path.is_file():
            _save_atomically(train_network(self.recipe), path)
        model = DigitsNet(self.recipe.widths, self.recipe.n_blocks)
        model.load_state_dict(load_file(path))
        return model.eval()

    def example_inputs(self) -> Inputs:
        """One training image, (1, 1, 16, 16)."""
        return _to_inputs(self._images("train")[:1])

    def train_batches(self, seed: int) -> Iterator[Batch]:
        """One epoch of shuffled, shifted batches of 64."""
        return _train_batches(seed, BATCH_SIZE, self.recipe.noise)

    def calibration_batches(self) -> Iterator[Inputs]:
        """The first 256 training images, unshifted, in batches of 64."""
        return map(_to_inputs, self._images("train")[:N_CALIBRATION].split(BATCH_SIZE))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(outputs, batch[1])

    def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        """Accuracy in [0, 1] and mean cross-entropy on "train", "selection" or "test".

        Raises:
            InputError: another split.
        """
        splits = load_splits()
        if split not in splits:
            raise InputError(f"`split` must be one of {sorted(splits)}, but got {split!r}")
        images, labels = self._images(split), splits[split][1]
        batches = zip(map(_to_inputs, images.split(BATCH_SIZE)), labels.split(BATCH_SIZE), strict=True)
        outputs, targets = predict_all(predict, batches)
        return {"accuracy": accuracy(outputs, targets), "loss": F.cross_entropy(outputs, targets).item()}

    def _images(self, split: str) -> Tensor:
        """Of a split, with noise that is always the same."""
        splits = load_splits()
        generator = torch.Generator().manual_seed(list(splits).index(split))
        return _noisy(splits[split][0], self.recipe.noise, generator)


class NoisyDigitsTask(DigitsTask):
    """The digits under noise, of which the CNN gets about 92 % right."""

    name = "digits:noisy"
    recipe = NOISY_RECIPE


def _train_batches(seed: int, batch_size: int, noise: float = 0.0) -> Iterator[tuple[tuple[Tensor], Tensor]]:
    images, labels = load_splits()["train"]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    for members in order[: len(order) - len(order) % batch_size].split(batch_size):
        yield _to_inputs(_noisy(_shifted(images[members], generator), noise, generator)), labels[members]


def train_network(recipe: Recipe = RECIPE) -> DigitsNet:
    """Trains from scratch by SGD with Nesterov momentum and the one-cycle schedule (Smith & Topin, 2019)."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        model = DigitsNet(recipe.widths, recipe.n_blocks)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.max_lr, momentum=recipe.momentum, nesterov=True, weight_decay=recipe.weight_decay
    )
    n_steps = recipe.n_epochs * (len(load_splits()["train"][1]) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.max_lr, total_steps=n_steps)
    for epoch in range(recipe.n_epochs):
        for (images,), labels in _train_batches(recipe.seed + epoch, recipe.batch_size, recipe.noise):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels, label_smoothing=recipe.label_smoothing).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def weights_path(recipe: Recipe = RECIPE) -> Path:
    """Where the weights of this recipe are cached."""
    return cache_folder() / "models" / f"digits-{recipe.digest}.safetensors"


def _save_atomically(model: nn.Module, path: Path) -> None:
    """Writes a temporary file and renames it, so that a second process never reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / path.name
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, draft)
        draft.replace(path)
