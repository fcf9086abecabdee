"""Which choices each channel group, branch and layer of a model has: rules by name, first match wins, ordered lists."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.graph import ChannelGroup, Layer, ModelGraph
from autocompress.settings_schema import refuse_unknown_keys, require_kind, shown
from autocompress.space.candidate import (
    FULL_BITS,
    HALF_BITS,
    INT8_BITS,
    PRECISIONS,
    SPARSITY_RULE,
    Candidate,
    Precision,
    bits_number,
    check_fine_tune,
    check_rank_grid,
    is_sparsity,
    kept_of_block,
    sparsity_share,
)
from autocompress.space.rank_choice import RANK_GRID, RANK_RULE, is_rank, parse_rank, rank_distance
from autocompress.space.ranks import size_only_ranks, useful_ranks
from autocompress.yaml_files import read_yaml_mapping

Choice = float | int | bool | str | None
Rule = Mapping[str, Any]

AS_IT_IS: dict[str, Choice] = {
    "prune_ratio": 0.0,
    "drop": False,
    "rank_ratio": None,
    "weight_bits": FULL_BITS,
    "sparsity": 0.0,
    "fine_tune": None,
}
"""The choice of each kind of knob that changes nothing."""

KINDS_OF_KNOB: dict[str, frozenset[str]] = {
    "rank_ratio": frozenset({"linear", "conv1d", "conv2d", "embedding", "lstm", "gru"}),
    "weight_bits": frozenset({"linear", "conv1d", "conv2d", "embedding", "lstm", "gru"}),
    "sparsity": frozenset({"linear", "conv2d"}),
}
"""Which kinds of layers each knob of a layer is offered for: those that its operation can change."""

BY_RUNTIME = "runtime"
"""In place of a list of `weight_bits`: the precisions that the target runtime executes on the machine it runs on."""

_BY_RUNTIME = (FULL_BITS, HALF_BITS, INT8_BITS)
_RUNTIME_UNKNOWN = (FULL_BITS, INT8_BITS)

DEFAULT_GRID = 8
"""Channels are offered in multiples of this: odd counts run slower than the next multiple on most kernels."""


@dataclass(frozen=True)
class Knob:
    """One decision.

    Attributes:
        kind: a key of `AS_IT_IS`.
        target: the channel group, branch or layer that it is about.
        choices: ordered.
        branch: the residual branch that the target goes with; when that is dropped, there is nothing to decide.
        size_only: of the ranks offered those that save bytes but no time, as far as is known.
        by_runtime: the precisions are those that the target runtime executes, see `BY_RUNTIME`.
    """

    kind: str
    target: str
    choices: tuple[Choice, ...]
    branch: str | None = None
    size_only: tuple[Choice, ...] = ()
    by_runtime: bool = False

    @cached_property
    def name(self) -> str:
        """`prune_ratio:layer1.0.conv1`."""
        return f"{self.kind}:{self.target}"

    def nearest(self, value: Choice) -> Choice:
        """The offered choice that is nearest to `value`: no factorization is rank ratio 1, "2:4" 0.5, "8w" 8.5."""

        def distance(choice: Choice) -> float:
            if self.kind == "rank_ratio":
                return rank_distance(choice, value)
            return abs(self.number(choice) - self.number(value))

        return min(self.choices, key=lambda choice: (distance(choice), choice != value))

    def number(self, choice: Choice) -> float:
        """How much of the target the choice leaves, or for "prune_ratio", "drop" and "sparsity" takes."""
        if self.kind == "rank_ratio":
            return 1.0 if choice is None else parse_rank(choice).share
        return _bits(choice) if self.kind == "weight_bits" else _number(choice)


@dataclass(frozen=True)
class SearchSpace:
    """The product of all knobs of a model.

    Attributes:
        knobs: network order, each with at least two choices.
        name: of the file it came from, or "rules".
        rank_grid: the ranks of its candidates are multiples of it.
        notes: what the user should know of the rules, a line each.
    """

    knobs: tuple[Knob, ...]
    name: str = "rules"
    rank_grid: int = RANK_GRID
    notes: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def from_rules(
        cls,
        graph: ModelGraph,
        rules: Sequence[Rule],
        *,
        channel_grid: int = DEFAULT_GRID,
        rank_grid: int = RANK_GRID,
        name: str = "rules",
        fine_tune: Mapping[str, Sequence[float | None]] | None = None,
    ) -> SearchSpace:
        """Applies rules to a model.

        Args:
            graph: of the model.
            rules: each a mapping with `match` (an exact path, or `re:` and a pattern that must match the whole path)
                and for each kind of knob a list of choices that holds the one that changes nothing. A channel group
                takes the rule of its root layer, a branch that of its module.
            channel_grid: kept channel counts are multiples of it; choices that come out equal are merged.
            rank_grid: ranks are multiples of it; those at which nothing is saved are left out.
            name: for messages and records.
            fine_tune: choices for settings of the fine-tune, each with None for the search's own.

        Raises:
            InputError: an unknown key, a choice or a grid out of range, a list without the choice that changes nothing,
                or a rule that matches no name of the model.
        """
        require_kind("graph", graph, "what inspect_model gives", ModelGraph)
        require_kind("rules", rules, "a list of mappings", list, tuple)
        check_rank_grid(rank_grid, f"the search space {name!r}")
        if isinstance(channel_grid, bool) or not isinstance(channel_grid, int) or channel_grid < 1:
            raise InputError(f"`channel_grid >= 1` must hold and be whole, but got {shown(channel_grid)}")
        for rule in rules:
            _check_rule(rule)
        _check_matches(graph, rules)
        knobs: list[Knob] = []
        branch_of = {path: branch.name for branch in graph.branches for path in branch.layers}
        for group in graph.groups:
            choices = _choices(rules, group.name.partition("#")[0], "prune_ratio")
            branches = {branch_of.get(path) for path in group.producers}
            branch = branches.pop() if len(branches) == 1 else None
            knobs.append(Knob("prune_ratio", group.name, _on_channel_grid(choices, group, channel_grid), branch))
        for residual in graph.branches:
            knobs.append(Knob("drop", residual.name, _choices(rules, residual.name, "drop")))
        for layer in graph.layers:
            branch = branch_of.get(layer.path)
            for kind, takes in KINDS_OF_KNOB.items():
                if layer.kind in takes and (kind == "weight_bits" or not layer.own_forward):
                    choices = _useful(kind, _choices(rules, layer.path, kind), layer, rank_grid)
                    size_only = size_only_ranks(choices, layer) if kind == "rank_ratio" else ()
                    by_runtime = kind == "weight_bits" and _rule_value(rules, layer.path, kind) == BY_RUNTIME
                    knobs.append(Knob(kind, layer.path, choices, branch, size_only, by_runtime))
        knobs += [_fine_tune_knob(setting, choices) for setting, choices in (fine_tune or {}).items()]
        return cls(tuple(knob for knob in knobs if len(knob.choices) > 1), name, rank_grid, _hidden(graph, rules))

    @classmethod
    def load(cls, name: str, graph: ModelGraph) -> SearchSpace:
        """Reads a space by its name in `search_spaces/`, or by the path of a YAML file.

        Raises:
            InputError: no such file (lists the names that exist), or what `from_rules` raises.
        """
        require_kind("a search space", name, "a name or a path", str)
        path = find_space(name)
        data = read_yaml_mapping(path, "a search space")
        known = ["description", "channel_grid", "rank_grid", "rules", "fine_tune"]
        refuse_unknown_keys(f"the search space {path.name}", data, known)
        rules = data.get("rules")
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            raise InputError(f"a search space has a list of `rules`, each a mapping, but {path} has {shown(rules)}")
        grid = data.get("channel_grid", DEFAULT_GRID)
        fine_tune = data.get("fine_tune") or {}
        if not isinstance(fine_tune, dict):
            raise InputError(f"`fine_tune` has a list of choices for each setting, but {path} has {shown(fine_tune)}")
        rank_grid = data.get("rank_grid", RANK_GRID)
        return cls.from_rules(graph, rules, channel_grid=grid, rank_grid=rank_grid, name=path.stem, fine_tune=fine_tune)

    @property
    def digest(self) -> str:
        """12 hex digits that change when any knob, choice or the grid of ranks changes."""
        grid = [["rank_grid", self.rank_grid]] if self.rank_grid != RANK_GRID else []
        text = json.dumps([[knob.name, knob.choices] for knob in self.knobs] + grid)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def size(self) -> int:
        """How many candidates there are."""
        return math.prod(len(knob.choices) for knob in self.knobs)

    def candidate(self, choices: Mapping[str, Choice]) -> Candidate:
        """The candidate with these choices by knob name; a knob that is left out changes nothing.

        Choices about parts of a dropped branch are left out, and those about the fine-tune of the unchanged model too,
        so that equal models are equal candidates.
        """
        dropped = {knob.target for knob in self.knobs if knob.kind == "drop" and choices.get(knob.name)}
        values: dict[str, dict[str, Any]] = {kind: {} for kind in AS_IT_IS}
        for knob in self.knobs:
            if knob.name in choices and knob.branch not in dropped:
                values[knob.kind][knob.target] = choices[knob.name]
        candidate = Candidate(
            prune_ratio=values["prune_ratio"],
            drop=frozenset(name for name, dropped in values["drop"].items() if dropped),
            rank_ratio=values["rank_ratio"],
            weight_bits=values["weight_bits"],
            sparsity=values["sparsity"],
            rank_grid=self.rank_grid,
        )
        asked = {name: value for name, value in values["fine_tune"].items() if value is not None}
        return candidate if candidate.is_baseline or not asked else replace(candidate, fine_tune=asked)

    def choices_of(self, candidate: Candidate) -> dict[str, Choice]:
        """The choice of every knob that gives this candidate: the inverse of `candidate`.

        Raises:
            InputError: the candidate has a value or a name that the space does not offer, or ranks on another grid.
        """
        if candidate.rank_ratio and candidate.rank_grid != self.rank_grid:
            grids = f"a grid of {self.rank_grid}, the candidate of {candidate.rank_grid}"
            raise InputError(f"the space has ranks on {grids}; set `rank_grid` alike")
        given: dict[str, Mapping[str, Any]] = {
            "prune_ratio": candidate.prune_ratio,
            "drop": dict.fromkeys(candidate.drop, True),
            "rank_ratio": candidate.rank_ratio,
            "weight_bits": candidate.weight_bits,
            "sparsity": candidate.sparsity,
            "fine_tune": candidate.fine_tune,
        }
        choices = {knob.name: given[knob.kind].get(knob.target, AS_IT_IS[knob.kind]) for knob in self.knobs}
        for knob in self.knobs:
            if choices[knob.name] not in knob.choices:
                raise InputError(
                    f"{knob.name} offers {list(knob.choices)}, but the candidate has {choices[knob.name]!r}"
                )
        for kind, values in given.items():
            for target in values:
                if f"{kind}:{target}" not in choices:
                    raise InputError(f"the space has no knob {kind}:{target}")
        return choices

    def label_size_only(self, is_slower: Callable[[str, Choice], bool]) -> SearchSpace:
        """The same space, with the ranks labelled size-only at which a layer is not faster than as it is.

        Args:
            is_slower: of a layer's path and an offered rank, from a profile of the target device.
        """
        return replace(self, knobs=tuple(_labelled(knob, is_slower) for knob in self.knobs))

    def label_bits(self, graph: ModelGraph, executes: Callable[[Precision, str], bool]) -> SearchSpace:
        """The same space, with the precisions labelled size-only that the target runtime has no kernel for.

        Layers whose precisions are `BY_RUNTIME` are offered those that it has kernels for, and no others.

        Args:
            graph: of the model.
            executes: of a precision and a kind of layer.
        """
        kinds = {layer.path: layer.kind for layer in graph.layers}

        def labelled(knob: Knob) -> Knob:
            if knob.kind != "weight_bits":
                return knob
            if knob.by_runtime:
                kernels = (bits for bits in _BY_RUNTIME if bits == FULL_BITS or executes(bits, kinds[knob.target]))
                return replace(knob, choices=tuple(kernels), by_runtime=False)
            idle = (c for c in knob.choices if isinstance(c, int | str) and not executes(c, kinds[knob.target]))
            return replace(knob, size_only=tuple(idle))

        knobs = tuple(knob for knob in map(labelled, self.knobs) if len(knob.choices) > 1)
        return self if knobs == self.knobs else replace(self, knobs=knobs)

    def baseline(self) -> Candidate:
        """The uncompressed model."""
        return Candidate()

    def sample(self, seed: int) -> Candidate:
        """A candidate with every choice drawn uniformly."""
        rng = random.Random(seed)
        return self.candidate({knob.name: rng.choice(knob.choices) for knob in self.knobs})

    def uniform(
        self,
        *,
        prune_ratio: float = 0.0,
        rank_ratio: float | str | None = None,
        weight_bits: Precision = FULL_BITS,
        sparsity: float | str = 0.0,
    ) -> Candidate:
        """The nearest offered choice everywhere; branches stay.

        Raises:
            InputError: a value that no rule may offer.
        """
        wanted: dict[str, Choice] = {
            "prune_ratio": prune_ratio,
            "drop": False,
            "rank_ratio": rank_ratio,
            "weight_bits": weight_bits,
            "sparsity": sparsity,
        }
        for kind, value in wanted.items():
            if not _valid(kind, value):
                raise InputError(f"{_RANGES[kind]} must hold, but got {shown(value)}")
        knobs = [knob for knob in self.knobs if knob.kind in wanted]
        return self.candidate({knob.name: knob.nearest(wanted[knob.kind]) for knob in knobs})


def find_space(name: str) -> Path:
    """The file of a space: a path to a YAML file, or a name in the `search_spaces/` that came with the package.

    Raises:
        InputError: neither; lists the names.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = {path.stem: path for folder in _space_folders() for path in sorted(folder.glob("*.yaml"))}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)
        raise InputError(f"no search space is called {name!r}; try {', '.join(near)}, or give the path of a .yaml file")
    return known[name]


