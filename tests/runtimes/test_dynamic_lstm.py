"""8-bit LSTMs in ONNX Runtime: its own kernel, each size and direction, near the student that rounds weights only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.runtimes import check_parity, runtime_named
from autocompress.runtimes.onnxruntime_backend import OnnxRuntimeCuda
from autocompress.space.candidate import Candidate


class Net(nn.Module):
    """A recurrent layer and a classifier of its last step."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        width = layer.hidden_size * (2 if layer.bidirectional else 1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def student_of(layer: nn.RNNBase, half_range: bool = True) -> tuple[nn.Module, tuple[Tensor]]:
    net = Net(layer).eval()
    x = (torch.randn(1, 12, layer.input_size),)
    batches = [(torch.randn(8, 12, layer.input_size),)]
    student = compress(net, Candidate(weight_bits={"layer": 8}), x, batches, half_range_weights=half_range)
    return student, x


def ops_of(file: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(file).graph.node)


@pytest.mark.parametrize("size", [8, 192])  # the exporter writes small weights as constants, large ones with nodes
@pytest.mark.parametrize("n_levels", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_file_has_the_engines_kernel_and_gives_what_the_student_gives(
    size: int, n_levels: int, bidirectional: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(size, size, n_levels, batch_first=True, bidirectional=bidirectional)
    student, x = student_of(layer)
    runtime = runtime_named("onnxruntime")
    file = runtime.export(student, x, tmp_path)
    ops = ops_of(file)
    assert ops["DynamicQuantizeLSTM"] == n_levels and not ops["LSTM"]
    assert check_parity(student, runtime.load, file, x).relative_error < 0.03


def test_the_codes_are_the_weights_in_the_files_order_of_gates(tmp_path: Path) -> None:
    layer = nn.LSTM(6, 4, batch_first=True)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.arange(16.0)[:, None] + 1 + torch.arange(6.0))
    student, x = student_of(layer)
    graph = onnx.load(runtime_named("onnxruntime").export(student, x, tmp_path)).graph
    node = next(node for node in graph.node if node.op_type == "DynamicQuantizeLSTM")
    values = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    codes, scales = values[node.input[1]], values[node.input[8]]
    assert codes.shape == (1, 6, 16) and codes.dtype.name == "int8" and abs(codes).max() <= 63
    input_, forget, cell, output = torch.arange(16.0).reshape(
        4, 4
    )  # torch's order; ONNX has input, output, forget, cell
    rows = torch.cat([input_, output, forget, cell])[None, :] + 1 + torch.arange(6.0)[:, None]
    torch.testing.assert_close(torch.from_numpy(codes[0] * scales[0]), rows, atol=0.2, rtol=0.01)


def test_other_layers_and_other_devices_keep_the_plain_form(tmp_path: Path) -> None:
    (tmp_path / "gru").mkdir(), (tmp_path / "cuda").mkdir()
    student, x = student_of(nn.GRU(8, 8, batch_first=True))
    assert ops_of(runtime_named("onnxruntime").export(student, x, tmp_path / "gru"))["GRU"] == 1
    student, x = student_of(nn.LSTM(8, 8, batch_first=True))
    assert ops_of(OnnxRuntimeCuda().export(student, x, tmp_path / "cuda"))["LSTM"] == 1


def test_it_is_said_what_is_executed() -> None:
    (eight,) = [item for item in runtime_named("onnxruntime").capabilities() if item.precision == 8]
    assert "lstm" in eight.kernels and "gru" not in eight.kernels
