"""The digits task trains to 98 %, repeats itself and keeps its splits apart."""

from __future__ import annotations

import pytest
import ray.cloudpickle as cloudpickle
import torch

from autocompress.errors import InputError
from autocompress.task import Inputs, Task, call_model, load_task
from autocompress.task_check import check_task
from autocompress.tasks import digits
from autocompress.tasks.digits import DigitsTask, NoisyDigitsTask, Recipe, load_splits, train_network, weights_path


def only(inputs: Inputs) -> torch.Tensor:
    """The tensor of a one-input task."""
    assert isinstance(inputs, tuple)
    (tensor,) = inputs
    return tensor


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return DigitsTask().build_model()


def test_the_trained_model_reaches_98_percent(model: torch.nn.Module) -> None:
    assert not model.training
    for split in ("selection", "test"):
        figures = DigitsTask().evaluate(lambda inputs: call_model(model, inputs), split)
        assert list(figures) == ["accuracy", "loss"]
        assert figures["accuracy"] >= 0.98
        assert figures["loss"] < 0.15


def test_accuracy_agrees_with_a_count_by_hand(model: torch.nn.Module) -> None:
    images, labels = load_splits()["test"]
    hits = 0
    with torch.no_grad():
        for image, label in zip(images, labels, strict=True):
            large = torch.nn.functional.interpolate(image[None, None], scale_factor=2, mode="nearest")
            hits += int(model((large - digits.MEAN) / digits.STD).argmax() == label)
    assert DigitsTask().evaluate(lambda inputs: call_model(model, inputs), "test")["accuracy"] == hits / len(labels)


def test_the_second_build_reads_the_cache(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "train_network", lambda recipe: pytest.fail("trained again"))
    again = DigitsTask().build_model()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_training_repeats_and_the_digest_follows_the_recipe() -> None:
    short = Recipe(widths=(8, 8), n_blocks=1, n_epochs=1)
    first, second = train_network(short).state_dict(), train_network(short).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert weights_path(short) != weights_path()


def test_splits_are_disjoint_balanced_and_complete() -> None:
    splits = load_splits()
    assert [len(splits[name][1]) for name in ("train", "selection", "test")] == [997, 400, 400]
    for name in ("selection", "test"):
        assert splits[name][1].bincount().tolist() == [40] * 10
    rows = [image.numpy().tobytes() for images, _ in splits.values() for image in images]
    assert len(set(rows)) == len(rows) == 1797


def test_train_batches_depend_on_the_seed_only() -> None:
    task = DigitsTask()

    def epoch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        batches = list(task.train_batches(seed))
        assert {len(labels) for _, labels in batches} == {64}
        return torch.cat([only(inputs) for inputs, _ in batches]), torch.cat([labels for _, labels in batches])

    (images, labels), (same_images, same_labels), (other, _) = epoch(3), epoch(3), epoch(4)
    assert torch.equal(images, same_images)
    assert torch.equal(labels, same_labels)
    assert not torch.equal(images, other)


def test_shifts_move_an_image_by_one_pixel_at_most() -> None:
    image = load_splits()["train"][0][0]
    around = torch.zeros(10, 10)
    around[1:9, 1:9] = image
    allowed = {around[i : i + 8, j : j + 8].numpy().tobytes() for i in range(3) for j in range(3)}
    shifted = digits._shifted(image.expand(200, 8, 8), torch.Generator().manual_seed(0))
    assert {one.contiguous().numpy().tobytes() for one in shifted} == allowed


def test_calibration_is_fixed_and_plain() -> None:
    batches = [only(inputs) for inputs in DigitsTask().calibration_batches()]
    assert [tuple(batch.shape) for batch in batches] == [(64, 1, 16, 16)] * 4
    expected = load_splits()["train"][0][:256]
    found = torch.cat(batches)[:, 0, ::2, ::2] * digits.STD + digits.MEAN
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_task_is_sound_and_light_to_pickle(model: torch.nn.Module) -> None:
    task: Task = load_task("digits")
    check_task(task)
    pickled = cloudpickle.dumps(task)
    assert len(pickled) < 1000
    assert torch.equal(only(cloudpickle.loads(pickled).example_inputs()), only(task.example_inputs()))


def test_unknown_split() -> None:
    with pytest.raises(InputError, match=r"must be one of \['selection', 'test', 'train'\], but got 'val'"):
        DigitsTask().evaluate(lambda inputs: torch.zeros(64, 10), "val")


def test_noise_is_fixed_where_it_is_judged_and_fresh_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoisyDigitsTask, "recipe", Recipe(widths=(8, 8), n_blocks=1, n_epochs=1, noise=0.3))
    task, clean = NoisyDigitsTask(), DigitsTask()
    model = task.build_model()
    seen: list[torch.Tensor] = []

    def predict(inputs: Inputs) -> torch.Tensor:
        seen.append(only(inputs))
        out: torch.Tensor = call_model(model, inputs)
        return out

    figures = [given.evaluate(predict, "test") for given in (task, task, clean)]
    n = len(seen) // 3
    noisy, again, plain = (torch.cat(seen[i * n : (i + 1) * n]) for i in range(3))
    assert figures[0] == figures[1] and torch.equal(noisy, again)
    assert float((noisy - plain)[:, :, ::2, ::2].std()) == pytest.approx(0.3 / digits.STD, rel=0.02)
    first, second = (only(next(iter(task.train_batches(seed)))[0]) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(only(next(iter(task.train_batches(0)))[0]), first)
    check_task(task)


@pytest.mark.slow
def test_the_network_that_was_trained_on_noise_leaves_room_for_a_trade() -> None:
    task = NoisyDigitsTask()
    model = task.build_model()
    assert 0.88 < task.evaluate(lambda inputs: call_model(model, inputs), "test")["accuracy"] < 0.97
