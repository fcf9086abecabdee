"""Tasks from DataLoaders, from specs, and the check before any long work."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle as cloudpickle
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from autocompress.errors import InputError, MissingDataError
from autocompress.task import TASK_METHODS, Inputs, SupervisedTask, Task, as_batch, as_inputs, call_model, load_task
from autocompress.task_check import check_metrics, check_task
from autocompress.tasks.cifar10 import Cifar10Task

GOOD_FILE = """
    from __future__ import annotations
    from dataclasses import dataclass
    import torch
    from torch import nn
    import autocompress.task
    from my_neighbour import WIDTH

    @dataclass
    class Options:
        width: int = WIDTH

    class Net(nn.Module):
        def __init__(self, options: Options) -> None:
            super().__init__()
            self.linear = nn.Linear(4, options.width)

        def forward(self, x):
            return self.linear(x)

    def make():
        torch.manual_seed(0)
        batches = [(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))]
        return autocompress.task.SupervisedTask(Net(Options()), batches, batches, batches)

    task = make()
    model = Net(Options())
    number = 3

    def broken():
        return {}["absent"]
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_neighbour.py").write_text("WIDTH = 3\n")
    path = tmp_path / "my_model.py"
    path.write_text(textwrap.dedent(GOOD_FILE))
    return path


def data(n: int = 10, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(n, 4, generator=generator), torch.arange(n) % 3)


def loader_task(model: nn.Module | None = None, **options: Any) -> SupervisedTask:
    loaders = [DataLoader(data(seed=seed), batch_size=4, shuffle=seed == 0) for seed in range(3)]
    return SupervisedTask(model or nn.Linear(4, 3), *loaders, **options)


def only(inputs: Inputs) -> Tensor:
    """The tensor of a one-input task."""
    assert isinstance(inputs, tuple)
    (tensor,) = inputs
    return tensor


def flat(task: Task, seed: int) -> list[list[float]]:
    return [only(inputs).flatten().tolist() + targets.tolist() for inputs, targets in task.train_batches(seed)]


class Scaled(nn.Module):
    """A model with keyword inputs."""

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale


# ---------------------------------------------------------------------------------------------------------- inputs


def test_as_inputs_normalises_and_keeps_values() -> None:
    a, b = torch.ones(2), torch.zeros(2)
    assert as_inputs(a) == (a,)
    assert as_inputs([a, b]) == (a, b)
    assert as_inputs({"x": a, "scale": b}) == {"x": a, "scale": b}


@pytest.mark.parametrize("value", [3, "x", (), {}, [1, 2], {"x": 1}, {1: torch.ones(1)}, ((torch.ones(1),), 2)])
def test_as_inputs_refuses_what_is_not_tensors(value: object) -> None:
    with pytest.raises(InputError, match="inputs must be a tensor, a tuple of tensors or a dict"):
        as_inputs(value)


def test_call_model_positional_and_keyword() -> None:
    x, scale = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    assert call_model(Scaled(), (x, scale)).tolist() == [3.0, 10.0]
    assert call_model(Scaled(), {"scale": scale, "x": x}).tolist() == [3.0, 10.0]


@pytest.mark.parametrize("value", [torch.ones(2), (torch.ones(1),) * 3, {"x": torch.ones(1), "labels": torch.ones(1)}])
def test_as_batch_refuses_what_is_no_pair(value: object) -> None:
    with pytest.raises(InputError, match=r"a batch must be a pair `\(inputs, targets\)`"):
        as_batch(value)


# ----------------------------------------------------------------------------------------------- SupervisedTask


def test_supervised_task_has_the_methods_of_the_protocol() -> None:
    protocol = {name for name, value in vars(Task).items() if callable(value) and not name.startswith("_")}
    assert set(TASK_METHODS) == protocol
    task: Task = loader_task()  # also a check by mypy
    assert isinstance(task, Task)
    check_task(task)


def test_build_model_is_a_copy_in_eval_mode() -> None:
    linear = nn.Linear(4, 3)
    model = nn.Sequential(linear, nn.BatchNorm1d(3)).train()
    built = loader_task(model).build_model()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()
    assert not built.training
    assert model.training
    assert linear.weight.abs().sum() > 0


