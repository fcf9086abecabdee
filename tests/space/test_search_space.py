"""Search spaces: rules, grids, uniform and sampled candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError
from autocompress.graph import ChannelGroup, Coupling, Frozen, Layer, ModelGraph, ResidualBranch
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace, find_space


def _group(name: str, n_channels: int, width: int = 1) -> ChannelGroup:
    slots = tuple(tuple(range(i * width, (i + 1) * width)) for i in range(n_channels))
    return ChannelGroup(name, n_channels, (Coupling(f"{name}.weight", 0, slots),), (name,), ())


GRAPH = ModelGraph(
    layers=(
        Layer("stem", "conv2d", (32, 3, 3, 3), 864, 1000),
        Layer("block.conv1", "conv2d", (32, 32, 3, 3), 9216, 1000),
        Layer("block.deep", "conv2d", (32, 1, 3, 3), 288, 1000, groups=32),
        Layer("fc", "linear", (10, 32), 320, 320),
        Layer("memory", "none that an operation can change", (128, 32), 9999, 1000),
    ),
    groups=(_group("stem", 32), _group("block.conv1", 20), _group("attention", 4, width=16)),
    branches=(ResidualBranch("block", ("block.conv1",)),),
    frozen=(Frozen("fc", "channels", "is an output"),),
    n_params=10000,
    n_macs=4000,
)
ALL = [
    {
        "match": "re:.*",
        "prune_ratio": [0.0, 0.3, 0.5],
        "drop": [False, True],
        "rank_ratio": [None, 0.5, 0.25],
        "weight_bits": [32, 8],
        "sparsity": [0.0, 0.5, "2:4"],
    }
]


def test_choices_lie_on_the_grid_and_useless_ones_are_not_offered() -> None:
    choices = {knob.name: knob.choices for knob in SearchSpace.from_rules(GRAPH, ALL).knobs}
    assert choices["prune_ratio:stem"] == (0.0, 0.25, 0.5)  # 32 -> 24, 16
    assert choices["prune_ratio:block.conv1"] == (0.0, 0.2, 0.6)  # 20 -> 16, 8
    assert choices["prune_ratio:attention"] == (0.0, 0.25, 0.5)  # whole heads of 16: any count is on the grid
    assert choices["rank_ratio:block.conv1"] == (None, 0.5, 0.25)
    assert "rank_ratio:stem" not in choices or 0.5 not in choices["rank_ratio:stem"]  # rank 16 of 27 x 32 saves nothing
    assert "rank_ratio:block.deep" not in choices  # depthwise
    assert "rank_ratio:fc" not in choices  # rank 8 of 10 x 32 saves nothing
    assert choices["drop:block"] == (False, True)
    assert not [name for name in choices if name.endswith(":memory")]
    assert choices["sparsity:block.conv1"] == (0.0, 0.5, "2:4")
    assert choices["sparsity:stem"] == (0.0, 0.5)  # three inputs make no block of four


def test_the_first_matching_rule_wins_and_a_missing_key_is_not_searched() -> None:
    rules = [{"match": "stem", "weight_bits": [32, 8]}, *ALL]
    names = [knob.name for knob in SearchSpace.from_rules(GRAPH, rules).knobs]
    assert "weight_bits:stem" in names
    assert "prune_ratio:stem" not in names
    assert "prune_ratio:block.conv1" in names


@given(st.integers(0, 10_000))
def test_candidates_and_choices_are_inverse(seed: int) -> None:
    space = SearchSpace.from_rules(GRAPH, ALL)
    candidate = space.sample(seed)
    assert space.candidate(space.choices_of(candidate)) == candidate
    assert space.sample(seed) == candidate


def test_uniform_takes_the_nearest_choice() -> None:
    space = SearchSpace.from_rules(GRAPH, ALL)
    candidate = space.uniform(prune_ratio=0.3, rank_ratio=0.3, weight_bits=8)
    assert candidate.prune_ratio == {"attention": 0.25, "block.conv1": 0.2, "stem": 0.25}
    assert candidate.rank_ratio["block.conv1"] == 0.25
    assert set(candidate.weight_bits.values()) == {8}
    assert not candidate.sparsity
    assert space.uniform(sparsity=0.4).sparsity["block.conv1"] == 0.5
    assert space.uniform(sparsity="2:4").sparsity == {"stem": 0.5, "block.conv1": "2:4", "block.deep": 0.5, "fc": "2:4"}
    assert space.uniform().is_baseline
    assert space.baseline() == Candidate()


def test_parts_of_a_dropped_branch_are_not_decided() -> None:
    space = SearchSpace.from_rules(GRAPH, ALL)
    choices = {knob.name: knob.choices[-1] for knob in space.knobs}
    candidate = space.candidate(choices)
    assert candidate.drop == {"block"}
    assert "block.conv1" not in candidate.prune_ratio
    assert "block.conv1" not in candidate.weight_bits
    assert "stem" in candidate.prune_ratio
    kept = space.candidate({**choices, "drop:block": False})
    assert "block.conv1" in kept.prune_ratio


def test_a_candidate_of_another_space_is_refused() -> None:
    space = SearchSpace.from_rules(GRAPH, ALL)
    with pytest.raises(InputError, match="prune_ratio:stem offers"):
        space.choices_of(Candidate(prune_ratio={"stem": 0.123}))
    with pytest.raises(InputError, match="no knob weight_bits:nothing"):
        space.choices_of(Candidate(weight_bits={"nothing": 8}))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"match": "block.conv2", "weight_bits": [32, 8]}, "near names: block.conv1"),
        ({"match": "re:layer9.*", "weight_bits": [32]}, "matches nothing"),
        ({"match": "stem", "weight_bit": [32]}, "did you mean weight_bits"),
        ({"match": "stem", "weight_bits": [8]}, "holds 32"),
        ({"match": "stem", "prune_ratio": [0.0, 1.0]}, "offers 1.0"),
        ({"match": "stem", "prune_ratio": [0.0, "half"]}, "offers 'half'"),
        ({"match": "stem", "rank_ratio": [0.5]}, "holds null"),
        ({"match": "stem", "sparsity": [0.0, "4:4"]}, "`1 <= n < m`.* offers '4:4'"),
        ({"match": "re:(", "weight_bits": [32]}, "valid pattern"),
        ({"weight_bits": [32]}, "has a `match`"),
    ],
)
def test_bad_rules(rule: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchSpace.from_rules(GRAPH, [rule])


def test_a_rule_that_earlier_ones_hide_is_mentioned() -> None:
    rules = [{"match": "re:.*", "weight_bits": [32, 8]}, {"match": "fc", "prune_ratio": [0.0, 0.5]}]
    space = SearchSpace.from_rules(GRAPH, rules)
    assert len(space.notes) == 1 and "the rule 'fc' has no effect" in space.notes[0]
    assert SearchSpace.from_rules(GRAPH, rules[::-1]).notes == ()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prune_ratio": float("nan")}, "prune_ratio"),
        ({"prune_ratio": "0.5"}, "prune_ratio"),
        ({"rank_ratio": 2.0}, "rank"),
        ({"weight_bits": 9}, "weight_bits"),
        ({"sparsity": float("inf")}, "sparsity"),
    ],
)
def test_uniform_takes_what_a_rule_may_offer(asked: dict[str, Any], message: str) -> None:
    space = SearchSpace.from_rules(GRAPH, [{"match": "re:.*", "weight_bits": [32, 8]}])
    with pytest.raises(InputError, match=message):
        space.uniform(**asked)


@pytest.mark.parametrize("grid", [0, -8, 1.5, True, "8", None])
def test_a_grid_is_a_whole_number(grid: Any) -> None:
    with pytest.raises(InputError, match="channel_grid >= 1"):
        SearchSpace.from_rules(GRAPH, [{"match": "re:.*", "prune_ratio": [0.0, 0.5]}], channel_grid=grid)


def test_files_that_come_with_the_package(tmp_path: Path) -> None:
    assert SearchSpace.load("default", GRAPH).size > 1
    levels = {knob.choices for knob in SearchSpace.load("sparse", GRAPH).knobs if knob.kind == "sparsity"}
    assert (0.0, 0.5, 0.75, "2:4") in levels
    with pytest.raises(InputError, match="try default"):
        find_space("defualt")
    file = tmp_path / "mine.yaml"
    file.write_text("rules: [{match: stem, weight_bits: [32, 8]}]\nchannel_gird: 4\n")
    with pytest.raises(InputError, match="did you mean channel_grid"):
        SearchSpace.load(str(file), GRAPH)


def test_ranks_lie_on_the_grid_of_the_space(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    rules = 'rules: [{match: "re:.*", rank_ratio: [null, 0.5, 0.25]}]\n'
    file.write_text(f"rank_grid: 4\n{rules}")
    space = SearchSpace.load(str(file), GRAPH)
    file.write_text(rules)
    usual = SearchSpace.load(str(file), GRAPH)
    assert (space.rank_grid, usual.rank_grid) == (4, 8)
    assert space.digest != usual.digest
    candidate = space.uniform(rank_ratio=0.25)
    assert candidate.rank_grid == 4 and candidate.rank_ratio
    assert space.candidate(space.choices_of(candidate)) == candidate
    with pytest.raises(InputError, match="on a grid of 8, the candidate of 4"):
        usual.choices_of(candidate)
    for bad in ("0", "2.5", "true", "[8]"):
        file.write_text(f"rank_grid: {bad}\n{rules}")
        with pytest.raises(InputError, match="`rank_grid >= 1` must hold and be whole"):
            SearchSpace.load(str(file), GRAPH)


@pytest.mark.parametrize(
    ("executed", "offered"), [({16, 8}, (32, 16, 8)), ({8}, (32, 8)), ({16}, (32, 16)), (set(), None)]
)
def test_precisions_by_runtime_are_those_that_it_executes(executed: set[int], offered: tuple[int, ...] | None) -> None:
    space = SearchSpace.from_rules(GRAPH, [{"match": "stem", "weight_bits": "runtime"}])
    assert [knob.choices for knob in space.knobs] == [(32, 8)], "of an unknown runtime"
    found = space.label_bits(GRAPH, lambda bits, kind: bits in executed)
    assert [knob.choices for knob in found.knobs] == ([] if offered is None else [offered])
    assert all(not knob.size_only for knob in found.knobs)


def test_only_weight_bits_follow_the_runtime() -> None:
    with pytest.raises(InputError, match="prune_ratio is a list"):
        SearchSpace.from_rules(GRAPH, [{"match": "stem", "prune_ratio": "runtime"}])
