"""Whatever can be known to be wrong before the first trial says so with the way out, and nothing is written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.api import search
from autocompress.config import SearchSettings
from autocompress.errors import AutocompressError, InputError, MissingExtraError
from autocompress.execution.preparation import PreparedSearch, prepare
from autocompress.publishing.artifact import model_digest
from autocompress.space.search_space import SearchSpace
from autocompress.task import Predict, SupervisedTask, Task
from tests.shared.tasks import STUB, batches, images, tiny_space, tiny_task, trained_model

pytestmark = pytest.mark.usefixtures("brief_clock")


def prepared(
    folder: Path, task: Task | None = None, space: str | SearchSpace = "default", **settings: Any
) -> PreparedSearch:
    given = SearchSettings.from_dict({"runtime": STUB, **settings})
    return prepare(task if task is not None else tiny_task(), space, given, None)


def refused(
    folder: Path,
    message: str,
    task: Task | None = None,
    space: str | SearchSpace = "default",
    kind: type[AutocompressError] = InputError,
    **settings: Any,
) -> str:
    """The message of the error; checks that nothing was written."""
    with pytest.raises(kind, match=message) as caught:
        prepared(folder, task, space, **settings)
    assert list(folder.iterdir()) == []
    return str(caught.value)


def task_of(kind: type[SupervisedTask] = SupervisedTask, model: nn.Module | None = None, **how: Any) -> SupervisedTask:
    return kind(model if model is not None else trained_model(), batches(64, 1), batches(64, 2), batches(64, 3), **how)


def test_what_is_known_before_the_first_trial(tmp_path: Path) -> None:
    task, space = tiny_task(), tiny_space()
    found = prepared(tmp_path, task, space, latency_budget="0.9x")
    info, baseline = found.info, found.baseline
    assert found.space is space
    assert (info.task, info.task_spec, info.objectives.metric) == ("tiny", None, "accuracy")
    assert info.model_digest == model_digest(trained_model())
    assert info.space_digest == space.digest
    assert info.objectives.budget == found.context.objectives.budget == 0.9
    assert info.settings.space == space.name
    assert [layer["path"] for layer in info.layers] == ["conv1", "conv2", "fc"]
    assert [(k["kind"], k["target"], tuple(k["choices"])) for k in info.knobs] == [
        (knob.kind, knob.target, knob.choices) for knob in space.knobs
    ]
    model = trained_model()
    n_params = sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        accuracy = task.evaluate(lambda inputs: _outputs(model, inputs), "selection")["accuracy"]
    assert baseline.metrics["accuracy"] == accuracy
    assert (baseline.number, baseline.state, baseline.origin) == (0, "complete", "baseline")
    assert baseline.candidate.is_baseline
    assert not baseline.feasible
    assert baseline.n_params == n_params
    assert baseline.latency is not None
    assert baseline.latency.ratio == 1.0
    assert baseline.latency.ms == info.objectives.reference_ms == pytest.approx(1e-4 * n_params, rel=0.5), (
        "0.1 us a parameter"
    )
    assert baseline.size_mib == pytest.approx(len(found.context.reference) / 2**20)
    assert list(tmp_path.iterdir()) == []


def _outputs(model: nn.Module, inputs: Any) -> Tensor:
    out: Tensor = model(*inputs)
    return out


def test_a_budget_in_milliseconds_is_a_share_of_what_was_measured(tmp_path: Path) -> None:
    found = prepared(tmp_path, latency_budget="0.25ms", space=tiny_space())
    assert found.info.objectives.budget == pytest.approx(0.25 / found.info.objectives.reference_ms)
    loose = prepared(tmp_path, latency_budget="5ms", space=tiny_space())
    assert loose.baseline.feasible


def test_a_budget_out_of_reach_names_the_fastest_known(tmp_path: Path) -> None:
    message = refused(
        tmp_path, "raise the budget or offer stronger choices", space=tiny_space(), latency_budget="0.01x"
    )
    said = re.search(
        r"budget 0\.01x is out of reach.*fastest takes (\S+)x \((\S+)ms\) of the uncompressed (\S+)ms", message
    )
    assert said is not None
    ratio, ms, reference_ms = map(float, said.groups())
    # both convolutions halved and conv2 (8 x 72) in two layers of rank 8, as an upper bound; the stub times parameters
    n_params, fewest = 2772, 9 * 8 + 8 * 72 + 8 * 8 + 2 * 8 + 2 * 8 + 32 * 4 + 4
    assert ratio == pytest.approx(fewest / n_params, rel=0.4)
    assert ms == pytest.approx(ratio * reference_ms, rel=0.02)
    assert "these knobs bind, as the strongest that is offered: prune_ratio 0.5 (2), rank_ratio 0.5 (1), " in message
    assert "weight_bits 8 (3)" in message


@pytest.mark.parametrize("budget", ["soon", "0x", "-1ms", "50%", "0.5", "nanx"])
def test_a_budget_that_cannot_be_read(tmp_path: Path, budget: str) -> None:
    refused(tmp_path, f"a positive share like 0.5x or milliseconds.*{re.escape(budget)}", latency_budget=budget)


def test_names_that_nobody_has(tmp_path: Path) -> None:
    refused(tmp_path, "no search space is called 'defalt'; try default", space="defalt")
    refused(tmp_path, "nothing.yaml does not", space="nothing.yaml")
    refused(tmp_path, "runtime must be one of .*'onnx'", runtime="onnx")
    refused(tmp_path, "not installed", runtime="no_such_engine:Runtime", kind=MissingExtraError)
    refused(tmp_path, "sampler must be one of .*'bayes'", sampler="bayes")


def test_features_of_layers_that_the_model_does_not_have(tmp_path: Path) -> None:
    refused(tmp_path, "no_such_layer", distill={"feature_weight": 1.0, "feature_layers": ["no_such_layer"]})


def nan_metric(outputs: Tensor, targets: Any) -> float:
    return math.nan


class Figures(SupervisedTask):
    """Gives these figures for every model."""

    figures: Any = None
    objectives: tuple[str, ...] = ()

    def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        super().evaluate(predict, split)
        return self.figures  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({}, "must return a dict of figures"),
        (0.9, "must return a dict of figures"),
        ({"accuracy": math.inf}, "finite numbers, but 'accuracy' is inf"),
        ({"accuracy": "high"}, "finite numbers, but 'accuracy' is 'high'"),
    ],
)
def test_metrics_that_are_no_figures(tmp_path: Path, figures: Any, message: str) -> None:
    task = task_of(Figures)
    task.figures = figures  # type: ignore[attr-defined]
    refused(tmp_path, message, task)


def test_a_metric_that_is_nan(tmp_path: Path) -> None:
    refused(tmp_path, r"'selection'.*finite numbers, but 'nan_metric' is nan", task_of(metric=nan_metric))


def test_the_objective_that_a_task_names(tmp_path: Path) -> None:
    task = task_of(Figures)
    assert isinstance(task, Figures)
    task.figures, task.objectives = {"accuracy": 0.5, "recall": 0.25}, ("recall",)
    assert prepared(tmp_path, task, tiny_space()).info.objectives.metric == "recall"
    task.objectives = ("precision",)
    refused(tmp_path, r"'precision' is not in \['accuracy', 'recall'\]", task)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such branch")


def test_a_model_that_fails_on_its_own_inputs(tmp_path: Path) -> None:
    refused(
        tmp_path,
        r"example_inputs\(\)` \(float32 tensor of shape \(1, 3, 8, 8\)\)",
        task_of(example_inputs=torch.zeros(1, 3, 8, 8)),
    )
    refused(tmp_path, "ValueError was raised.*no such branch", task_of(model=Broken()))
    model = trained_model()
    with torch.no_grad():
        model.get_parameter("fc.bias").fill_(math.nan)
    refused(tmp_path, "finite scalar tensor on the first training batch, but got nan", task_of(model=model))


def test_sources_without_batches(tmp_path: Path) -> None:
    nothing = SupervisedTask(trained_model(), batches(64, 1), [], [])
    refused(tmp_path, "at least one batch", nothing)
    no_training = SupervisedTask(trained_model(), [], batches(64, 2), batches(64, 3), example_inputs=images(1, 0)[0])
    refused(tmp_path, "at least one batch", no_training)


class Constant(nn.Module):
    """Nothing in it can be compressed."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] + self.bias


def test_a_space_with_nothing_to_search(tmp_path: Path) -> None:
    refused(tmp_path, "leaves nothing to search", space=SearchSpace((), "empty"))
    refused(tmp_path, "Constant|nothing", task_of(model=Constant()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"space": "defalt"},
        {"runtime": "onnx"},
        {"sampler": "bayes"},
        {"importance": "tailor"},
        {"latency_budget": "soon"},
        {"n_trials": 0},
        {"distill": {"temprature": 2.0}},
        {"distill": {"rungs": [5, 1]}},
    ],
)
def test_a_search_that_is_refused_leaves_no_folder(tmp_path: Path, wrong: Mapping[str, Any]) -> None:
    with pytest.raises(InputError):
        search(tiny_task(), run_dir=tmp_path / "run", show_progress=False, **{"runtime": STUB, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="needs a new folder"):
        search(tiny_task(), run_dir=tmp_path / "run", runtime=STUB, show_progress=False)
    assert list((tmp_path / "run").iterdir()) == []
