"""Metrics of a model and of a file: the same split, the same numbers; a subset where the task can judge on one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress.errors import InputError
from autocompress.evaluation import evaluate, evaluate_model, evaluate_session
from autocompress.runtimes import runtime_named
from autocompress.task import Predict, SupervisedTask
from tests.shared.tasks import batches, images, tiny_task, trained_model


def accuracy_by_hand(model: nn.Module, seed: int) -> float:
    """On the images of which `tiny_task` makes a split."""
    x, labels = images(192, seed)
    with torch.no_grad():
        return float((model(x).argmax(1) == labels).float().mean())


@pytest.mark.parametrize(("split", "seed"), [("selection", 2), ("test", 3)])
def test_a_model_is_judged_on_the_split_that_was_asked_for(split: str, seed: int) -> None:
    model = trained_model().train()
    metrics = evaluate(model, tiny_task(), split)
    assert not model.training
    assert metrics["accuracy"] == pytest.approx(accuracy_by_hand(model, seed))
    assert evaluate_model(model, tiny_task(), split) == metrics


def test_a_file_is_judged_as_its_model_is(tmp_path: Path) -> None:
    task, model = tiny_task(), trained_model()
    file = runtime_named("onnxruntime").export(model, task.example_inputs(), tmp_path)
    metrics = evaluate(file, task)
    assert metrics["accuracy"] == evaluate(model, task)["accuracy"]
    assert metrics["loss"] == pytest.approx(evaluate(model, task)["loss"], rel=1e-4)
    again, n_samples = evaluate_session(runtime_named("onnxruntime").load(file, 1), task, "selection")
    assert n_samples == 192 and again["accuracy"] == pytest.approx(accuracy_by_hand(model, 2))


class WithSubset(SupervisedTask):
    """Judges on the first samples if asked to."""

    def evaluate_subset(self, predict: Predict, split: str, n_samples: int) -> dict[str, float]:
        outputs = predict((images(192, 2)[0][:n_samples],))
        assert split == "selection"
        return {"accuracy": float(len(outputs)), "loss": 0.0}


def test_a_subset_is_asked_for_where_the_task_has_one() -> None:
    task = WithSubset(trained_model(), batches(64, 1), batches(192, 2, 64), batches(64, 3))
    assert evaluate_model(task.build_model(), task, n_samples=10)["accuracy"] == 10
    assert evaluate_model(task.build_model(), task)["accuracy"] == pytest.approx(accuracy_by_hand(trained_model(), 2))


def test_the_lock_is_held_for_each_batch_and_not_in_between() -> None:
    held: list[int] = []

    @contextmanager
    def lock() -> Iterator[None]:
        held.append(1)
        yield

    evaluate_model(trained_model(), tiny_task(), lock=lock)
    assert len(held) == 3


def test_a_metric_that_is_no_number_is_refused() -> None:
    class Broken(SupervisedTask):
        def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
            return {"accuracy": float("nan")}

    with pytest.raises(InputError, match="finite"):
        evaluate_model(trained_model(), Broken(trained_model(), batches(64, 1), [], []))


def test_there_is_one_evaluation() -> None:
    assert not hasattr(ac, "evaluate") or ac.evaluate is evaluate


def test_an_evaluate_of_ones_own_is_not_passed_over_for_a_subset() -> None:
    class Own(SupervisedTask):
        def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
            return {"own": 1.0}

    batches = [(torch.rand(4, 3), torch.tensor([0, 1, 0, 1]))] * 3
    model = nn.Linear(3, 2).eval()
    assert evaluate_model(model, Own(model, batches, batches, batches), n_samples=4) == {"own": 1.0}
    assert "accuracy" in evaluate_model(model, SupervisedTask(model, batches, batches, batches), n_samples=4)
