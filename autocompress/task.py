"""What is compressed: the `Task` protocol, a task made from DataLoaders, and the way from a spec to a checked task."""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib
import importlib.util
import math
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from autocompress.errors import AutocompressError, InputError
from autocompress.metrics import accuracy, cross_entropy
from autocompress.settings_schema import require_kind, shown
from autocompress.tasks import TASKS
from autocompress.tasks.identifiers import is_task_id

Inputs: TypeAlias = tuple[Tensor, ...] | dict[str, Tensor]
"""What a model is called with: positional tensors, or keyword tensors."""

Batch: TypeAlias = tuple[Inputs, Any]
"""Inputs and their targets; the first dimension of each tensor counts samples."""

Predict: TypeAlias = Callable[[Inputs], Tensor]
"""Maps a batch's inputs to outputs: a PyTorch module or an exported file, the caller cannot tell which."""

Metric: TypeAlias = Callable[[Tensor, Any], float]
"""Maps all outputs and all targets of a split to one figure, larger is better."""

N_CALIBRATION_BATCHES = 8
"""How many training batches calibrate quantization unless the task says otherwise."""


@runtime_checkable
class Task(Protocol):
    """A trained model, its data and its metric: everything a search has to know about what it compresses.

    A task travels to worker processes by cloudpickle, so it should be light: load data on first use, not in `__init__`.
    A task may also have an attribute `objectives`, which maps keys of `evaluate` to "maximize" or "minimize"; the first
    one is what a search optimises. Without it the first key of `evaluate` is maximised. With a method
    `evaluate_subset(predict, split, n_samples)` short trials are judged on fewer samples.
    """

    def build_model(self) -> nn.Module:
        """A fresh copy of the trained model, in eval mode."""

    def example_inputs(self) -> Inputs:
        """Inputs of the shape that is to be fast; their batch size is the one that is timed."""

    def train_batches(self, seed: int) -> Iterable[Batch]:
        """Training batches, the same for the same seed; after the last one callers continue with `seed + 1`."""

    def calibration_batches(self) -> Iterable[Inputs]:
        """A few fixed batches without augmentation, for quantization ranges and batch-norm statistics."""

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The scalar that training minimises on this batch."""

    def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        """Figures on the split "selection" (what a search may look at), "test", or a further one of the task's own."""


TASK_METHODS = ("build_model", "example_inputs", "train_batches", "calibration_batches", "loss", "evaluate")


