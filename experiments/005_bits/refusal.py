"""The parity refusal: a student is broken after its file was written, and its file is compared with it again."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from autocompress.compression import compress
from autocompress.errors import ExportError
from autocompress.graph import inspect_model
from autocompress.runtimes import check_parity, runtime_named
from autocompress.space.candidate import Candidate
from autocompress.task import load_task

task = load_task("cifar10:resnet20")
model, inputs, calibration = task.build_model(), task.example_inputs(), list(task.calibration_batches())
graph = inspect_model(model, inputs)
bits = {layer.path: 8 for layer in graph.layers}
student = compress(model, Candidate(weight_bits=bits), inputs, calibration, graph=graph)
runtime = runtime_named("onnxruntime")
samples = calibration[0]
assert isinstance(samples, tuple)
checked = (samples[0][:16],)
with tempfile.TemporaryDirectory() as folder:
    file = runtime.export(student, inputs, Path(folder))
    print("as it is:", check_parity(student, runtime.load, file, checked))
    with torch.no_grad():
        layer = student.get_submodule("layer2.1.conv2")
        assert isinstance(layer, nn.Conv2d)
        layer.weight.neg_()
    student.train().eval()
    try:
        check_parity(student, runtime.load, file, checked)
    except ExportError as error:
        print(f"layer2.1.conv2 negated: {type(error).__name__}: {error}")