@given(seed=st.integers(0, 2**31), n_draws=st.integers(0, 3))
def test_train_batches_depend_on_the_seed_only(seed: int, n_draws: int) -> None:
    task = loader_task()
    first = flat(task, seed)
    state = torch.get_rng_state()
    second = []
    for inputs, targets in task.train_batches(seed):
        torch.rand(n_draws)  # what a training step draws must not change the batches
        second.append(only(inputs).flatten().tolist() + targets.tolist())
    assert first == second
    torch.set_rng_state(state)
    expected = torch.rand(3)
    torch.set_rng_state(state)
    flat(task, seed)
    assert torch.equal(torch.rand(3), expected)  # nor do the batches change what training draws


def test_train_batches_differ_between_seeds_and_cover_all() -> None:
    task = loader_task()
    assert flat(task, 0) != flat(task, 1)
    labels = torch.cat([targets for _, targets in task.train_batches(5)])
    assert sorted(labels.tolist()) == sorted(data()[:][1].tolist())


def test_a_loader_with_its_own_generator_is_seeded_too() -> None:
    loader = DataLoader(data(), batch_size=4, shuffle=True, generator=torch.Generator())
    task = SupervisedTask(nn.Linear(4, 3), loader, loader, loader)
    assert flat(task, 7) == flat(task, 7)
    assert flat(task, 7) != flat(task, 8)


def test_default_examples_and_calibration_come_from_train() -> None:
    batches = [(torch.full((5, 4), float(i)), torch.zeros(5, dtype=torch.long)) for i in range(20)]
    task = SupervisedTask(nn.Linear(4, 3), batches, batches, batches)
    assert only(task.example_inputs()).shape == (1, 4)
    assert [only(inputs)[0, 0].item() for inputs in task.calibration_batches()] == [float(i) for i in range(8)]


def test_given_examples_and_calibration_are_normalised() -> None:
    x = torch.ones(2, 4)
    task = loader_task(example_inputs=x, calibration=[x, x])
    assert task.example_inputs() == (x,)
    assert [inputs == (x,) for inputs in task.calibration_batches()] == [True, True]


def test_keyword_inputs_all_the_way() -> None:
    batch = ({"x": torch.eye(3) * 2, "scale": torch.full((3, 3), 0.5)}, torch.arange(3))
    task = SupervisedTask(Scaled(), [batch], [batch], [batch])
    check_task(task)
    examples = task.example_inputs()
    assert isinstance(examples, dict)
    assert {name: tuple(value.shape) for name, value in examples.items()} == {"x": (1, 3), "scale": (1, 3)}
    model = task.build_model()
    assert task.evaluate(lambda inputs: call_model(model, inputs), "test")["accuracy"] == 1.0


def test_evaluate_joins_the_split_before_the_metric() -> None:
    """A metric that is no mean over batches, on batches of unequal size."""

    def spread(outputs: Tensor, targets: Tensor) -> float:
        return float(outputs.max() - outputs.min() + len(targets))

    task = loader_task(metric=spread, loss=lambda outputs, targets: (outputs[:, 0] - targets).square().mean())
    x, y = data(seed=1)[:]
    figures = task.evaluate(only, "selection")
    assert list(figures) == ["spread", "loss"]
    assert figures["spread"] == pytest.approx(float(x.max() - x.min()) + 10)
    assert figures["loss"] == pytest.approx(float((x[:, 0] - y).square().mean()))


def test_evaluate_reads_the_split_it_is_asked_for() -> None:
    seen: list[Tensor] = []

    def predict(inputs: Inputs) -> Tensor:
        seen.append(only(inputs))
        return torch.zeros(len(seen[-1]), 3)

    task = loader_task()
    for split, seed in (("selection", 1), ("test", 2)):
        seen.clear()
        task.evaluate(predict, split)
        assert torch.equal(torch.cat(seen), data(seed=seed)[:][0])
    with pytest.raises(InputError, match=r"must be one of \['selection', 'test'\], but got 'train'"):
        task.evaluate(lambda inputs: torch.zeros(4, 3), "train")


