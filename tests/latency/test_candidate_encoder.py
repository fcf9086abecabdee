"""Candidates resolved as arrays are the models that `compress` makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from autocompress.compression import rebuild, resolve
from autocompress.errors import InputError
from autocompress.graph import inspect_model
from autocompress.latency.candidate_encoder import Encoder, ModelShape
from autocompress.latency.layer_profiles import describe_model
from autocompress.space.candidate import PRECISIONS, Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.tasks.voice_lstm import SpokenDigitNet, VoiceLstmTask
from tests.latency.nets import net


def test_states_are_those_of_the_compressed_model() -> None:
    model, graph, space, shape = net()
    candidates = [space.sample(i) for i in range(25)]
    states = Encoder(shape).states(candidates)
    for i, candidate in enumerate(candidates):
        recipe = resolve(model, graph, candidate)
        student = rebuild(model, graph, recipe)
        modules = dict(student.named_modules())
        for j, layer in enumerate(graph.layers):
            assert states.alive[i, j] == (layer.path in modules)
            if not states.alive[i, j]:
                continue
            module = modules[layer.path]
            parts = list(module) if isinstance(module, nn.Sequential) else [module]
            assert states.n_in[i, j] == parts[0].weight.shape[1]
            assert states.n_out[i, j] == parts[-1].weight.shape[0]
            assert PRECISIONS[states.bits[i, j]] == recipe.bits.get(layer.path, 32)


def test_recurrent_layers_count_their_hidden_units() -> None:
    model = SpokenDigitNet().eval()
    inputs = VoiceLstmTask().example_inputs()
    graph = inspect_model(model, inputs)
    shape = describe_model(model, graph, inputs)
    space = SearchSpace.load("voice_lstm", graph)
    candidate = space.candidate({"prune_ratio:lstm0": 0.5, "prune_ratio:lstm2": 0.25})
    states = Encoder(shape).states([candidate])
    assert states.n_out[0].tolist() == [128, 256, 192, 10]
    assert states.n_in[0].tolist() == [40, 128, 256, 192]


def test_shape_round_trip_and_unknown_names() -> None:
    shape = net()[3]
    assert ModelShape.from_dict(shape.to_dict()) == shape
    with pytest.raises(InputError, match="profiled model, which has no 'nothing'"):
        Encoder(shape).states([Candidate(weight_bits={"nothing": 8})])


def test_equal_layers_have_equal_signatures() -> None:
    shape = net()[3]
    by_path = {layer.path: layer.signature for layer in shape.layers}
    assert by_path["blocks.0.conv1"] == by_path["blocks.2.conv1"]
    assert by_path["blocks.0.conv1"] != by_path["blocks.0.conv2"], "only one has a ReLU right behind it"
    assert np.all([layer.n_macs > 0 for layer in shape.layers])