def _space_folders() -> Iterable[Path]:
    here = Path(__file__).resolve().parents[1]
    return [folder for folder in (here / "search_spaces", here.parent / "search_spaces") if folder.is_dir()][:1]


def _bits(choice: Choice) -> float:
    assert isinstance(choice, int | str)
    return bits_number(choice)


def _number(choice: Choice) -> float:
    return sparsity_share(choice) if isinstance(choice, str) else float(choice or 0.0)


def _matches(rule: Rule, name: str) -> bool:
    pattern = rule["match"]
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return bool(pattern == name)


def _choices(rules: Sequence[Rule], name: str, kind: str) -> tuple[Choice, ...]:
    value = _rule_value(rules, name, kind)
    return _RUNTIME_UNKNOWN if value == BY_RUNTIME else tuple(dict.fromkeys(value))


def _rule_value(rules: Sequence[Rule], name: str, kind: str) -> Any:
    """What the first rule that matches says of this kind of knob; nothing where it says nothing."""
    return next((rule.get(kind, ()) for rule in rules if _matches(rule, name)), ())


def _fine_tune_knob(setting: str, choices: Any) -> Knob:
    """Raises InputError: no such setting, a choice out of range, or a list without null."""
    if not isinstance(choices, list | tuple) or None not in choices:
        raise InputError(
            f"fine_tune is for lists that hold null (the search's own), but {setting} has {shown(choices)}"
        )
    for choice in choices:
        check_fine_tune(setting, choice)
    return Knob("fine_tune", setting, tuple(dict.fromkeys(None if c is None else float(c) for c in choices)))