def as_inputs(inputs: object) -> Inputs:
    """Normalises inputs: a bare tensor stands for a tuple of one, a list for a tuple, a mapping for a dict.

    Raises:
        InputError: something in it is not a tensor.
    """
    if isinstance(inputs, Tensor):
        return (inputs,)
    if isinstance(inputs, Mapping):
        if inputs and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in inputs.items()):
            return dict(inputs)
        described = "{" + ", ".join(f"{k!r}: {type(v).__name__}" for k, v in inputs.items()) + "}"
    elif isinstance(inputs, tuple | list):
        if inputs and all(isinstance(value, Tensor) for value in inputs):
            return tuple(inputs)
        described = f"{type(inputs).__name__} of [{', '.join(type(value).__name__ for value in inputs)}]"
    else:
        described = type(inputs).__name__
    raise InputError(f"inputs must be a tensor, a tuple of tensors or a dict of named tensors, but got {described}")


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """Calls the model with positional or keyword tensors."""
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def as_batch(batch: object) -> Batch:
    """Normalises a DataLoader's batch to `(inputs, targets)`.

    Raises:
        InputError: it is not a pair, or its inputs are not tensors.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        got = (
            f"{type(batch).__name__} of {len(batch)}"
            if isinstance(batch, tuple | list | Mapping)
            else type(batch).__name__
        )
        raise InputError(
            f"a batch must be a pair `(inputs, targets)`, but got {got}; "
            "give several inputs as a tuple or a dict in the first place (a `collate_fn` can do it)"
        )
    return as_inputs(batch[0]), batch[1]


def predict_all(predict: Predict, batches: Iterable[Batch]) -> tuple[Tensor, Any]:
    """Outputs and targets of every batch, joined along the first dimension.

    Raises:
        InputError: there is no batch, or the targets are neither tensors nor dicts of tensors.
    """
    outputs: list[Tensor] = []
    targets: list[Any] = []
    with torch.no_grad():
        for inputs, target in batches:
            outputs.append(predict(inputs))
            targets.append(target)
    if not outputs:
        raise InputError("a split must have at least one batch to evaluate, but it has none")
    return torch.cat(outputs), _join(targets)


def first_samples(batches: Iterable[Batch], n_samples: int | None) -> Iterator[Batch]:
    """The first batches, until they hold the number of samples; None gives all."""
    n_seen = 0
    for inputs, targets in batches:
        yield inputs, targets
        first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0]
        n_seen += len(first)
        if n_samples is not None and n_seen >= n_samples:
            return


def _join(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, Mapping):
        return {key: _join([part[key] for part in parts]) for key in first}
    raise InputError(
        f"targets must be tensors or dicts of tensors, but got {type(first).__name__}; "
        "for other targets write a class with the methods of `Task`"
    )


class SupervisedTask:
    """A task from a trained model and three sources of `(inputs, targets)` batches: DataLoaders or lists.

    The model is deep-copied, never changed. `train_batches(seed)` iterates `train` once under a private random state,
    so that shuffling and augmentation by torch's generator depend on the seed alone.

    Args:
        model: the trained model.
        train: training batches; can be iterated many times.
        selection: batches that the search judges candidates on.
        test: batches that only the final report sees.
        metric: "accuracy", or `metric(outputs, targets) -> float` over a whole split; larger is better.
        loss: `loss(outputs, targets) -> scalar tensor`; by default the cross entropy of classes.
        calibration: batches of inputs; by default the first 8 training batches.
        example_inputs: what is timed; by default the first training sample, batch size 1.
        name: a name for reports.

    Raises:
        InputError: a source can be iterated only once, or `metric` is neither "accuracy" nor callable.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Iterable[Any],
        selection: Iterable[Any],
        test: Iterable[Any],
        *,
        metric: str | Metric = "accuracy",
        loss: Callable[[Tensor, Any], Tensor] = cross_entropy,
        calibration: Iterable[Any] | None = None,
        example_inputs: object = None,
        name: str = "task",
    ) -> None:
        sources = {"train": train, "selection": selection, "test": test, "calibration": calibration}
        for source, batches in sources.items():
            if isinstance(batches, Iterator):
                raise InputError(
                    f"`{source}` must be iterable many times, but got the one-way iterator "
                    f"{type(batches).__name__}; give a DataLoader or a list"
                )
        if metric != "accuracy" and not callable(metric):
            raise InputError(f"`metric` must be 'accuracy' or a function of (outputs, targets), but got {metric!r}")
        self.name = name
        self._model = model
        self._train = train
        self._splits = {"selection": selection, "test": test}
        self._metric = metric if callable(metric) else accuracy
        self._loss = loss
        self._calibration = calibration
        self._example_inputs = None if example_inputs is None else as_inputs(example_inputs)

    def build_model(self) -> nn.Module:
        """A deep copy of the model, in eval mode."""
        return copy.deepcopy(self._model).eval()

    def example_inputs(self) -> Inputs:
        """The given example inputs, or the first training sample as a batch of one."""
        if self._example_inputs is not None:
            return self._example_inputs
        for inputs, _ in self.train_batches(seed=0):
            if isinstance(inputs, dict):
                return {key: value[:1] for key, value in inputs.items()}
            return tuple(value[:1] for value in inputs)
        raise InputError("`train` must have at least one batch, but it has none")

    def train_batches(self, seed: int) -> Iterator[Batch]:
        """One pass over `train`; the same batches for the same seed."""
        return map(as_batch, _seeded(self._train, seed))

    def calibration_batches(self) -> Iterator[Inputs]:
        """The given calibration inputs, or those of the first training batches."""
        if self._calibration is not None:
            return map(as_inputs, self._calibration)
        return (
            inputs for _, (inputs, _) in zip(range(N_CALIBRATION_BATCHES), self.train_batches(seed=0), strict=False)
        )

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The given loss of outputs and targets."""
        return self._loss(outputs, batch[1])

    def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        """The metric (first key, by its function's name) and the loss over a whole split.

        Raises:
            InputError: the split is neither "selection" nor "test".
        """
        return self._evaluated(predict, split, None)

    def evaluate_subset(self, predict: Predict, split: str, n_samples: int) -> dict[str, float]:
        """As `evaluate`, on the first batches that hold the number of samples."""
        return self._evaluated(predict, split, n_samples)

    def _evaluated(self, predict: Predict, split: str, n_samples: int | None) -> dict[str, float]:
        if split not in self._splits:
            raise InputError(f"`split` must be one of {sorted(self._splits)}, but got {split!r}")
        outputs, targets = predict_all(predict, first_samples(map(as_batch, self._splits[split]), n_samples))
        metric_name = getattr(self._metric, "__name__", "metric")
        figures = {metric_name: float(self._metric(outputs, targets))}
        figures.setdefault("loss", float(self._loss(outputs, targets)))
        return figures


def _seeded(batches: Iterable[Any], seed: int) -> Iterator[Any]:
    """Iterates under a random state of its own, apart from what the caller draws in between."""
    if isinstance(batches, DataLoader) and batches.generator is not None:
        batches.generator.manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        iterator = iter(batches)
        state = torch.get_rng_state()
    while True:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            try:
                batch = next(iterator)
            except StopIteration:
                return
            state = torch.get_rng_state()
        yield batch


def load_task(spec: str, **options: Any) -> Task:
    """The task that a spec names.

    Args:
        spec: a ready-made name ("digits", "cifar10:resnet20"), "path/to/file.py:attr" or "package.module:attr". The
            attribute is a task, or a class or function without arguments that makes one. As Python does for scripts,
            the file's folder (for a module: the working directory) is put first on `sys.path`. Or a model by id:
            "hf:./my-model", "timm:resnet18", "torchvision:resnet18".
        options: of a model by id, such as `data="texts.csv"`; see `autocompress.tasks.identifiers.TaskId`.

    Raises:
        InputError: the file or module cannot be imported, has no such attribute, or the attribute is no task.
    """
    require_kind("a task's spec", spec, "a text", str)
    if is_task_id(spec):
        from autocompress.tasks.from_id import id_task

        return id_task(spec, options)
    if options:
        raise InputError(
            f"options ({', '.join(options)}) are for models by id, such as hf:./my-model, not for {spec!r}"
        )
    source, colon, attribute = TASKS.get(spec, spec).rpartition(":")
    if not (colon and source and attribute):
        raise InputError(
            f"a task must be one of {sorted(TASKS)}, 'file.py:attr', 'package.module:attr' or an id such as "
            f"'hf:./my-model', but got {spec!r}"
        )
    if not source.endswith(".py"):
        _import_from(Path.cwd())
        return _task_in(_import_module(source, spec), attribute, spec)
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        raise InputError(
            f"the file of task {spec!r} must exist, but there is no {path}; check the path and the working directory"
        )
    _import_from(path.parent)
    name = f"autocompress_task_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    try:
        return _task_in(_import_file(path, name, spec), attribute, spec)
    finally:
        # A class whose module is not registered is pickled by value, so workers need not have the file.
        sys.modules.pop(name, None)


def _import_from(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import_module(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except AutocompressError:
        raise
    except (Exception, SystemExit) as error:
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name is not None
            and f"{name}.".startswith(f"{error.name}.")
        ):
            raise InputError(
                f"the module of task {spec!r} must be importable, but there is no module {error.name!r}"
                f"{_near(spec, TASKS)}; a file is given as 'path/to/file.py:attr'"
            ) from error
        raise InputError(f"task {spec!r} must import, but {_where(error)}") from error


def _import_file(path: Path, name: str, spec: str) -> ModuleType:
    file_spec = importlib.util.spec_from_file_location(name, path)
    assert file_spec is not None and file_spec.loader is not None, "a .py suffix always has a loader"
    module = importlib.util.module_from_spec(file_spec)
    sys.modules[name] = module
    try:
        file_spec.loader.exec_module(module)
    except AutocompressError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"task {spec!r} must import, but {_where(error, path)}") from error
    return module


def _task_in(module: ModuleType, attribute: str, spec: str) -> Task:
    names = [name for name in vars(module) if not name.startswith("_")]
    if not hasattr(module, attribute):
        raise InputError(
            f"task {spec!r} must exist, but {module.__file__} has no {attribute!r}{_near(attribute, names)}"
        )
    value = getattr(module, attribute)
    if isinstance(value, nn.Module) or (isinstance(value, type) and issubclass(value, nn.Module)):
        raise InputError(
            f"{spec!r} must be a task, but is a model; wrap it: SupervisedTask(model, train, selection, test)"
        )
    if isinstance(value, type) or (callable(value) and _missing_methods(value)):
        try:
            value = value()
        except AutocompressError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"{spec!r} must make a task when called without arguments, but {_where(error)}") from error
    missing = _missing_methods(value)
    if missing:
        raise InputError(
            f"{spec!r} must have the methods of a task, but {type(value).__name__} lacks {', '.join(missing)}; "
            "SupervisedTask(model, train, selection, test) makes a task from DataLoaders"
        )
    return value  # type: ignore[no-any-return]


def require_task(value: object) -> None:
    """Refuses what has not the methods of a task.

    Raises:
        InputError: names those that are missing.
    """
    missing = _missing_methods(value)
    if missing:
        raise InputError(
            f"a task must have the methods of `Task`, but {type(value).__name__} lacks {', '.join(missing)}; "
            "SupervisedTask(model, train, selection, test) makes a task from DataLoaders"
        )


def _missing_methods(value: object) -> list[str]:
    return [name for name in TASK_METHODS if not callable(getattr(value, name, None))]


def _near(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f" (near: {', '.join(close)})" if close else ""


def _where(error: BaseException, path: Path | None = None) -> str:
    """The error in one line, with the innermost line of the user's own code (of `path` if given) that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (str(Path(__file__).parent), *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")))
    own = [frame for frame in frames if not frame.filename.startswith(("<", *libraries))]
    in_path = [frame for frame in frames if path is not None and frame.filename == str(path)]
    innermost = next(iter([*in_path[-1:], *own[-1:], *frames[-1:]]), None)
    at = f" at {innermost.filename}:{innermost.lineno}: `{innermost.line}`" if innermost else ""
    if isinstance(error, SyntaxError) and error.filename:
        at = f" at {error.filename}:{error.lineno}"
    return f"{type(error).__name__} was raised{at}: {str(error).strip() or 'no message'}"


def check_task(task: Task) -> None:
    """Tries the task's parts on one batch each, so that a mistake shows before any long work.

    Builds the model, runs it on its example inputs, on one calibration batch and on one training batch with its loss.
    The metrics are judged by `check_metrics` when they are first computed.

    Raises:
        InputError: a part fails, has the wrong form, or gives a loss that is not a finite scalar.
    """
    model = attempt("build_model()", task.build_model)
    if not isinstance(model, nn.Module):
        raise InputError(f"`build_model()` must return an nn.Module, but returned {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        kind = "scripted or traced" if isinstance(model, torch.jit.ScriptModule) else "compiled"
        raise InputError(f"`build_model()` must return the module itself, but it is {kind}; return what it was made of")
    if model.training:
        raise InputError(
            "`build_model()` must return the model in eval mode, but it is in training mode; call `.eval()` on it"
        )
    with torch.no_grad():
        examples = as_inputs(attempt("example_inputs()", task.example_inputs))
        _require_samples(examples, "example_inputs()")
        _run(model, examples, "example_inputs()")
        _run(model, _last_calibration(task), "calibration_batches()")
        batch = as_batch(_first("train_batches(seed=0)", lambda: task.train_batches(0)))
        outputs = _run(model, batch[0], "train_batches(seed=0)")
        loss = attempt("loss(outputs, batch)", lambda: task.loss(outputs, batch))
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(torch.isfinite(loss).all()):
        value = f"{loss.item()}" if isinstance(loss, Tensor) and loss.numel() == 1 else _describe(loss)
        raise InputError(
            f"`loss` must be a finite scalar tensor on the first training batch, but got {value}; "
            "check the model's weights, the inputs' normalisation and the targets"
        )


_MAX_CALIBRATION, _SECONDS = 1024, 10.0


def _last_calibration(task: Task) -> Inputs:
    """The last calibration batch, after all were looked at."""
    begin, found, n_batches = time.monotonic(), None, 0
    for batch in attempt("calibration_batches()", lambda: iter(task.calibration_batches())):
        found, n_batches = as_inputs(batch), n_batches + 1
        _require_samples(found, "calibration_batches()")
        late = time.monotonic() - begin > _SECONDS
        if n_batches > _MAX_CALIBRATION or (late and n_batches > 16 * N_CALIBRATION_BATCHES):
            raise InputError(
                f"`calibration_batches()` must end after at most {_MAX_CALIBRATION} batches, but gives more; "
                f"{N_CALIBRATION_BATCHES} are enough"
            )
    if found is None:
        raise InputError("the task's `calibration_batches()` must yield at least one batch, but yields none")
    return found


def _require_samples(inputs: Inputs, source: str) -> None:
    tensors = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
    if any(tensor.dim() == 0 or tensor.shape[0] == 0 for tensor in tensors):
        raise InputError(
            f"`{source}` must hold at least one sample along the first dimension, but got {_describe(inputs)}"
        )


def check_metrics(figures: object, split: str) -> dict[str, float]:
    """What `evaluate` returned, as floats.

    Raises:
        InputError: it is not a non-empty dict of finite numbers.
    """
    if not isinstance(figures, Mapping) or not figures:
        raise InputError(f"`evaluate(predict, {split!r})` must return a dict of figures, but returned {shown(figures)}")
    for name, value in figures.items():
        if not isinstance(name, str):
            raise InputError(f"`evaluate(predict, {split!r})` must name its figures by texts, but one is {shown(name)}")
        if not _is_finite(value):
            raise InputError(
                f"`evaluate(predict, {split!r})` must return finite numbers, but {name!r} is {shown(value)}; "
                "check the metric on the uncompressed model"
            )
    return {name: float(value) for name, value in figures.items()}


def _is_finite(value: Any) -> bool:
    """Whether it is a finite number, also one of NumPy's or torch's."""
    if isinstance(value, str | bytes | bool):
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


def attempt(what: str, call: Callable[[], Any]) -> Any:
    """Calls a part of a user's task.

    Raises:
        InputError: it raises; names the line of the user's own code.
    """
    try:
        return call()
    except AutocompressError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"the task's `{what}` must work, but {_where(error)}") from error


def _first(what: str, batches: Callable[[], Iterable[Any]]) -> Any:
    batch = attempt(what, lambda: next(iter(batches()), None))
    if batch is None:
        raise InputError(f"the task's `{what}` must yield at least one batch, but yields none")
    return batch


def _run(model: nn.Module, inputs: Inputs, source: str) -> Tensor:
    try:
        outputs = call_model(model, inputs)
    except Exception as error:
        raise InputError(
            f"the model must run on the inputs of `{source}` ({_describe(inputs)}), but {_where(error)}"
        ) from error
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"the model must return one tensor, but on the inputs of `{source}` it returned {_describe(outputs)}; "
            "return the tensor that `loss` and `evaluate` need, in a small module around the model if it is not yours"
        )
    return outputs


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_describe(part)}" for key, part in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(_describe(part) for part in value)
    return type(value).__name__