def test_constructor_refuses_one_way_iterators_and_unknown_metrics() -> None:
    loader = DataLoader(data(), batch_size=4)
    with pytest.raises(InputError, match="`selection` must be iterable many times"):
        SupervisedTask(nn.Linear(4, 3), loader, iter(loader), loader)
    with pytest.raises(InputError, match=r"one of \['accuracy', .*or a function of"):
        SupervisedTask(nn.Linear(4, 3), loader, loader, loader, metric="f1")


def test_targets_that_cannot_be_joined_are_refused() -> None:
    batches = [(torch.ones(2, 4), ["a", "b"])]
    with pytest.raises(InputError, match="targets must be tensors or dicts or tuples of tensors, but got list"):
        SupervisedTask(
            nn.Linear(4, 3),
            batches,
            batches,
            batches,
            metric=lambda outputs, targets: 0.0,
            loss=lambda *_: torch.ones(()),
        ).evaluate(lambda inputs: torch.zeros(2, 3), "test")
    with pytest.raises(InputError, match="accuracy needs .* got outputs .* and targets list"):
        SupervisedTask(nn.Linear(4, 3), batches, batches, batches).evaluate(lambda inputs: torch.zeros(2, 3), "test")


def test_supervised_task_survives_cloudpickle() -> None:
    task = loader_task(loss=lambda outputs, targets: F.cross_entropy(outputs, targets))
    other = cloudpickle.loads(cloudpickle.dumps(task))
    assert flat(other, 3) == flat(task, 3)
    x = torch.randn(2, 4)
    assert torch.equal(other.build_model()(x), task.build_model()(x))


# -------------------------------------------------------------------------------------------------------- load_task