def _check_rule(rule: Rule) -> None:
    require_kind("a rule", rule, "a mapping", Mapping)
    refuse_unknown_keys("a rule", rule, ["match", *_RANGES])
    pattern = rule.get("match")
    if not isinstance(pattern, str):
        raise InputError(f"a rule has a `match`: a layer's path or `re:` and a pattern, but got {shown(pattern)}")
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(
                f"`match` must be a valid pattern after `re:`, but {shown(pattern)} is not: {error}"
            ) from error
    for kind in _RANGES:
        if kind not in rule:
            continue
        as_it_is = AS_IT_IS[kind]
        choices = rule[kind]
        if kind == "weight_bits" and choices == BY_RUNTIME:
            continue
        if not isinstance(choices, list | tuple) or as_it_is not in choices:
            held = json.dumps(as_it_is)
            raise InputError(
                f"{kind} is a list that holds {held} (as it is), but rule {pattern!r} has {shown(choices)}"
            )
        for choice in choices:
            if not _valid(kind, choice):
                raise InputError(f"{_RANGES[kind]} must hold, but rule {pattern!r} offers {shown(choice)}")


_RANGES = {
    "prune_ratio": "`0 <= prune_ratio < 1`",
    "drop": "`drop` in [false, true]",
    "rank_ratio": RANK_RULE,
    "weight_bits": f"`weight_bits` in {list(PRECISIONS)}",
    "sparsity": SPARSITY_RULE,
}


