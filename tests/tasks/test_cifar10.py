"""The CIFAR-10 tasks give the published accuracies, balanced splits and repeatable batches."""

from __future__ import annotations

import builtins
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.cloudpickle as cloudpickle
import torch
import torch.nn.functional as F

from autocompress.errors import InputError, MissingDataError, MissingExtraError
from autocompress.task import Inputs, Task, call_model, load_task
from autocompress.task_check import check_task
from autocompress.tasks import cifar10
from autocompress.tasks.cifar10 import Cifar10Task, CifarResNet
from autocompress.tasks.data import CACHE_VARIABLE, DATA_VARIABLE

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def only(inputs: Inputs) -> torch.Tensor:
    """The tensor of a one-input task."""
    assert isinstance(inputs, tuple)
    (tensor,) = inputs
    return tensor


def published(architecture: str) -> None:
    """All 10,000 test images give the published count of hits; the two halves add up to it."""
    task = load_task(f"cifar10:{architecture}")
    model = task.build_model()
    labels = cifar10.load_images("test")[1]
    outputs: list[torch.Tensor] = []

    def predict(inputs: Inputs) -> torch.Tensor:
        outputs.append(call_model(model, inputs))
        return outputs[-1]

    figures = task.evaluate(predict, "test10000")
    logits = torch.cat(outputs)
    assert len(logits) == 10_000
    assert list(figures) == ["accuracy", "loss"]
    expected_hits = {"resnet20": 9173, "resnet56": 9339}[architecture]
    assert round(figures["accuracy"] * 10_000) == pytest.approx(expected_hits, abs=2)  # kernels differ between CPUs
    assert figures["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-5)
    hits = logits.argmax(1) == labels
    halves = [cifar10.split_indices(split) for split in ("selection", "test")]
    assert sum(int(hits[half].sum()) for half in halves) == round(figures["accuracy"] * 10_000)


@pytest.mark.data
def test_resnet20_has_the_published_accuracy() -> None:
    published("resnet20")


@pytest.mark.data
@pytest.mark.slow
def test_resnet56_has_the_published_accuracy() -> None:
    published("resnet56")


@pytest.mark.parametrize(("n_blocks", "n_parameters"), [(3, 269_722), (9, 853_018)])
def test_parameter_counts_are_the_published_ones(n_blocks: int, n_parameters: int) -> None:
    assert sum(parameter.numel() for parameter in CifarResNet(n_blocks).parameters()) == n_parameters


@pytest.mark.data
def test_the_task_is_sound_and_light_to_pickle() -> None:
    task: Task = load_task("cifar10:resnet20")
    check_task(task)
    pickled = cloudpickle.dumps(task)
    assert len(pickled) < 1000
    assert cloudpickle.loads(pickled) == task


@pytest.mark.data
def test_evaluate_sees_the_split_it_is_asked_for() -> None:
    images, _ = cifar10.load_images("test")
    seen: list[torch.Tensor] = []

    def predict(inputs: Inputs) -> torch.Tensor:
        seen.append(only(inputs))
        return torch.zeros(len(seen[-1]), 10)

    chance = cifar10.resnet20().evaluate(predict, "selection")
    expected = (images[cifar10.split_indices("selection")].numpy() / 255 - MEAN) / STD
    np.testing.assert_allclose(torch.cat(seen).permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    assert chance["loss"] == pytest.approx(np.log(10), abs=1e-5)
    assert chance["accuracy"] == 0.1


@pytest.mark.data
def test_halves_are_disjoint_balanced_and_complete() -> None:
    labels = cifar10.load_images("test")[1]
    selection, test = (cifar10.split_indices(split) for split in ("selection", "test"))
    assert labels[selection].bincount().tolist() == [500] * 10
    assert labels[test].bincount().tolist() == [500] * 10
    assert sorted([*selection.tolist(), *test.tolist()]) == list(range(10_000))


@pytest.mark.data
def test_halves_do_not_depend_on_the_order_of_the_files() -> None:
    images, labels = cifar10.load_images("test")
    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(1))
    shuffled = cifar10._halves(images[order], labels[order])
    for split in ("selection", "test"):
        assert sorted(order[shuffled[split]].tolist()) == cifar10.split_indices(split).tolist()


@pytest.mark.data
def test_train_batches_repeat_cover_and_are_fast() -> None:
    task = cifar10.resnet20()

    def labels_and_first(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        batches = iter(task.train_batches(seed))
        inputs, labels = next(batches)
        return torch.cat([labels, *(batch_labels for _, batch_labels in batches)]), only(inputs)

    start = time.perf_counter()
    labels, first = labels_and_first(5)
    seconds = time.perf_counter() - start
    same_labels, same_first = labels_and_first(5)
    other_labels, _ = labels_and_first(6)
    assert torch.equal(labels, same_labels)
    assert torch.equal(first, same_first)
    assert not torch.equal(labels, other_labels)
    assert first.shape == (128, 3, 32, 32)
    assert len(labels) == 49_920
    assert labels.bincount().max() <= 5000  # without replacement
    assert 49_920 / seconds > 5000


@pytest.mark.data
def test_calibration_is_fixed_and_plain() -> None:
    batches = [only(inputs) for inputs in cifar10.resnet20().calibration_batches()]
    assert [tuple(batch.shape) for batch in batches] == [(64, 3, 32, 32)] * 8
    pixels = torch.cat(batches).permute(0, 2, 3, 1).numpy() * STD + MEAN
    train = {image.numpy().tobytes() for image in cifar10.load_images("train")[0]}
    assert all(image.tobytes() in train for image in (pixels * 255).round().astype(np.uint8))


def test_augmentation_crops_and_mirrors() -> None:
    """Each result is one of the 9 x 9 crops of the padded image, mirrored or not; both kinds occur."""
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (32, 32, 3), dtype=np.uint8)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    crops = [padded[i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
    plain, mirrored = {crop.tobytes() for crop in crops}, {crop[:, ::-1].tobytes() for crop in crops}
    batch = torch.from_numpy(image).expand(3000, 32, 32, 3)
    found = [one.numpy().tobytes() for one in cifar10._augmented(batch, torch.Generator().manual_seed(0))]
    assert set(found) == plain | mirrored
    assert 1400 < sum(one in plain for one in found) < 1600


# ------------------------------------------------------------------------------------------------------ missing data


def test_missing_weights_say_where_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(
        MissingDataError, match="no .*cifar10_resnet/resnet20.pt; set AUTOCOMPRESS_DATA .*akamaster"
    ) as caught:
        check_task(cifar10.resnet20())
    assert "\n" not in str(caught.value)


def test_missing_images_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(
        MissingDataError, match="must be in .*cifar10, but is not there; set AUTOCOMPRESS_DATA"
    ) as caught:
        next(iter(cifar10.resnet20().train_batches(0)))
    assert "\n" not in str(caught.value)


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, cifar10_class: object) -> None:
    datasets = types.ModuleType("torchvision.datasets")
    vars(datasets)["CIFAR10"] = cifar10_class
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


def test_torchvision_downloads_when_nothing_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Downloaded:
        def __init__(self, root: str, *, train: bool, download: bool) -> None:
            assert Path(root) == tmp_path / "cifar10-torchvision"
            assert download
            self.data = np.full((3 if train else 2, 32, 32, 3), 7, np.uint8)
            self.targets = [4, 5, 6][: len(self.data)]

    fake_torchvision(monkeypatch, Downloaded)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    images, labels = cifar10.load_images("train")
    assert images.shape == (3, 32, 32, 3)
    assert labels.tolist() == [4, 5, 6]
    assert len(cifar10.load_images("test")[1]) == 2


def test_a_failed_download_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    fake_torchvision(monkeypatch, offline)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(MissingDataError, match=r"download to .* failed \(no route to host\); set AUTOCOMPRESS_DATA"):
        cifar10.load_images("test")


def write_sheet(folder: Path, sha256: str) -> np.ndarray:
    """One sheet of 2,000 "test" images, whose pixels the caller can compare."""
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8)
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in images.reshape(50, 40, 32, 32, 3)])
    folder.mkdir()
    Image.fromarray(sheet).save(folder / "test_00.webp", lossless=True, quality=0, method=0)
    np.savez(folder / "labels.npz", y_test=np.arange(2000) % 10)
    (folder / "info.json").write_text(json.dumps({"sha256_x_test": sha256}))
    return images


