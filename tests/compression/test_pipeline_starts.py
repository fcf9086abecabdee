"""A candidate starts from the weights that give it the smallest loss, and keeps what its parent learned."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from autocompress.compression import CalibrationStats, compress, resolve
from autocompress.compression.pipeline import (
    UNCOMPRESSED,
    Parent,
    Rebuilding,
    best_of,
    mean_loss,
    n_different,
    student_from,
)
from autocompress.graph import ModelGraph, inspect_model
from autocompress.space.candidate import Candidate
from autocompress.task import Batch
from autocompress.tasks.digits import DigitsNet
from tests.compression.test_inherit import outputs, trained, weights
from tests.graph.nets import randomize

INPUTS = (torch.rand(16, 1, 16, 16, generator=torch.Generator().manual_seed(1)),)


@pytest.fixture(scope="module")
def whole() -> Parent:
    torch.manual_seed(0)
    return Parent(UNCOMPRESSED, randomize(DigitsNet()).eval())


@pytest.fixture(scope="module")
def how(whole: Parent) -> Rebuilding:
    return Rebuilding(inspect_model(whole.model, INPUTS), [INPUTS])


def candidate(graph: ModelGraph, share: float, n_dropped: int = 0) -> Candidate:
    return Candidate(
        drop=frozenset(branch.name for branch in graph.branches[:n_dropped]),
        prune_ratio={group.name: share for group in graph.groups},
    )


def after_training(whole: Parent, how: Rebuilding, asked: Candidate, name: str = "trial 1") -> tuple[nn.Module, Parent]:
    recipe = resolve(whole.model, how.graph, asked)
    student = trained(student_from(whole, recipe, how))
    return student, Parent.trained(name, student, recipe, whole, how.graph)


@pytest.mark.parametrize("n_dropped", [0, 2])
def test_the_same_candidate_starts_where_its_parent_ended_although_it_is_refitted(
    whole: Parent, how: Rebuilding, n_dropped: int
) -> None:
    """The refit aims at what the parent gives, so that there is nothing to refit."""
    asked = candidate(how.graph, 0.5, n_dropped)
    student, parent = after_training(whole, how, asked)
    again = student_from(parent, resolve(whole.model, how.graph, asked), how)
    for path, tensor in weights(again).items():
        if "running" not in path and "num_batches" not in path:  # statistics are estimated anew
            torch.testing.assert_close(tensor, weights(student)[path], atol=1e-5, rtol=1e-4)


def test_the_uncompressed_parent_gives_what_compress_gives(whole: Parent, how: Rebuilding) -> None:
    asked = candidate(how.graph, 0.25)
    expected = compress(whole.model, asked, INPUTS, [INPUTS], graph=how.graph)
    found = student_from(whole, resolve(whole.model, how.graph, asked), how)
    assert torch.equal(outputs(found, INPUTS), outputs(expected, INPUTS))


def test_parents_are_left_as_they_are(whole: Parent, how: Rebuilding) -> None:
    _, parent = after_training(whole, how, candidate(how.graph, 0.25, 1))
    before = copy.deepcopy(parent.model.state_dict())
    student_from(parent, resolve(whole.model, how.graph, candidate(how.graph, 0.5, 2)), how)
    after = parent.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("wanted", [UNCOMPRESSED, "trial 1"])
def test_the_smallest_loss_wins(whole: Parent, how: Rebuilding, wanted: str) -> None:
    """The wanted student's own outputs are the targets, so that only its loss is near zero."""
    _, other = after_training(whole, how, candidate(how.graph, 0.25))
    recipe = resolve(whole.model, how.graph, candidate(how.graph, 0.5))
    starts = {parent.name: student_from(parent, recipe, how) for parent in (whole, other)}
    target = outputs(starts[wanted], INPUTS)

    def loss(given: Tensor, batch: Batch) -> Tensor:
        return (given - batch[1]).square().mean()

    assert best_of(starts, loss, [(INPUTS, target)]) == wanted
    assert mean_loss(starts[wanted], loss, [(INPUTS, target)]) < 1e-9
    assert mean_loss(starts[wanted], loss, [(INPUTS, target), (INPUTS, target + 2.0)]) == pytest.approx(2.0)


def test_a_loss_that_is_not_finite_never_wins(whole: Parent, how: Rebuilding) -> None:
    broken = copy.deepcopy(whole.model)
    with torch.no_grad():
        broken.get_parameter("linear.bias").fill_(float("nan"))
    recipe = resolve(whole.model, how.graph, Candidate())
    starts = {parent.name: student_from(parent, recipe, how) for parent in (Parent("broken", broken), whole)}
    assert best_of(starts, lambda given, _: given.square().mean(), [(INPUTS, None)]) == UNCOMPRESSED


def test_split_layers_follow_the_parent(whole: Parent, how: Rebuilding) -> None:
    """Factors come from the parent's weights, and from what its layers read."""
    layer = how.graph.layer("conv2")
    asked = Candidate(rank_ratio={layer.path: 0.5})
    dropped = candidate(how.graph, 0.0, 1)
    _, parent = after_training(whole, how, dropped)
    recipe = resolve(
        whole.model, how.graph, asked, calibration_stats=CalibrationStats(whole.model, how.graph, [INPUTS])
    )
    ours, theirs = (student_from(p, recipe, how).get_submodule(layer.path) for p in (parent, whole))
    assert not torch.allclose(ours[0].weight, theirs[0].weight, atol=1e-3)  # type: ignore[index]


def test_how_far_candidates_are_apart(how: Rebuilding) -> None:
    asked = [candidate(how.graph, share, n) for share, n in ((0.25, 0), (0.5, 0), (0.5, 1), (0.5, 2))]
    near = sorted(asked, key=lambda item: n_different(candidate(how.graph, 0.5, 1), item))
    assert near[0] == asked[2] and near[-1] == asked[0]
    assert n_different(asked[0], asked[1]) == pytest.approx(0.25 * len(how.graph.groups))
    assert n_different(asked[0], asked[0]) == 0
    assert n_different(asked[2], asked[3]) == 1
    bits = Candidate(weight_bits={layer.path: 8 for layer in how.graph.layers})
    assert n_different(Candidate(), bits) == len(how.graph.layers) == n_different(bits, Candidate())