def _valid(kind: str, choice: Any) -> bool:
    if kind == "drop":
        return isinstance(choice, bool)
    if kind == "sparsity":
        return is_sparsity(choice)
    if kind == "rank_ratio":
        return choice is None or is_rank(choice)
    if kind == "weight_bits":
        return isinstance(choice, int | str) and not isinstance(choice, bool) and choice in PRECISIONS
    return not isinstance(choice, bool) and isinstance(choice, int | float) and 0 <= choice < 1


def _names(graph: ModelGraph) -> list[str]:
    """What a rule can match."""
    names = [layer.path for layer in graph.layers] + [branch.name for branch in graph.branches]
    return names + [group.name.partition("#")[0] for group in graph.groups] + [item.name for item in graph.frozen]


def _hidden(graph: ModelGraph, rules: Sequence[Rule]) -> tuple[str, ...]:
    """A note for each rule that is the first match of no name."""
    names = _names(graph)
    used = {next((i for i, rule in enumerate(rules) if _matches(rule, name)), None) for name in names}
    return tuple(
        f"the rule {rule['match']!r} has no effect: earlier rules match everything that it matches"
        for i, rule in enumerate(rules)
        if i not in used
    )


def _check_matches(graph: ModelGraph, rules: Sequence[Rule]) -> None:
    names = _names(graph)
    for rule in rules:
        if not any(_matches(rule, name) for name in names):
            pattern = rule["match"].removeprefix("re:")
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
            raise InputError(f"rule {rule['match']!r} matches nothing in the model; near names: {', '.join(near)}")


