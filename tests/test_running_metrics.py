"""Metrics batch by batch are those of the whole split, computed by scikit-learn and by hand; memory stays bounded."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.evaluation import evaluate_model
from autocompress.running_metrics import RUNNING, RunningMeanIou, RunningPerplexity, fresh, join
from autocompress.task import SupervisedTask
from autocompress.task_check import check_task


def scores(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(seed: int, n_classes: int, *shape: int) -> Tensor:
    return torch.randint(n_classes, shape, generator=torch.Generator().manual_seed(seed + 1))


def of_parts(name: str, outputs: Tensor, targets: Tensor, size: int) -> float:
    metric = RUNNING[name]()
    for part, wanted in zip(outputs.split(size), targets.split(size), strict=True):
        metric.update(part, wanted)
    return float(metric.compute())


@given(seed=st.integers(0, 99), size=st.integers(1, 7), n_classes=st.integers(2, 5))
def test_figures_are_those_of_scikit_learn(seed: int, size: int, n_classes: int) -> None:
    outputs, targets = scores(seed, 11, n_classes, 3, 4), labels(seed, n_classes, 11, 3, 4)
    found, wanted = outputs.argmax(1).flatten().numpy(), targets.flatten().numpy()
    assert of_parts("accuracy", outputs, targets, size) == pytest.approx(accuracy_score(wanted, found))
    iou = jaccard_score(wanted, found, labels=np.unique(wanted), average="macro", zero_division=0.0)
    assert of_parts("mean_iou", outputs, targets, size) == pytest.approx(float(iou))


@given(seed=st.integers(0, 99), size=st.integers(1, 5), share=st.floats(0, 0.9))
def test_what_is_ignored_counts_nowhere(seed: int, size: int, share: float) -> None:
    outputs, targets = scores(seed, 6, 8, 5), labels(seed, 5, 6, 8)
    ignored = torch.rand(6, 8, generator=torch.Generator().manual_seed(seed)) < share
    ignored[0, 0] = False
    targets[ignored] = -100
    kept = ~ignored
    right = (outputs.argmax(-1) == targets)[kept].double().mean()
    assert of_parts("accuracy", outputs, targets, size) == pytest.approx(float(right))
    nats = -outputs.double().log_softmax(-1)[kept].gather(1, targets[kept][:, None]).mean()
    assert of_parts("perplexity", outputs, targets, size) == pytest.approx(math.exp(float(nats)), rel=1e-5)


class MeanError:
    """As torchmetrics' metrics are, which say themselves that smaller is better."""

    higher_is_better = False

    def __init__(self) -> None:
        self.total, self.n, self.n_resets = 0.0, 0, 0

    def reset(self) -> None:
        self.total, self.n, self.n_resets = 0.0, 0, self.n_resets + 1

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.total += float((preds - target).abs().sum())
        self.n += target.numel()

    def compute(self) -> Tensor:
        return torch.tensor(self.total / self.n)


def test_an_object_that_is_updated_is_taken_as_it_is() -> None:
    x, y = scores(0, 20, 3), scores(1, 20, 1)
    torch.manual_seed(0)
    model = nn.Linear(3, 1).eval()
    parts = list(zip(x.split(6), y.split(6), strict=True))
    metric = MeanError()
    task = SupervisedTask(model, parts, parts, parts, metric=metric, loss=F.mse_loss)
    with torch.no_grad():
        expected = float((model(x) - y).abs().mean()), float(F.mse_loss(model(x), y))
    for _ in range(2):
        found = evaluate_model(model, task)
        assert (found["MeanError"], found["loss"]) == pytest.approx(expected, rel=1e-5)
    assert metric.n == 0, "the user's own object sees nothing"
    assert task.objectives == {"MeanError": "minimize"}


def test_a_function_sees_the_whole_split_at_once() -> None:
    seen: list[tuple[int, int]] = []

    def spread(outputs: Tensor, targets: Tensor) -> float:
        seen.append((len(outputs), len(targets)))
        return float(outputs.std())

    parts = list(zip(scores(0, 10, 4).split(3), labels(0, 2, 10).split(3), strict=True))
    task = SupervisedTask(nn.Linear(4, 2).eval(), parts, parts, parts, metric=spread)
    assert list(evaluate_model(task.build_model(), task)) == ["spread", "loss"] and seen == [(10, 10)]


