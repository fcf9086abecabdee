"""What is compressed: the `Task` protocol, a task made from DataLoaders, and the way from a spec to a task."""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from autocompress.batches import n_samples as n_samples_of
from autocompress.batches import part_of
from autocompress.devices import CPU, stream_to
from autocompress.errors import AutocompressError, InputError
from autocompress.metrics import cross_entropy
from autocompress.running_metrics import RUNNING, Metric, RunningMetric, direction_of, fresh, join, name_of
from autocompress.settings_schema import require_kind
from autocompress.tasks import TASKS
from autocompress.tasks.identifiers import is_task_id

Inputs: TypeAlias = tuple[Any, ...] | dict[str, Any]
"""What a model is called with: positional or keyword arguments, each a tensor or nested lists and dicts of tensors."""

DynamicDims: TypeAlias = Mapping[str | int, Mapping[int, str]]
"""Name (or position) of an input -> dimension -> a name for its size; sizes of one name are equal.

As in `{"input_ids": {0: "batch", 1: "length"}}`; files then take any size there. Nested inputs have one entry for all
of their tensors.
"""

Batch: TypeAlias = tuple[Inputs, Any]
"""Inputs and their targets; the first dimension of each tensor counts samples."""

Predict: TypeAlias = Callable[[Inputs], Any]
"""Maps a batch's inputs to outputs, in the form in which the model gives them: a tensor, a tuple, a dict, a dataclass.

A PyTorch module or an exported file, the caller cannot tell which.
"""

N_CALIBRATION_BATCHES = 8
"""How many training batches calibrate quantization unless the task says otherwise."""

MAX_CALIBRATION_BATCHES = 64
"""Most batches of a calibration source with a length that are used; one without a length must end by itself."""

MAX_UNSIZED_BATCHES = 100_000
"""Most batches of a split without a length; beyond, it is taken for one that never ends."""


@runtime_checkable
class Task(Protocol):
    """A trained model, its data and its metric: everything a search has to know about what it compresses.

    A task travels to worker processes by cloudpickle, so it should be light: load data on first use, not in `__init__`.
    A task may also have an attribute `objectives`, which maps keys of `evaluate` to "maximize" or "minimize"; the first
    one is what a search optimises. Without it the first key of `evaluate` is maximised. With a method
    `evaluate_subset(predict, split, n_samples)` short trials are judged on fewer samples.

    Where the model gives several tensors, students are taught by the one that `autocompress.metrics.main_output`
    chooses; a method `taught(outputs)` that returns other ones, in a tuple, replaces that choice. An attribute
    `dynamic_dims` names the dimensions that differ from batch to batch, so that the file takes them: see `DynamicDims`.
    What is timed is always `example_inputs`.
    """

    def build_model(self) -> nn.Module:
        """A fresh copy of the trained model, in eval mode."""

    def example_inputs(self) -> Inputs:
        """Inputs of the shape that is to be fast; their batch size is the one that is timed."""

    def train_batches(self, seed: int) -> Iterable[Batch]:
        """Training batches, the same for the same seed; after the last one callers continue with `seed + 1`."""

    def calibration_batches(self) -> Iterable[Inputs]:
        """A few fixed batches without augmentation, for quantization ranges and batch-norm statistics."""

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The scalar that training minimises on this batch; outputs and batch are on the device that trains."""

    def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        """Figures on the split "selection" (what a search may look at), "test", or a further one of the task's own."""


TASK_METHODS = ("build_model", "example_inputs", "train_batches", "calibration_batches", "loss", "evaluate")


def as_inputs(inputs: object) -> Inputs:
    """Normalises inputs: a bare tensor stands for a tuple of one, a list for a tuple, a mapping for a dict.

    Raises:
        InputError: something in it is neither a tensor nor a list, tuple or dict of tensors, or there is no tensor.
    """
    if isinstance(inputs, Tensor):
        return (inputs,)
    if isinstance(inputs, Mapping) and inputs and all(isinstance(k, str) and _is_nested(v) for k, v in inputs.items()):
        return dict(inputs)
    if isinstance(inputs, tuple | list) and inputs and all(map(_is_nested, inputs)):
        return tuple(inputs)
    raise InputError(
        "inputs must be a tensor, a tuple of tensors or a dict of named tensors, each of which may be a list, tuple or "
        f"dict of tensors in turn, but got {_named_types(inputs)}"
    )