def _on_channel_grid(choices: Iterable[Choice], group: ChannelGroup, grid: int) -> tuple[Choice, ...]:
    """Rounds the kept channels to multiples of the grid, counted in the producer's own channels (heads are many).

    A group that goes by number is cut to the nearest of its sizes instead.
    """
    if group.sizes:
        counts = [group.nearest(round(_number(choice) * group.n_channels)) for choice in choices]
        return tuple(dict.fromkeys(count / group.n_channels for count in counts))
    width = len(group.couplings[0].slots[0])
    step = max(1, -(-grid // width))
    snapped = []
    for choice in choices:
        kept = group.n_channels * (1 - _number(choice))
        on_grid = max(step, round(kept / step) * step) if choice else group.n_channels
        snapped.append((group.n_channels - min(on_grid, group.n_channels)) / group.n_channels)
    return tuple(dict.fromkeys(snapped))


def _useful(kind: str, choices: tuple[Choice, ...], layer: Layer, rank_grid: int) -> tuple[Choice, ...]:
    if kind == "rank_ratio":
        return useful_ranks(choices, layer, rank_grid)
    return _useful_sparsities(choices, layer) if kind == "sparsity" else choices


def _labelled(knob: Knob, is_slower: Callable[[str, Choice], bool]) -> Knob:
    if knob.kind != "rank_ratio":
        return knob
    slower = {choice for choice in knob.choices if choice is not None and is_slower(knob.target, choice)}
    labelled = slower.union(knob.size_only)
    return replace(knob, size_only=tuple(choice for choice in knob.choices if choice in labelled))


def _useful_sparsities(choices: Iterable[Choice], layer: Layer) -> tuple[Choice, ...]:
    """Leaves out "n:m" where the layer has fewer than m inputs to choose from."""

    def fits(choice: Choice) -> bool:
        block = kept_of_block(choice) if isinstance(choice, str) else None
        return block is None or layer.weight_shape[1] >= block[1]

    return tuple(choice for choice in choices if fits(choice))
