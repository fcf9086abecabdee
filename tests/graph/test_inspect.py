from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.graph import ModelGraph, inspect_model
from tests.graph.nets import CNNS, PlainNet, conv_resnet, pad_resnet, randomize, unit


def describe(graph: ModelGraph) -> str:
    """Groups and frozen parts as text, one line each."""
    lines = []
    for group in graph.groups:
        places = " ".join(f"{item.tensor}:{item.dim}" for item in group.couplings if "bn" not in item.tensor)
        lines.append(f"{group.name} x{group.n_channels}: {places}")
    lines += [f"frozen {item.what} {item.name}: {item.reason}" for item in graph.frozen]
    return "\n".join(lines) + "\n"


PAD_RESNET = """\
stem.0 x8: stem.0.weight:0 blocks.0.conv2.weight:0 blocks.1.conv2.weight:0 blocks.2.conv2.weight:0 stem.1.weight:0 \
stem.1.bias:0 stem.1.running_mean:0 stem.1.running_var:0 blocks.0.conv1.weight:1 blocks.1.conv1.weight:1 \
blocks.2.conv1.weight:1 head.weight:1
blocks.0.conv1 x8: blocks.0.conv1.weight:0 blocks.0.conv2.weight:1
blocks.1.conv1 x16: blocks.1.conv1.weight:0 blocks.1.conv2.weight:1
blocks.2.conv1 x16: blocks.2.conv1.weight:0 blocks.2.conv2.weight:1
frozen channels blocks.1.conv2: 8 of its 16 channels: is padded with 4 constant channels by aten.pad.default, a width \
that the model fixes
frozen channels head: is an output of the model
"""


def test_groups_of_a_padded_residual_net_are_those_written_down() -> None:
    graph = inspect_model(pad_resnet(), torch.randn(2, 3, 8, 8))
    assert describe(graph) == PAD_RESNET


def test_a_padded_stream_moves_its_channels_by_the_pad() -> None:
    group = inspect_model(pad_resnet(), torch.randn(2, 3, 8, 8)).group("stem.0")
    slots = {(item.tensor, item.dim): item.slots for item in group.couplings}
    assert slots["stem.0.weight", 0][5] == (5,)
    assert slots["blocks.2.conv2.weight", 0][5] == (9,)
    assert slots["head.weight", 1][5] == (9,)


def test_producers_and_consumers_are_layers_in_network_order() -> None:
    graph = inspect_model(conv_resnet(), torch.randn(2, 3, 8, 8))
    group = graph.group("blocks.1.conv2")
    assert group.producers == ("blocks.1.conv2", "blocks.1.shortcut.0", "blocks.2.conv2")
    assert group.consumers == ("blocks.2.conv1", "head")


@pytest.mark.parametrize("name", CNNS)
def test_the_model_is_left_as_it_was(name: str) -> None:
    make, size = CNNS[name]
    model = make().train()
    next(model.children()).eval()
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    identities = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    random_state = torch.get_rng_state()
    inspect_model(model, torch.ones(2, *size))
    assert modes == [module.training for module in model.modules()]
    assert identities == [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())


def test_layers_carry_sizes_work_and_readers() -> None:
    model = PlainNet()
    graph = inspect_model(model, torch.randn(5, 1, 8, 8))
    conv = graph.layer("features.2.0")
    assert conv.kind == "conv2d"
    assert conv.weight_shape == (12, 8, 3, 3)
    assert conv.n_params == 12 * 8 * 9
    assert conv.n_macs == 12 * 8 * 9 * 16
    assert (conv.norm, conv.relu, conv.feeds, conv.feeds_only_layers) == ("features.2.1", True, ("hidden",), True)
    hidden = graph.layer("hidden")
    assert (hidden.norm, hidden.relu, hidden.feeds, hidden.feeds_only_layers) == (None, False, (), False)
    assert hidden.n_params == 48 * 10 + 10
    assert graph.n_params == sum(parameter.numel() for parameter in model.parameters())
    assert graph.n_macs == sum(layer.n_macs for layer in graph.layers)
    assert [layer.path for layer in graph.layers] == ["features.0.0", "features.2.0", "hidden", "head"]


def test_residual_reads_make_a_layer_feed_more_than_layers() -> None:
    graph = inspect_model(conv_resnet(), torch.randn(1, 3, 8, 8))
    assert graph.layer("blocks.0.conv1").feeds == ("blocks.0.conv2",)
    assert graph.layer("blocks.0.conv1").feeds_only_layers
    assert graph.layer("stem.0").feeds == ("blocks.0.conv1",)
    assert not graph.layer("stem.0").feeds_only_layers
    assert not graph.layer("blocks.0.conv2").feeds_only_layers


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(
            F.relu(self.second(torch.linalg.matrix_exp(self.first(x).unsqueeze(1) * torch.ones(6, 1)).sum(1)))
        )


def test_an_op_without_a_rule_freezes_what_touches_it_and_names_itself() -> None:
    graph = inspect_model(Unknown(), torch.randn(2, 4))
    reasons = {item.name: item.reason for item in graph.frozen}
    assert "linalg_matrix_exp" in reasons["first"]
    assert "no rule" in reasons["first"]
    assert [group.name for group in graph.groups] == ["second"]


