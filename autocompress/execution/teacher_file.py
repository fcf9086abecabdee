"""The teacher in an inference engine, where that computes training batches faster than torch does."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from autocompress.devices import tensors_in
from autocompress.distillation.fine_tune import training_batches
from autocompress.distillation.teacher import Teacher
from autocompress.errors import AutocompressError
from autocompress.locked_temp_dir import LockedTempDir
from autocompress.runtimes import check_parity, runtime_named, session_predict
from autocompress.search_context import SearchContext, device_here, threads_of
from autocompress.task import Predict
from autocompress.task_access import examples_of

_ENGINE = "onnxruntime"
_LEAST_SECONDS = 0.02  # of torch's forward pass; below, a training step spends its time elsewhere
_LEAST_GAIN = 1.15  # times as fast as torch; less is not worth the file
_LARGEST_BYTES = 512 * 2**20  # of weights: each worker has one more copy of them
_N_TIMED = 3


def teacher_file(context: SearchContext) -> bytes | None:
    """The uncompressed model's file for batches of the fine-tune; None where torch is to be asked.

    That is on accelerators, for intermediate features, for batches of varying shape, where the engine cannot run the
    model, and where torch is as fast or needs hardly any time.
    """
    settings = context.settings
    distill = settings.distill
    is_taught = distill.alpha > 0 and distill.teacher_loss != "none" and distill.rungs[-1] > 0
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in context.model.state_dict().values())
    if not is_taught or distill.feature_layers or n_bytes > _LARGEST_BYTES or device_here(settings).type != "cpu":
        return None
    n_threads, before = threads_of(settings), torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with LockedTempDir() as temp_dir:
            (inputs, _), (others, _) = islice(training_batches(context.task), 2)
            if [x.shape[1:] for x in tensors_in(inputs)] != [x.shape[1:] for x in tensors_in(others)]:
                return None
            teacher = Teacher(context.model)
            seconds = _seconds(lambda: teacher.run(inputs))
            if seconds < _LEAST_SECONDS:
                return None
            runtime = runtime_named(_ENGINE)
            file = runtime.export(context.model, inputs, temp_dir.path)
            check_parity(context.model, runtime.load, file, inputs)
            engine = load_teacher(file, context)
            return file.read_bytes() if seconds > _LEAST_GAIN * _seconds(lambda: engine(inputs)) else None
    except (AutocompressError, RuntimeError):  # also torch's, of ops that cannot be traced at this shape
        return None
    finally:
        torch.set_num_threads(before)


def load_teacher(file: Path, context: SearchContext) -> Predict:
    """What maps the inputs of a training batch to the uncompressed model's outputs, from a file of `teacher_file`."""
    session = runtime_named(_ENGINE).load(file, threads_of(context.settings))
    return session_predict(session, lambda: context.model, examples_of(context.task))


def _seconds(call: Callable[[], Any]) -> float:
    """Of one call, on average, after one to warm up."""
    call()
    begin = time.perf_counter()
    for _ in range(_N_TIMED):
        call()
    return (time.perf_counter() - begin) / _N_TIMED