def test_parts_of_other_lengths_need_a_running_metric() -> None:
    assert torch.equal(join([{"a": torch.zeros(2)}, {"a": torch.ones(1)}])["a"], torch.tensor([0.0, 0.0, 1.0]))
    with pytest.raises(InputError, match="`update` and `compute`"):
        join([torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(InputError, match="got list"):
        join([[1], [2]])


@pytest.mark.parametrize("metric", ["speed", 3])
def test_what_does_not_judge_is_refused(metric: Any) -> None:
    with pytest.raises(InputError, match="mean_iou"):
        SupervisedTask(nn.Linear(4, 2), [], [], [], metric=metric)


def test_named_metrics_start_anew() -> None:
    metric = fresh("mean_iou", torch.device("cpu"))
    assert isinstance(metric, RunningMeanIou) and isinstance(
        fresh("perplexity", torch.device("cpu")), RunningPerplexity
    )


# --- sources


class Endless:
    """Batches without end, and without a length."""

    def __init__(self) -> None:
        self.n_given = 0

    def __iter__(self) -> Any:
        while True:
            self.n_given += 1
            yield scores(self.n_given, 4, 3), labels(self.n_given, 2, 4)


class OneShot:
    """Looks like a source, but has one iterator for all passes."""

    def __init__(self) -> None:
        self._batches = iter([(torch.zeros(2, 3), torch.zeros(2).long())] * 3)

    def __iter__(self) -> Any:
        return self._batches


def test_endless_sources_are_bounded() -> None:
    task = SupervisedTask(nn.Linear(3, 2).eval(), Endless(), Endless(), Endless(), max_batches=5)
    check_task(task)
    assert len(list(task.train_batches(0))) == 5 and 0 <= evaluate_model(task.build_model(), task)["accuracy"] <= 1
    assert len(list(task.calibration_batches())) == 5


def test_an_endless_split_without_a_bound_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.task.MAX_UNSIZED_BATCHES", 20)
    task = SupervisedTask(nn.Linear(3, 2).eval(), Endless(), Endless(), Endless())
    check_task(task)  # the first batch of each is enough for it
    with pytest.raises(InputError, match="`selection` must end, but .* gave 20 batches; .* `max_batches`"):
        evaluate_model(task.build_model(), task)


def test_a_source_with_a_single_iterator_is_refused_at_once() -> None:
    good = [(torch.zeros(2, 3), torch.zeros(2).long())]
    with pytest.raises(InputError, match="`test` must be iterable many times"):
        SupervisedTask(nn.Linear(3, 2).eval(), good, good, OneShot())


@pytest.mark.parametrize("split", ["selection", "test"])
def test_every_split_is_touched_before_any_long_work(split: str) -> None:
    good, bad = [(torch.zeros(2, 3), torch.zeros(2).long())], [(torch.zeros(2, 5), torch.zeros(2).long())]
    splits = {"train": good, "selection": good, "test": good, split: bad}
    with pytest.raises(InputError, match=rf"evaluate\(predict, '{split}'\)"):
        check_task(SupervisedTask(nn.Linear(3, 2).eval(), **splits))
    with pytest.raises(InputError, match="at least one batch"):
        check_task(SupervisedTask(nn.Linear(3, 2).eval(), **{**splits, split: []}))


# --- memory

MEASURE = Path(__file__).parents[1] / "experiments" / "012_accelerators" / "memory.py"


@pytest.mark.slow
@pytest.mark.parametrize(("what", "limit_mib"), [("perplexity", 2048), ("segmentation", 1024)])
def test_a_split_of_real_size_stays_within_memory(what: str, limit_mib: float) -> None:
    done = subprocess.run([sys.executable, str(MEASURE), what], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-2]) < limit_mib, done.stdout