def _is_nested(value: object) -> bool:
    """Whether it is a tensor, or a list, tuple or dict that holds tensors only."""
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return isinstance(value, Tensor) or (bool(items) and all(map(_is_nested, items)))


def _named_types(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_named_types(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of [{', '.join(map(_named_types, value))}]"
    return type(value).__name__


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


def predict_all(predict: Predict, batches: Iterable[Batch]) -> tuple[Any, Any]:
    """Outputs and targets of every batch, joined along the first dimension.

    Raises:
        InputError: there is no batch, or the targets are neither tensors nor dicts of tensors.
    """
    outputs: list[Any] = []
    targets: list[Any] = []
    with torch.no_grad():
        for inputs, target in batches:
            outputs.append(predict(inputs))
            targets.append(target)
    if not outputs:
        raise InputError("a split must have at least one batch to evaluate, but it has none")
    return join(outputs), join(targets)


def first_samples(batches: Iterable[Batch], n_samples: int | None) -> Iterator[Batch]:
    """The first batches, until they hold the number of samples; None gives all."""
    n_seen = 0
    for inputs, targets in batches:
        yield inputs, targets
        n_seen += n_samples_of(inputs)
        if n_samples is not None and n_seen >= n_samples:
            return


class SupervisedTask:
    """A task from a trained model and three sources of `(inputs, targets)` batches: DataLoaders or lists.

    The model is deep-copied, never changed. `train_batches(seed)` iterates `train` once under a private random state,
    so that shuffling and augmentation by torch's generator depend on the seed alone.

    Args:
        model: the trained model.
        train: training batches; can be iterated many times.
        selection: batches that the search judges candidates on.
        test: batches that only the final report sees.
        metric: "accuracy", "perplexity" or "mean_iou"; an object with `update(outputs, targets)` and `compute()`, such
            as torchmetrics' (which say themselves whether larger is better); or `metric(outputs, targets) -> float`,
            larger is better, for which all outputs of a split are kept in memory.
        loss: `loss(outputs, targets) -> scalar tensor`, a mean over samples; by default the cross entropy of classes.
        calibration: batches of inputs; by default the first 8 training batches.
        example_inputs: what is timed; by default the first training sample, batch size 1.
        name: a name for reports.
        max_batches: most batches of one pass over a source; needed where a source never ends.
        dynamic_dims: dimensions in which batches differ, such as the length of texts; None fixes all but the batch.

    Raises:
        InputError: a source can be iterated only once, or `metric` is nothing that judges.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Iterable[Any],
        selection: Iterable[Any],
        test: Iterable[Any],
        *,
        metric: str | Metric | RunningMetric = "accuracy",
        loss: Callable[[Any, Any], Tensor] = cross_entropy,
        calibration: Iterable[Any] | None = None,
        example_inputs: object = None,
        name: str = "task",
        max_batches: int | None = None,
        dynamic_dims: DynamicDims | None = None,
    ) -> None:
        sources = {"train": train, "selection": selection, "test": test, "calibration": calibration}
        for source, batches in sources.items():
            if batches is not None and _is_one_way(batches):
                raise InputError(
                    f"`{source}` must be iterable many times, but got the one-way iterator "
                    f"{type(batches).__name__}; give a DataLoader or a list"
                )
        judges = isinstance(metric, RunningMetric) or callable(metric)
        if metric not in RUNNING if isinstance(metric, str) else isinstance(metric, type) or not judges:
            raise InputError(
                f"`metric` must be one of {sorted(RUNNING)}, an object with `update` and `compute`, or a function of "
                f"(outputs, targets), but got {metric!r}"
            )
        if max_batches is not None and max_batches < 1:
            raise InputError(f"`max_batches >= 1` must hold, but got {max_batches}")
        self.name = name
        self._model = model
        self._train = train
        self._splits = {"selection": selection, "test": test}
        self._metric, self._loss, self._max_batches = metric, loss, max_batches
        self.dynamic_dims = dynamic_dims
        direction = direction_of(metric)
        if direction is not None:
            self.objectives = {name_of(metric): direction}
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
            first: Inputs = part_of(inputs, 0, 1, n_samples_of(inputs))
            return first
        raise InputError("`train` must have at least one batch, but it has none")

    def train_batches(self, seed: int) -> Iterator[Batch]:
        """One pass over `train`; the same batches for the same seed."""
        return map(as_batch, islice(_seeded(self._train, seed), self._max_batches))

    def calibration_batches(self) -> Iterator[Inputs]:
        """The given calibration inputs, or those of the first training batches."""
        if self._calibration is not None:
            bound = MAX_CALIBRATION_BATCHES if _has_length(self._calibration) else None
            return map(as_inputs, islice(self._calibration, self._max_batches or bound))
        return (inputs for inputs, _ in islice(self.train_batches(seed=0), N_CALIBRATION_BATCHES))

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The given loss of outputs and targets."""
        return self._loss(outputs, batch[1])

    def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        """The metric (first key, by its name) and the loss (the mean of the batches', by their samples) of a split.

        Batch by batch, on the device of `predict` where it has one.

        Raises:
            InputError: the split is neither "selection" nor "test", is empty, or has no length and does not end.
        """
        return self._evaluated(predict, split, None)

    def evaluate_subset(self, predict: Predict, split: str, n_samples: int) -> dict[str, float]:
        """As `evaluate`, on the first batches that hold the number of samples."""
        return self._evaluated(predict, split, n_samples)

    def _evaluated(self, predict: Predict, split: str, n_samples: int | None) -> dict[str, float]:
        if split not in self._splits:
            raise InputError(f"`split` must be one of {sorted(self._splits)}, but got {split!r}")
        device = getattr(predict, "device", CPU)
        metric = fresh(self._metric, device)
        losses: list[Tensor] = []
        n_seen = 0
        batches = first_samples(map(as_batch, self._bounded(split)), n_samples)
        with torch.no_grad():
            for inputs, targets in stream_to(batches, device):
                outputs, size = predict(inputs), n_samples_of(inputs)
                metric.update(outputs, targets)
                losses.append(size * torch.as_tensor(self._loss(outputs, targets)).reshape(()))
                n_seen += size
        if not n_seen:
            raise InputError(
                f"a split must have at least one batch to evaluate, but `{split}` has none (now: a source that can be "
                "iterated only once has none the second time)"
            )
        figures = {name_of(self._metric): float(metric.compute())}
        figures.setdefault("loss", float(torch.stack(losses).cpu().double().sum()) / n_seen)
        return figures

    def _bounded(self, split: str) -> Iterator[Any]:
        """The batches of a split.

        Raises:
            InputError: it has no length and does not end within `MAX_UNSIZED_BATCHES`.
        """
        source = self._splits[split]
        sized = self._max_batches is not None or _has_length(source)
        for n_given, batch in enumerate(islice(source, self._max_batches)):
            if n_given == MAX_UNSIZED_BATCHES and not sized:
                raise InputError(
                    f"`{split}` must end, but has no length and gave {n_given} batches; if it never ends, bound it by "
                    "`max_batches`"
                )
            yield batch


def _has_length(source: object) -> bool:
    try:
        len(source)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _is_one_way(source: Iterable[Any]) -> bool:
    """Whether a second pass would continue where the first stopped."""
    if isinstance(source, Iterator):
        return True
    return not isinstance(source, DataLoader) and not _has_length(source) and iter(source) is iter(source)


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
        raise InputError(f"task {spec!r} must import, but {raised_at(error)}") from error


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
        raise InputError(f"task {spec!r} must import, but {raised_at(error, path)}") from error
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
            raise InputError(
                f"{spec!r} must make a task when called without arguments, but {raised_at(error)}"
            ) from error
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


def raised_at(error: BaseException, path: Path | None = None) -> str:
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