class Literal(nn.Module):
    """Flattens to a size that only fits the unpruned model; the second layer is fine."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.conv(x), 1).view(-1, 8)
        return self.head(F.relu(self.hidden(x)))


def test_a_size_written_into_the_forward_is_found_by_running_a_pruned_copy() -> None:
    graph = inspect_model(Literal(), torch.randn(8, 3, 8, 8))
    assert [group.name for group in graph.groups] == ["hidden"]
    frozen = next(item for item in graph.frozen if item.name == "conv")
    assert "a pruned copy" in frozen.reason


def test_without_verify_the_literal_size_is_not_found() -> None:
    graph = inspect_model(Literal(), torch.randn(8, 3, 8, 8), verify=False)
    assert [group.name for group in graph.groups] == ["conv", "hidden"]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.again(F.relu(self.again(F.relu(self.stem(x)))))))


def test_a_layer_called_twice_couples_its_input_and_output_and_is_no_layer() -> None:
    graph = inspect_model(Twice(), torch.randn(2, 4))
    assert [layer.path for layer in graph.layers] == ["stem", "head"]
    assert [(item.name, item.reason) for item in graph.frozen if item.what == "layer"] == [
        ("again", "it is called 2 times")
    ]
    places = [(item.tensor, item.dim) for item in graph.group("stem").couplings]
    assert ("again.weight", 0) in places
    assert ("again.weight", 1) in places
    assert not graph.layer("stem").feeds_only_layers


class Tied(nn.Module):
    """A language model's habit: the head's weight is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.middle, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.gelu(self.middle(self.embedding(ids))))


def test_a_tied_weight_couples_both_users_and_freezes_the_layer() -> None:
    graph = inspect_model(Tied(), torch.randint(0, 11, (2, 5)))
    assert [layer.path for layer in graph.layers] == ["middle"]
    frozen = {item.name: item.reason for item in graph.frozen if item.what == "layer"}
    assert "head.weight" in frozen["embedding"]
    assert "embedding.weight" in frozen["head"]
    group = graph.group("embedding")
    assert {(item.tensor, item.dim) for item in group.couplings} == {
        ("embedding.weight", 1),
        ("middle.weight", 0),
        ("middle.weight", 1),
        ("middle.bias", 0),
    }


class Branching(nn.Module):
    """Control flow that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.sum() > 0:
            x = -x
        return self.second(self.second(self.first(x[:, :4]))[:, :1].expand(-1, 6))


def test_a_model_that_cannot_be_traced_keeps_its_layers_and_says_which_line_broke_it() -> None:
    graph = inspect_model(Branching(), torch.randn(2, 4))
    assert graph.groups == ()
    assert graph.branches == ()
    assert graph.layers == ()
    reason = next(item.reason for item in graph.frozen if item.what == "channels")
    assert "if x.sum() > 0:" in reason
    assert "test_inspect.py" in reason
    assert {item.name for item in graph.frozen if item.what == "layer"} == {"first", "second"}


def test_layers_of_an_untraceable_model_are_seen_by_hooks() -> None:
    class Simple(Branching):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second(x) if x.sum() > 0 else self.second(-x)

    graph = inspect_model(Simple().train(), torch.randn(3, 4))
    assert [(layer.path, layer.n_macs, layer.norm, layer.feeds_only_layers) for layer in graph.layers] == [
        ("first", 24, None, False),
        ("second", 12, None, False),
    ]


def test_a_model_that_fails_on_its_example_inputs_is_an_input_error() -> None:
    with pytest.raises(InputError, match="must run on its example inputs"):
        inspect_model(nn.Linear(4, 2), torch.randn(3, 5))


class Edits(nn.Module):
    """In-place edits of a view: half of the channels are doubled where they lie."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = unit(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x[:, 0] += 1.0
        return self.head(x.mean((2, 3)))


def test_an_in_place_edit_of_a_picked_channel_is_frozen() -> None:
    graph = inspect_model(randomize(Edits()), torch.randn(2, 3, 8, 8))
    assert graph.groups == ()
    assert "stem.0" in {item.name for item in graph.frozen}


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 6), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(a) * self.right(b)))


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_inputs_by_keyword_tuple_or_bare_tensor(order: tuple[str, str]) -> None:
    tensors = {"a": torch.randn(2, 4), "b": torch.randn(2, 5)}
    by_name = inspect_model(Keywords(), {name: tensors[name] for name in order})
    by_place = inspect_model(Keywords(), (tensors["a"], tensors["b"]))
    assert by_name == by_place
    assert [group.name for group in by_name.groups] == ["left"]


def test_inspecting_does_not_need_a_gradient_and_sees_modes_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)).train()
    with torch.no_grad():
        graph = inspect_model(model, torch.randn(2, 4))
    assert [group.name for group in graph.groups] == ["0"]
    assert model.training
    assert graph.layer("0").feeds_only_layers is False or graph.layer("0").feeds == ("3",)
