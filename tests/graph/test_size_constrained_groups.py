"""Streams that are split and shuffled so often that only certain numbers of channels fit."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compression import resolve
from autocompress.compression.prune import remove_channels_
from autocompress.compression.reconstruct import reconstruct_
from autocompress.errors import CompressionError
from autocompress.graph import ChannelGroup, ModelGraph, inspect_model
from autocompress.graph.size_constrained_groups import SHARES
from autocompress.publishing.artifact import load_student, save_student
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from tests.graph.masking import masked_copy
from tests.graph.nets import randomize, unit

STREAM = "left.0"


class ShuffleUnits(nn.Module):
    """Units in a row as in ShuffleNetV2 (Ma et al. 2018, arXiv:1807.11164): split, convolve one half, join, shuffle."""

    def __init__(self, half: int, n_units: int) -> None:
        super().__init__()
        self.left, self.right = unit(3, half), unit(3, half)
        self.units = nn.ModuleList(unit(half, half, kernel=1) for _ in range(n_units))
        self.tail, self.head = unit(2 * half, 6, kernel=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = shuffle(torch.cat([self.left(x), self.right(x)], dim=1))
        for block in self.units:
            first, second = x.chunk(2, dim=1)
            x = shuffle(torch.cat([first, block(second)], dim=1))
        return self.head(self.tail(x).mean((2, 3)))


def shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def lives(half: int, n_units: int) -> Counter[tuple[str, int]]:
    """How many channels are made where and first read in which unit, by following each position by hand.

    A channel at position p of the first half goes to 2p, one of the second half is read and replaced by a new one.
    """
    stream = [("left" if p % 2 == 0 else "right") for p in range(2 * half)]
    counts: Counter[tuple[str, int]] = Counter()
    for number in range(n_units):
        counts.update((maker, number) for maker in stream[half:])
        stream = [stream[p // 2] if p % 2 == 0 else f"unit {number}" for p in range(2 * half)]
    counts.update((maker, n_units) for maker in stream)
    return counts


def stuck_group(graph: ModelGraph) -> ChannelGroup | None:
    return next((group for group in graph.groups if group.sizes), None)


@settings(max_examples=4, deadline=None)
@given(half=st.integers(3, 20), n_units=st.integers(2, 5), seed=st.integers(0, 1000))
def test_every_size_gives_the_masked_model_and_no_possible_size_is_missed(half: int, n_units: int, seed: int) -> None:
    model, x = randomize(ShuffleUnits(half, n_units), seed).eval(), torch.rand(2, 3, 4, 4)
    graph = inspect_model(model, x)
    group = stuck_group(graph)
    if group is None:  # whole units of 2^k slots go together
        assert half % 2**n_units == 0 or any(item.name == STREAM for item in graph.groups)
        return
    sizes = dict.fromkeys(max(1, int(half * share)) for share in SHARES)
    assert list(group.sizes) == [size for size in sizes if lives(size, n_units) <= lives(half, n_units)]
    for size in group.sizes:
        removed = {group.name: range(half - size)}
        pruned = copy.deepcopy(model)
        remove_channels_(pruned, graph, removed)
        assert pruned.units[0][0].weight.shape[:2] == (size, size)
        assert pruned.tail[0].in_channels == 2 * size
        masked = masked_copy(model, graph, removed)
        with torch.no_grad():
            assert (pruned(x) - masked(x)).abs().max() <= 1e-5


@pytest.fixture(scope="module")
def shuffled() -> tuple[nn.Module, Tensor, ModelGraph]:
    model, x = randomize(ShuffleUnits(13, 3)).eval(), torch.rand(4, 3, 4, 4)
    return model, x, inspect_model(model, x)


def test_ratios_become_the_nearest_size_and_others_are_refused(shuffled: tuple[nn.Module, Tensor, ModelGraph]) -> None:
    model, _, graph = shuffled
    group = stuck_group(graph)
    assert group is not None and group.name == STREAM and group.n_channels == 13
    assert [item.name for item in graph.groups] == [STREAM, "tail.0"]  # network order
    assert 9 in group.sizes and not any(item.what == "channels" and item.name == STREAM for item in graph.frozen)
    assert resolve(model, graph, Candidate({STREAM: 0.33})).removed == {STREAM: (0, 1, 2, 3)}
    space = SearchSpace.from_rules(graph, [{"match": STREAM, "prune_ratio": [0.0, 0.25, 0.5]}])
    (knob,) = (knob for knob in space.knobs if knob.kind == "prune_ratio" and knob.target == STREAM)
    assert {13 - round(choice * 13) for choice in knob.choices} <= {13, *group.sizes}  # type: ignore[operator]
    for wrong in ([1, 2, 3, 4], [0, 1]):
        with pytest.raises(CompressionError, match=r"goes by number: it can be cut to \[10, 9, 7"):
            remove_channels_(copy.deepcopy(model), graph, {STREAM: wrong})


def test_the_order_is_found_again_from_the_manifest(
    shuffled: tuple[nn.Module, Tensor, ModelGraph], tmp_path: Path
) -> None:
    model, x, graph = shuffled
    recipe = resolve(model, graph, Candidate({STREAM: 0.3}))
    student = copy.deepcopy(model)
    remove_channels_(student, graph, recipe.removed)
    save_student(tmp_path, student, recipe)
    loaded, _ = load_student(tmp_path, model, inspect_model(model, x))
    torch.testing.assert_close(loaded(x), student(x), atol=0, rtol=0)
    torch.testing.assert_close(torch.export.export(student, (x,)).module()(x), student(x), atol=1e-5, rtol=1e-4)


def test_a_refit_finds_what_the_removed_channels_did_not_add(shuffled: tuple[nn.Module, Tensor, ModelGraph]) -> None:
    original, x, graph = shuffled
    removed = {STREAM: range(4)}
    model = copy.deepcopy(original)
    for coupling in graph.group(STREAM).couplings:  # the channels that go are dead
        if coupling.tensor.endswith(("0.weight", "1.weight", "1.bias")) and coupling.dim == 0:
            gone = torch.tensor(sorted(graph.group(STREAM).gone(coupling, removed[STREAM])))
            model.state_dict()[coupling.tensor].index_fill_(0, gone, 0.0)
    student = copy.deepcopy(model)
    remove_channels_(student, graph, removed)
    reconstruct_(student, model, graph, removed, [(x,)])
    torch.testing.assert_close(student(x), model(x), atol=1e-3, rtol=1e-3)


def test_a_stream_that_is_also_cut_unevenly_stays(shuffled: tuple[nn.Module, Tensor, ModelGraph]) -> None:
    class Uneven(ShuffleUnits):
        def forward(self, x: Tensor) -> Tensor:
            x = shuffle(torch.cat([self.left(x), self.right(x)], dim=1))
            for block in self.units:
                first, second = x.chunk(2, dim=1)
                x = shuffle(torch.cat([first, block(second)], dim=1))
            first, second = x.split([5, 21], dim=1)
            return self.head(self.tail(torch.cat([second, first], dim=1)).mean((2, 3)))

    graph = inspect_model(randomize(Uneven(13, 3)).eval(), torch.rand(2, 3, 4, 4))
    assert stuck_group(graph) is None
    assert any(item.name == STREAM and "unequal parts [5, 21]" in item.reason for item in graph.frozen)
