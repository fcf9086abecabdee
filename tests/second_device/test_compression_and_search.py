"""Every operation, and whole trials, on a second device that refuses to mix with the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.api import search
from autocompress.compression import CalibrationStats, compress, rebuild, resolve
from autocompress.compression.importance import CRITERIA
from autocompress.compression.inherit import scatter_back
from autocompress.config import DistillSettings, QuantizeSettings, SearchSettings
from autocompress.devices import device_of, model_on, on_device
from autocompress.distillation.fine_tune import FineTune, Teacher
from autocompress.evaluation import evaluate_model
from autocompress.execution.fisher import fisher_sensitivity
from autocompress.execution.sensitivity import SensitivityProbe
from autocompress.execution.trial import Trial, TrialPlan, WorkerContext
from autocompress.graph import inspect_model
from autocompress.results.records import read_records
from autocompress.runtimes import export, runtime_named
from autocompress.search_context import SearchContext, moments_of
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.task import as_inputs
from tests.second_device.backend import register
from tests.second_device.device_tasks import DeviceTask, MovingTask
from tests.shared.objectives import of_accuracy
from tests.shared.tasks import RULES, batches, images, trained_model

register()
SECOND = torch.device("second")
EXAMPLE = (images(1, 0)[0],)
CALIBRATION = [inputs for inputs, _ in batches(64, 4)]
EVERYTHING = Candidate(prune_ratio={"conv1": 0.5}, rank_ratio={"conv2": 0.5}, weight_bits={"conv2": 8, "fc": 8})


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def check_alike(here: nn.Module, there: nn.Module, inputs: Any) -> None:
    """The student on the second device has all of its tensors there, and the CPU's values."""
    strangers = [name for name, tensor in tensors(there).items() if tensor.device.type != "second"]
    assert not strangers
    expected = tensors(here)
    for name, tensor in tensors(there).items():
        torch.testing.assert_close(
            tensor.cpu(), expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    with torch.no_grad():
        torch.testing.assert_close(there(*on_device(inputs, SECOND)).cpu(), here(*inputs), rtol=1e-3, atol=1e-4)


CONV_CANDIDATES = {
    "prune": Candidate(prune_ratio={"conv1": 0.5, "conv2": 0.25}),
    "channel": Candidate(rank_ratio={"conv2": 0.5, "fc": 0.5}),
    "spatial": Candidate(rank_ratio={"conv2": "spatial:0.5"}),
    "tucker": Candidate(rank_ratio={"conv2": "tucker:0.5"}),
    "energy": Candidate(rank_ratio={"conv2": "energy:0.9"}),
    "residual": Candidate(rank_ratio={"conv2": "0.25+sparse:0.05", "fc": "0.5+bits:4"}),
    "sparse": Candidate(sparsity={"conv2": 0.5, "fc": "2:4"}),
    "int8": Candidate(weight_bits={"conv1": 8, "conv2": 8, "fc": 8}),
    "weights": Candidate(weight_bits={"conv1": 16, "conv2": 3, "fc": "4w"}),
    "all": EVERYTHING,
}


@pytest.mark.parametrize("name", CONV_CANDIDATES)
def test_a_student_made_there_is_the_one_made_here(name: str) -> None:
    model = trained_model()
    here = compress(model, CONV_CANDIDATES[name], EXAMPLE, CALIBRATION)
    there = compress(model_on(model, SECOND), CONV_CANDIDATES[name], EXAMPLE, CALIBRATION)  # batches follow the model
    check_alike(here, there, (images(8, 5)[0],))


@pytest.mark.parametrize(
    "quantize", [("percentile", "mse", True), ("mse", "minmax", False), ("moving_average", "mse", True)]
)
def test_ranges_and_bias_correction(quantize: tuple[str, str, bool]) -> None:
    ranges, weights, correct_bias = quantize
    how = QuantizeSettings(ranges=ranges, weights=weights, correct_bias=correct_bias)
    model, candidate = trained_model(), CONV_CANDIDATES["int8"]
    here = compress(model, candidate, EXAMPLE, CALIBRATION, quantize=how)
    there = compress(model_on(model, SECOND), candidate, EXAMPLE, CALIBRATION, quantize=how)
    check_alike(here, there, (images(8, 5)[0],))


class Tagger(nn.Module):
    """An embedding, a recurrent net of two levels and a linear layer."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.steps = kind(16, 16, num_layers=2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.steps(self.embedding(tokens))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bits", [8, 5])
def test_recurrent_layers_and_embeddings(kind: type[nn.RNNBase], bits: int) -> None:
    torch.manual_seed(0)
    model = Tagger(kind).eval()
    tokens = torch.randint(20, (32, 6), generator=torch.Generator().manual_seed(1))
    candidate = Candidate(
        prune_ratio={"embedding": 0.5}, rank_ratio={"steps": 0.5}, weight_bits={"head": bits, "embedding": bits}
    )
    graph = inspect_model(model, (tokens[:1],))
    here = compress(model, candidate, (tokens[:1],), [tokens], graph=graph)
    there = compress(model_on(model, SECOND), candidate, (tokens[:1],), [tokens], graph=graph)
    check_alike(here, there, (tokens,))


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_importance(name: str) -> None:
    model, task = trained_model(), DeviceTask()
    graph = inspect_model(model, EXAMPLE)
    candidate = Candidate(prune_ratio={"conv1": 0.5})
    here, there = (
        resolve(one, graph, candidate, name, CalibrationStats(one, graph, on_device(CALIBRATION, device_of(one)), task))
        for one in (model, model_on(model, SECOND))
    )
    assert here.removed == there.removed


def test_training_passed_on() -> None:
    model = trained_model()
    graph = inspect_model(model, EXAMPLE)
    filled = []
    for one in (model, model_on(model, SECOND)):
        calibration = on_device(CALIBRATION, device_of(one))
        recipe = resolve(one, graph, EVERYTHING, "l2", CalibrationStats(one, graph, calibration))
        filled.append(scatter_back(rebuild(one, graph, recipe, calibration), one, graph, recipe))
    check_alike(filled[0], filled[1], (images(8, 5)[0],))


FINE_TUNES = {
    "plain": {},
    "adamw": {"optimizer": "adamw"},
    "learned scales": {"learn_scales": True},
    "features": {"feature_weight": 0.5, "feature_layers": ("conv1", "conv2")},
    "penalties": {"l1_weight": 0.1, "group_lasso_weight": 0.1},
}


@pytest.mark.parametrize("name", FINE_TUNES)
def test_a_fine_tune_there_is_the_one_here(name: str) -> None:
    settings = DistillSettings(rungs=(0, 6), **{"learning_rate": 0.01, **FINE_TUNES[name]})
    candidate = Candidate(prune_ratio={"conv1": 0.5}, weight_bits={"conv2": 8, "fc": 8}, sparsity={"fc": 0.5})
    model, task = trained_model(), DeviceTask()
    trained = []
    for one in (model, model_on(model, SECOND)):
        student = compress(one, candidate, EXAMPLE, CALIBRATION)
        torch.manual_seed(0)
        teacher = Teacher(one)
        teacher.mode = replace(
            teacher.mode_for(on_device(EXAMPLE, teacher.device)), bfloat16=False, channels_last=False
        )
        FineTune(student, teacher, task, settings).advance(6)
        trained.append(student)
    here, there = trained
    assert all(tensor.device.type == "second" for tensor in tensors(there).values())
    x = (images(32, 5)[0],)
    with torch.no_grad():
        torch.testing.assert_close(there(*on_device(x, SECOND)).cpu(), here(*x), rtol=0.05, atol=0.05)


def context_of(folder: Path, task: Any = None, **settings: Any) -> SearchContext:
    model = trained_model()
    return SearchContext(
        task=task if task is not None else DeviceTask(),
        model=model,
        graph=inspect_model(model, EXAMPLE),
        settings=SearchSettings(distill=DistillSettings(rungs=(0, 4, 8), learning_rate=0.05), **settings),
        reference=runtime_named("onnxruntime").export(model, EXAMPLE, folder).read_bytes(),
        objectives=of_accuracy(None, 0.05),
    )


@pytest.fixture
def workers() -> Iterator[list[WorkerContext]]:
    made: list[WorkerContext] = []
    yield made
    for worker in made:
        worker.close()


@pytest.mark.parametrize("make_task", [DeviceTask, MovingTask])
def test_a_trial_goes_through_its_rungs(tmp_path: Path, make_task: Any, workers: list[WorkerContext]) -> None:
    worker = WorkerContext(context_of(tmp_path, make_task()), SECOND)
    workers.append(worker)
    trial = Trial.begin(worker, TrialPlan(EVERYTHING))
    while not trial.done:
        trial.step()
    outcome = trial.outcome()
    assert device_of(trial._student).type == "second"
    assert outcome.metrics["accuracy"] > 0.6 and len(outcome.rungs) == 3
    assert trial.files().keys() == {"weights.safetensors", "recipe.json"}


@pytest.mark.parametrize(("first", "second"), [("second", "cpu"), ("cpu", "second")])
def test_a_trial_goes_on_on_another_device(
    tmp_path: Path, first: str, second: str, workers: list[WorkerContext]
) -> None:
    context = context_of(tmp_path)
    workers += [WorkerContext(context, torch.device(first)), WorkerContext(context, torch.device(second))]
    begun = Trial.begin(workers[0], TrialPlan(EVERYTHING))
    begun.step(), begun.step()
    state = begun.state_dict()
    assert all(tensor.device.type == "cpu" for tensor in state["fine_tune"]["student"].values())
    resumed = Trial.restore(workers[1], TrialPlan(EVERYTHING), state)
    resumed.step()
    assert resumed.done and resumed.outcome().rungs[:2] == begun.outcome().rungs[:2]
    assert resumed.outcome().rungs[2].metrics["accuracy"] > 0.6


def test_sensitivities_and_moments(tmp_path: Path) -> None:
    there = context_of(tmp_path, device="second")
    here = context_of(tmp_path, device="cpu")
    space = SearchSpace.from_rules(there.graph, RULES)
    losses = []
    for context in (here, there):
        probe = SensitivityProbe(context.task, context.model, context.graph, context.settings)
        fisher = fisher_sensitivity(space, context.task, probe.model, context.graph, list(probe.labelled))
        losses.append([probe.loss(EVERYTHING), *(item.loss_increase for item in fisher.choices)])
        assert moments_of(context, space)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3, abs=1e-6)


def test_figures_and_files_of_a_model_there(tmp_path: Path) -> None:
    model, task = trained_model(), DeviceTask()
    there = model_on(model, SECOND)
    assert evaluate_model(there, task) == pytest.approx(evaluate_model(model, task), rel=1e-6)
    assert export(there, as_inputs(on_device(EXAMPLE, SECOND)), tmp_path).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("make_task", [DeviceTask, MovingTask])
def test_a_whole_search_on_the_second_device(tmp_path: Path, make_task: Any) -> None:
    """Workers are processes of their own, which register the device when they read the task."""
    front = search(
        make_task(), run_dir=tmp_path / "run", device="second", n_trials=4, n_workers=1, polish_points=1,
        polish_steps=4, show_progress=False, distill={"rungs": [0, 4]},
    )  # fmt: skip
    records = read_records(tmp_path / "run" / "trials.jsonl")
    assert [record.error for record in records if record.state == "failed"] == []
    assert front.points and all(point.file is not None for point in front.points)
