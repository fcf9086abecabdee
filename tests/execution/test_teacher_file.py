"""The teacher's file: it gives the model's outputs, workers ask it, and torch is asked wherever it has to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autocompress.config import DistillSettings, SearchSettings
from autocompress.distillation.fine_tune import FastMode
from autocompress.execution import teacher_file as module
from autocompress.execution.teacher_file import load_teacher, teacher_file
from autocompress.execution.trial import WorkerContext
from autocompress.graph import inspect_model
from autocompress.runtimes import runtime_named
from autocompress.search_context import SearchContext
from autocompress.task import SupervisedTask, as_inputs
from tests.shared.objectives import of_accuracy
from tests.shared.tasks import STUB, images, tiny_task, trained_model

pytestmark = pytest.mark.usefixtures("brief_clock")


def context_of(folder: Path, **distill: object) -> SearchContext:
    model, task = trained_model(), tiny_task()
    inputs = as_inputs(task.example_inputs())
    return SearchContext(
        task=task,
        model=model,
        graph=inspect_model(model, inputs),
        settings=SearchSettings(runtime=STUB, distill=DistillSettings(**distill)),  # type: ignore[arg-type]
        reference=runtime_named(STUB).export(model, inputs, folder).read_bytes(),
        objectives=of_accuracy(None, 3.0),
    )


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine counts as faster, whatever this machine says."""
    monkeypatch.setattr(module, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(module, "_LEAST_GAIN", 0.0)


@pytest.mark.usefixtures("always")
def test_it_gives_the_models_outputs_for_any_number_of_samples(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    file = tmp_path / "teacher"
    file.write_bytes(teacher_file(context) or b"")
    engine = load_teacher(file, context)
    for n in (32, 7, 50):
        x = images(n, n)[0]
        torch.testing.assert_close(engine((x,)), trained_model()(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("always")
def test_a_worker_asks_it_and_not_the_model(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    worker = WorkerContext(replace(context, teacher_file=teacher_file(context)))
    try:
        worker.teacher.model.register_forward_hook(lambda *_: pytest.fail("torch was asked"))
        x = images(32, 1)[0]
        outputs = worker.teacher.outputs(0, (x,), FastMode(False))
        torch.testing.assert_close(outputs, trained_model()(x).detach(), rtol=1e-4, atol=1e-4)
    finally:
        worker.close()


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    "distill", [{"alpha": 0.0}, {"teacher_loss": "none"}, {"rungs": (0,)}, {"feature_layers": ("conv1",)}]
)
def test_there_is_none_where_nothing_is_asked_or_features_are(tmp_path: Path, distill: dict[str, object]) -> None:
    assert teacher_file(context_of(tmp_path, **distill)) is None


def test_there_is_none_where_it_gains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(tmp_path)
    assert teacher_file(context) is None, "a forward pass takes no time here"
    monkeypatch.setattr(module, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(module, "_LEAST_GAIN", 1e9)
    assert teacher_file(context) is None


@pytest.mark.usefixtures("always")
def test_there_is_none_where_batches_differ_in_shape(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    model = nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Linear(4, 2)).eval()
    given = [((torch.randn(8, 3, length),), torch.zeros(8, dtype=torch.long)) for length in (6, 9)]
    for batches, has_file in ((given[:1], True), (given, False)):
        task = SupervisedTask(model, batches, batches[:1], batches[:1])
        assert (teacher_file(replace(context, task=task, model=model)) is not None) == has_file


class ByLength(nn.Module):
    """Its operations depend on values, so that no engine gets a graph of it."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0].sum().expand(len(x), 2) if bool(x.sum() > 0) else x[:, :2]


@pytest.mark.usefixtures("always")
def test_there_is_none_for_a_model_that_cannot_be_written(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    model = ByLength().eval()
    task = SupervisedTask(model, [((torch.randn(8, 4),), torch.zeros(8, dtype=torch.long))], [], [])
    assert teacher_file(replace(context, task=task, model=model)) is None