def test_sheets_are_cut_row_by_row_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    images = write_sheet(tmp_path / "cifar10", "0000")
    with pytest.raises(MissingDataError, match="must have SHA-256 0000, but have .*; copy them again") as caught:
        cifar10.load_images("test")
    digest = str(caught.value).split("but have ")[1].split(";")[0]
    (tmp_path / "cifar10" / "info.json").write_text(json.dumps({"sha256_x_test": digest}))
    found, labels = cifar10.load_images("test")
    assert np.array_equal(found.numpy(), images)
    assert labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    (tmp_path / "cifar10" / "test_00.webp").unlink()
    cifar10._load_sheets.cache_clear()
    with pytest.raises(MissingDataError, match="must be complete, but there is no .*test_00.webp"):
        cifar10.load_images("test")


def test_sheets_without_pillow_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar10").mkdir()
    np.savez(tmp_path / "cifar10" / "labels.npz", y_test=np.arange(10))
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    real_import = builtins.__import__

    def without_pillow(name: str, *args: Any) -> types.ModuleType:
        if name == "PIL":
            raise ImportError("No module named 'PIL'")
        return real_import(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(MissingExtraError, match=r"pip install 'autocompress\[vision\]'"):
        cifar10.load_images("test")


def test_unknown_names() -> None:
    with pytest.raises(InputError, match=r"must be one of \['resnet20', 'resnet56'\], but got 'resnet18'"):
        Cifar10Task("resnet18")
    with pytest.raises(InputError, match="must be one of selection, test, test10000, but got 'train'"):
        cifar10.resnet20().evaluate(lambda inputs: torch.zeros(250, 10), "train")