@pytest.mark.parametrize("attribute", ["task", "make"])
def test_file_spec_gives_a_task_that_a_worker_can_unpickle(file: Path, attribute: str, tmp_path: Path) -> None:
    task = load_task(f"{file}:{attribute}")
    check_task(task)
    torch.export.export(task.build_model(), (only(task.example_inputs()),))
    pickled = tmp_path / "task.bin"
    pickled.write_bytes(cloudpickle.dumps(task))
    file.unlink()  # the worker has neither the file nor its neighbour
    (tmp_path / "my_neighbour.py").unlink()
    code = (
        "import pickle, pathlib, sys; import autocompress.task_check as t;"
        "task = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()); t.check_task(task);"
        "print(task.build_model()(torch.ones(1, 4)).sum().item())"
    )
    run = subprocess.run(
        [sys.executable, "-c", "import torch; " + code, str(pickled)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert float(run.stdout) == pytest.approx(task.build_model()(torch.ones(1, 4)).sum().item(), abs=1e-6)


def test_file_spec_leaves_no_module_behind(file: Path) -> None:
    before = set(sys.modules)
    load_task(f"{file}:task")
    assert {name for name in set(sys.modules) - before if name.startswith("autocompress_task")} == set()


def test_module_spec_is_looked_up_in_the_working_directory(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_package").mkdir()
    file.rename(tmp_path / "my_package" / "module_task.py")
    check_task(load_task("my_package.module_task:task"))


def test_ready_made_names_are_light_to_load() -> None:
    assert load_task("cifar10:resnet56") == Cifar10Task("resnet56")
    assert isinstance(load_task("digits"), Task)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("tusk", r"has no 'tusk' \(near: task\)"),
        ("model", "must be a task, but is a model; wrap it: SupervisedTask"),
        ("Net", "must be a task, but is a model"),
        ("number", "must have the methods of a task, but int lacks build_model, example_inputs, train_batches"),
        ("Options", "but Options lacks build_model"),
        ("broken", r"KeyError was raised at .*my_model.py:\d+: `return \{\}\[\"absent\"\]`: 'absent'"),
    ],
)
def test_attribute_errors_name_rule_value_and_way_out(file: Path, attribute: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_task(f"{file}:{attribute}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import torch\nimport no_such_package\n", "my_model.py:2: `import no_such_package`: No module named"),
        ("def f():\n    return 1 / 0\n\nf()\n", "ZeroDivisionError was raised at .*my_model.py:2: `return 1 / 0`"),
        ("import torch\nx = torch.ones(2) @ torch.ones(3)\n", "my_model.py:2: `x = torch.ones"),
        ("x = (\n", "SyntaxError was raised at .*my_model.py:1"),
        ("import sys\nsys.exit(3)\n", "SystemExit was raised at .*my_model.py:2"),
    ],
)
def test_a_file_that_does_not_import_shows_the_users_line(file: Path, source: str, message: str) -> None:
    file.write_text(source)
    with pytest.raises(InputError, match=message):
        load_task(f"{file}:task")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "a task must be one of .*digits.*, but got 'digit'"),
        ("my_model.py:", "a task must be one of"),
        ("no/such/file.py:task", "there is no .*no/such/file.py; check the path"),
        ("cifar10:resnet18", r"no module 'cifar10' \(near: .*cifar10:resnet20"),
        ("no_such_package.tasks:task", "there is no module 'no_such_package'"),
    ],
)
def test_spec_errors(spec: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load_task(spec)


# ------------------------------------------------------------------------------------------------------- check_task


class Returns(nn.Module):
    """A model whose forward is a given function."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


class NanLoss(SupervisedTask):
    def loss(self, outputs: Tensor, batch: object) -> Tensor:
        return outputs.sum() * torch.nan


class Training(SupervisedTask):
    def build_model(self) -> nn.Module:
        return super().build_model().train()


class NoData(SupervisedTask):
    def build_model(self) -> nn.Module:
        raise MissingDataError("weights are not here")


BATCH = (torch.ones(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            loader_task(nn.Linear(5, 3)),
            r"run on the inputs of `example_inputs\(\)` \(float32 tensor of shape \(1, 4\)\)",
        ),
        (loader_task(Returns(lambda x: ("no", 1))), "must give a floating-point tensor, alone or within"),
        (
            loader_task(Returns(lambda x: x[:, :3] * torch.inf)),
            "finite scalar tensor on the first training batch, but got nan",
        ),
        (
            loader_task(loss=lambda outputs, targets: outputs.sum(1)),
            r"finite scalar .* but got float32 tensor of shape",
        ),
        (
            loader_task(loss=lambda outputs, targets: targets["y"]),
            r"`loss\(outputs, batch\)` must work, but .*test_task.py",
        ),
        (NanLoss(nn.Linear(4, 3), [BATCH], [BATCH], [BATCH]), "finite scalar tensor .* but got nan"),
        (
            Training(nn.Linear(4, 3), [BATCH], [BATCH], [BATCH]),
            r"eval mode, but it is in training mode; call `.eval\(\)`",
        ),
        (SupervisedTask(nn.Linear(4, 3), [], [BATCH], [BATCH]), "`train` must have at least one batch"),
        (loader_task(calibration=[]), r"`calibration_batches\(\)` must yield at least one batch"),
        (loader_task(calibration=[torch.ones(2, 7)]), r"run on the inputs of `calibration_batches\(\)`"),
        (SupervisedTask(nn.Linear(4, 3), [(*BATCH, 1)], [BATCH], [BATCH]), "a batch must be a pair"),
    ],
)
def test_check_task_names_the_part_that_fails(task: Task, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_task(task)


def test_check_task_lets_the_packages_own_errors_through() -> None:
    with pytest.raises(MissingDataError, match="^weights are not here$"):
        check_task(NoData(nn.Linear(4, 3), [BATCH], [BATCH], [BATCH]))


def test_check_metrics() -> None:
    assert check_metrics({"accuracy": 1, "loss": 0.5}, "test") == {"accuracy": 1.0, "loss": 0.5}
    for figures in ({}, None, 0.9, {"accuracy": float("nan")}, {"accuracy": "high"}, {"a": 1.0, "b": float("inf")}):
        with pytest.raises(InputError, match="must return"):
            check_metrics(figures, "test")
