from __future__ import annotations

import copy
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from autocompress.compression.prune import remove_channels_
from autocompress.errors import CompressionError
from autocompress.graph import ModelGraph, inspect_model
from tests.graph.masking import some_channels
from tests.graph.nets import CNNS, PlainNet, pad_resnet, randomize


@pytest.fixture(scope="module")
def plain() -> tuple[nn.Module, ModelGraph]:
    model = randomize(PlainNet())
    return model, inspect_model(model, torch.randn(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"nowhere": [0]}, "no channel group is named 'nowhere'"),
        ({"hidden": [10]}, r"channels of 'hidden' are 0 to 9, but got \[10\]"),
        ({"hidden": [-1]}, r"but got \[-1\]"),
        ({"hidden": range(10)}, "all 10 channels of 'hidden' would be removed"),
        ({"features.0.0": [1], "hidden": [99]}, "hidden"),
    ],
)
def test_a_wrong_request_is_refused_and_changes_nothing(
    plain: tuple[nn.Module, ModelGraph], removed: dict[str, list[int]], message: str
) -> None:
    model, graph = plain
    shapes = [parameter.shape for parameter in model.parameters()]
    with pytest.raises(CompressionError, match=message):
        remove_channels_(model, graph, removed)
    assert shapes == [parameter.shape for parameter in model.parameters()]


def test_a_model_pruned_before_is_refused(plain: tuple[nn.Module, ModelGraph]) -> None:
    model, graph = copy.deepcopy(plain[0]), plain[1]
    remove_channels_(model, graph, {"hidden": [9]})
    with pytest.raises(CompressionError, match="from a model of the original shapes"):
        remove_channels_(model, graph, {"hidden": [0]})


def test_nothing_to_remove_changes_nothing(plain: tuple[nn.Module, ModelGraph]) -> None:
    model, graph = copy.deepcopy(plain[0]), plain[1]
    remove_channels_(model, graph, {"hidden": [], "features.0.0": ()})
    assert [p.shape for p in model.parameters()] == [p.shape for p in plain[0].parameters()]


def test_tensors_keep_their_kind_and_layers_their_attributes() -> None:
    model = pad_resnet().half()
    graph = inspect_model(copy.deepcopy(model).float(), torch.randn(1, 3, 8, 8))
    model.stem[0].weight.requires_grad_(False)
    remove_channels_(model, graph, {"stem.0": [0, 3], "blocks.1.conv1": [1]})
    weight = model.stem[0].weight
    assert isinstance(weight, nn.Parameter)
    assert (weight.dtype, weight.requires_grad, tuple(weight.shape)) == (torch.float16, False, (6, 3, 3, 3))
    assert (model.stem[0].out_channels, model.stem[1].num_features) == (6, 6)
    assert (model.blocks[0].conv1.in_channels, model.blocks[1].conv1.out_channels) == (6, 15)
    assert model.head.in_features == 14
    assert model.blocks[1].conv2.weight.requires_grad
    assert tuple(model.stem[1].running_var.shape) == (6,)


@pytest.mark.parametrize("name", CNNS)
def test_a_pruned_model_trains_copies_saves_and_exports(name: str) -> None:
    make, size = CNNS[name]
    model, x = make(), torch.rand(4, *size)
    graph = inspect_model(model, x)
    remove_channels_(model, graph, some_channels(graph, 0.4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    model.eval()
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    expected = model(x)
    torch.testing.assert_close(twin(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["pad_resnet", "mobilenet", "shufflenet"])
def test_a_pruned_model_runs_as_onnx(name: str) -> None:
    make, size = CNNS[name]
    model, x = randomize(make()).eval(), torch.rand(2, *size)
    graph = inspect_model(model, x)
    remove_channels_(model, graph, some_channels(graph, 0.4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.onnx itself warns of its own deprecations
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-5, rtol=1e-4)
