"""What a user would pick instead of a search: other precisions, a smaller sibling, a cut of the depth."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from autocompress.compression import compress
from autocompress.config import DistillSettings
from autocompress.distillation.fine_tune import FineTune, Teacher
from autocompress.graph import inspect_model
from autocompress.publishing.engine_peer import single_samples
from autocompress.runtimes import runtime_named, saturates
from autocompress.runtimes.engine_int8 import quantize_dynamic_with_engine, quantize_with_engine
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.task import Task, as_inputs, load_task

N_CALIBRATION = 256
_TIMED_STEPS = 5

Way = Mapping[str, float]


def precisions(name: str, model: nn.Module, task: Task, runtime: str, folder: Path) -> dict[str, Path]:
    """The model's files in each precision of the runtime's own tools, by name."""
    engine, inputs = runtime_named(runtime), as_inputs(task.example_inputs())
    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    plain = engine.export(model.eval(), inputs, home)
    files = {f"{name}, float": plain}
    suffix = ".xml" if runtime == "openvino" else ".onnx"
    reduce_range = saturates(engine)
    static = home / f"int8{suffix}"
    if not static.exists():
        quantize_with_engine(runtime, plain, static, list(islice(single_samples(task), N_CALIBRATION)), reduce_range)
    files[f"{name}, int8 of the engine's tool"] = static
    if runtime == "onnxruntime" and not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        dynamic = home / "dynamic.onnx"
        if not dynamic.exists():
            quantize_dynamic_with_engine(plain, dynamic, reduce_range)
        files[f"{name}, dynamic int8"] = dynamic
    return files


def trained_peer(task: Task, way: Way, minutes: float, file: Path) -> nn.Module:
    """The model made smaller in a simple way, then distilled.

    Args:
        task: of the model.
        way: see `smaller`.
        minutes: CPU time of one core.
        file: of the trained weights; kept, and read if it is there.
    """
    torch.set_num_threads(1)
    model = task.build_model().eval()
    student = smaller(model, task, way)
    if file.exists():
        student.load_state_dict(torch.load(file, weights_only=True))
        return student.eval()
    begin = time.process_time()
    trial = FineTune(smaller(model, task, way), Teacher(model), task, DistillSettings(rungs=(0, 10_000)))
    trial.advance(_TIMED_STEPS)
    timed = time.process_time()
    trial.advance(2 * _TIMED_STEPS)
    steps = max(1, int((60 * minutes - (time.process_time() - begin)) / ((time.process_time() - timed) / _TIMED_STEPS)))
    FineTune(student, Teacher(model), task, DistillSettings(rungs=(0, steps))).advance(steps)
    torch.save(student.state_dict(), file)
    return student.eval()


def smaller(model: nn.Module, task: Task, way: Way) -> nn.Module:
    """A copy without a share of its residual blocks, evenly spread over the depth, or of the channels of each group.

    Args:
        model: not touched.
        task: of the model.
        way: `{"depth": 0.4}` drops 40 % of the blocks, `{"width": 0.5}` half of the channels of each group.
    """
    inputs = as_inputs(task.example_inputs())
    graph = inspect_model(model, inputs)
    ((kind, share),) = way.items()
    if kind == "depth":
        names = [branch.name for branch in graph.branches]
        n_gone = round(share * len(names))
        candidate = Candidate(drop=frozenset(names[int((i + 0.5) * len(names) / n_gone)] for i in range(n_gone)))
    else:
        space = SearchSpace.from_rules(graph, [{"match": "re:.*", "prune_ratio": [0.0, share]}])
        candidate = space.uniform(prune_ratio=share)
    calibration = [as_inputs(batch) for batch in task.calibration_batches()]
    return compress(model, candidate, inputs, calibration, graph=graph)


def sibling_of(spec: str) -> tuple[nn.Module, Task]:
    """A published smaller model with its own task."""
    task = load_task(spec)
    return task.build_model().eval(), task
