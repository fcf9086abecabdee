"""What is wrong with a task's judging is known before a search, and named with the line that raised."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.execution import judging_check
from autocompress.execution.judging_check import check_share, judge_splits
from autocompress.task import Batch, Inputs, SupervisedTask
from autocompress.task_check import check_metrics, check_task
from tests.shared.tasks import batches, images, tiny_task, trained_model


def judged(evaluate: Callable[..., Any], **attributes: Any) -> tuple[dict[str, float], list[str]]:
    """Of the tiny task with another `evaluate`."""
    task = tiny_task()
    task.evaluate = evaluate  # type: ignore[method-assign]
    for name, value in attributes.items():
        setattr(task, name, value)
    metrics, _, notes = judge_splits(trained_model(), task)
    return metrics, notes


def raises(predict: Any, split: str) -> dict[str, float]:
    raise KeyError("labels")


def raises_on_test(predict: Any, split: str) -> dict[str, float]:
    if split == "test":
        raise FileNotFoundError("test.csv")
    return {"accuracy": 0.5}


def nan_on_test(predict: Any, split: str) -> dict[str, float]:
    return {"accuracy": float("nan") if split == "test" else 0.5}


def other_names_on_test(predict: Any, split: str) -> dict[str, float]:
    return {"test_accuracy" if split == "test" else "accuracy": 0.5}


def no_split(predict: Any) -> dict[str, float]:
    return {"accuracy": 0.5}


def wrong_shapes(predict: Any, split: str) -> dict[str, float]:
    predict((torch.zeros(1, 3, 5, 5),))
    return {"accuracy": 0.5}


def exits(predict: Any, split: str) -> dict[str, float]:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (raises, "KeyError was raised at .*labels"),
        (raises_on_test, r"evaluate\(predict, 'test'\).*FileNotFoundError"),
        (nan_on_test, "'test'.*finite numbers, but 'accuracy' is nan"),
        (other_names_on_test, "'test'.*'accuracy' is missing"),
        (no_split, "TypeError"),
        (wrong_shapes, "RuntimeError"),
        (exits, "SystemExit"),
        (lambda predict, split: 0.5, "dict of figures"),
        (lambda predict, split: None, "dict of figures"),
        (lambda predict, split: {}, "dict of figures"),
        (lambda predict, split: {0: 0.5}, "name its figures by texts"),
        (lambda predict, split: {"accuracy": "0.5"}, "finite numbers"),
        (lambda predict, split: {"accuracy": None}, "finite numbers"),
        (lambda predict, split: {"accuracy": torch.zeros(2)}, "finite numbers"),
        (lambda predict, split: {"accuracy": float("inf")}, "finite numbers"),
    ],
)
def test_a_mistake_in_evaluate_is_one_error(evaluate: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        judged(evaluate)


def test_further_splits_are_tried_too() -> None:
    def evaluate(predict: Any, split: str) -> dict[str, float]:
        if split == "shifted":
            raise ValueError("no such split")
        return {"accuracy": 0.5}

    with pytest.raises(InputError, match="'shifted'.*no such split"):
        judged(evaluate, further_splits=("shifted",))


def test_an_empty_test_split_is_known_before_the_search() -> None:
    task = SupervisedTask(trained_model(), batches(64, 1), batches(64, 2), test=[], name="tiny")
    with pytest.raises(InputError, match="at least one batch"):
        judge_splits(trained_model(), task)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    import numpy as np

    figures = {"a": np.float32(0.5), "b": torch.tensor(0.25), "c": np.int64(1), "d": 2}
    assert check_metrics(figures, "test") == {"a": 0.5, "b": 0.25, "c": 1.0, "d": 2.0}


def test_judging_that_changes_is_said_with_its_spread() -> None:
    rng = random.Random(0)
    metrics, notes = judged(lambda predict, split: {"accuracy": 0.5 + rng.random() / 10})
    assert 0.5 <= metrics["accuracy"] <= 0.6
    assert len(notes) == 1 and "differ in accuracy by 0.0" in notes[0]
    assert judge_splits(trained_model(), tiny_task())[1:] == (192, [])


class Endless:
    """Batches without end."""

    def __iter__(self) -> Iterator[Batch]:
        return itertools.cycle(batches(64, 2))


def test_splits_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging_check, "_SECONDS", 0.2)
    task = SupervisedTask(trained_model(), batches(64, 1), Endless(), batches(64, 3), name="tiny")
    with pytest.raises(InputError, match="'selection' must end"):
        judge_splits(trained_model(), task)


def test_calibration_without_end() -> None:
    inputs = [inputs for inputs, _ in batches(64, 2)]

    class EndlessInputs:
        def __iter__(self) -> Iterator[Inputs]:
            return itertools.cycle(inputs)

    task = SupervisedTask(trained_model(), *[batches(64, i) for i in (1, 2, 3)], calibration=EndlessInputs())
    with pytest.raises(InputError, match="must end after at most 1024 batches"):
        check_task(task)


@pytest.mark.parametrize(
    ("metric", "value", "limit", "wrong"),
    [
        ("accuracy", 91.7, None, True),
        ("top5_accuracy", 91.7, None, True),
        ("accuracy", -0.1, None, True),
        ("accuracy", 0.9, 90.0, True),
        ("accuracy", 1.0, 0.0, False),
        ("accuracy_percent", 91.7, 90.0, False),
        ("bleu", 31.0, 30.0, False),
    ],
)
def test_percentages_are_no_shares(metric: str, value: float, limit: float | None, wrong: bool) -> None:
    if not wrong:
        check_share(metric, {metric: value}, limit)
        return
    with pytest.raises(InputError, match="divide percentages by 100"):
        check_share(metric, {metric: value}, limit)


def _scripted() -> nn.Module:
    traced: nn.Module = torch.jit.trace(trained_model(), (images(1, 0)[0],))
    return traced


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "message"), [(_scripted, "scripted or traced"), (lambda: torch.compile(trained_model()), "compiled")]
)
def test_models_that_are_no_plain_modules(make: Callable[[], nn.Module], message: str) -> None:
    task = tiny_task()
    task.build_model = lambda: make().eval()  # type: ignore[method-assign]
    with pytest.raises(InputError, match=message):
        check_task(task)


@pytest.mark.parametrize("inputs", [torch.zeros(0, 1, 8, 8), torch.tensor(1.0)])
def test_example_inputs_without_samples(inputs: Tensor) -> None:
    task = tiny_task()
    task.example_inputs = lambda: (inputs,)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="at least one sample"):
        check_task(task)
