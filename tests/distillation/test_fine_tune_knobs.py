"""Settings of the fine-tune as knobs: from the space's file to the candidate that a trial runs with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autocompress.config import DistillSettings
from autocompress.errors import InputError
from autocompress.execution.sensitivity import single_choices
from autocompress.graph import inspect_model
from autocompress.sampling.initial_candidates import strongest_candidates, uniform_candidates
from autocompress.sampling.knapsack import blocks_of
from autocompress.sampling.surrogate import CostTable, Surrogate
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Choice, SearchSpace
from tests.shared.tasks import RULES, images, trained_model

GRAPH = inspect_model(trained_model(), (images(1, 0)[0],))
SPACE = SearchSpace.from_rules(
    GRAPH, RULES, fine_tune={"learning_rate": [None, 0.001, 0.1], "steps": [None, 60], "alpha": [None, 0.5]}
)


def test_a_space_file_offers_them(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("rules: [{match: fc, weight_bits: [32, 8]}]\nfine_tune: {temperature: [null, 2, 8]}\n")
    space = SearchSpace.load(str(file), GRAPH)
    assert [(knob.name, knob.choices) for knob in space.knobs] == [
        ("weight_bits:fc", (32, 8)),
        ("fine_tune:temperature", (None, 2.0, 8.0)),
    ]


@pytest.mark.parametrize(
    ("fine_tune", "message"),
    [
        ({"momentum": [None, 0.5]}, "fine_tune has the settings learning_rate"),
        ({"alpha": [None, 1.5]}, "0 <= alpha <= 1"),
        ({"steps": [None, 2.5]}, "steps >= 1"),
        ({"learning_rate": [0.1, 0.2]}, "hold null"),
        ({"learning_rate": 0.1}, "hold null"),
        ({"temperature": [None, True]}, "temperature >= 1"),
    ],
)
def test_choices_that_are_none(fine_tune: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchSpace.from_rules(GRAPH, RULES, fine_tune=fine_tune)  # type: ignore[arg-type]


def test_a_rule_for_layers_cannot_hold_them() -> None:
    with pytest.raises(InputError, match="fine_tune"):
        SearchSpace.from_rules(GRAPH, [{"match": "fc", "fine_tune": [None, 1]}])


def test_candidates_hold_them_and_survive_json() -> None:
    for seed in range(30):
        candidate = SPACE.sample(seed)
        assert Candidate.from_dict(candidate.to_dict()) == candidate
        assert SPACE.candidate(SPACE.choices_of(candidate)) == candidate
    assert any(SPACE.sample(seed).fine_tune for seed in range(30))
    assert "fine_tune" not in Candidate().to_dict(), "digests of before stay what they were"


def test_the_uncompressed_model_is_one_candidate_whatever_the_fine_tune() -> None:
    choices: dict[str, Choice] = {"fine_tune:steps": 60.0}
    assert SPACE.candidate(choices) == Candidate()
    with_bits = SPACE.candidate({**choices, "weight_bits:fc": 8})
    assert with_bits == Candidate(weight_bits={"fc": 8}, fine_tune={"steps": 60})


def test_the_first_candidates_keep_the_searchs_own() -> None:
    for candidate in (*strongest_candidates(SPACE), *uniform_candidates(SPACE, 60)):
        assert not candidate.fine_tune
    assert {knob.kind for knob, _, _ in single_choices(SPACE)} == {"prune_ratio", "rank_ratio", "weight_bits"}


def test_settings_follow_the_candidate() -> None:
    ours = DistillSettings(rungs=(0, 20, 60), learning_rate=0.01)
    assert ours.changed({}) == ours
    changed = ours.changed({"learning_rate": 0.1, "alpha": 0.5, "steps": 40.0})
    assert (changed.learning_rate, changed.alpha, changed.rungs) == (0.1, 0.5, (0, 20, 40))
    assert ours.changed({"steps": 100}).rungs == (0, 20, 60, 100)


def test_the_sampler_learns_which_setting_helps() -> None:
    increases: dict[str, dict[Choice, float]] = {
        knob.name: {choice: 0.0 if i == 0 or knob.kind == "fine_tune" else 0.2 for i, choice in enumerate(knob.choices)}
        for knob in SPACE.knobs
    }
    table = CostTable.of(blocks_of(SPACE), increases)
    candidates = [SPACE.sample(seed) for seed in range(120)]
    features = np.array([table.features(SPACE.choices_of(candidate)) for candidate in candidates])
    scores = np.array(
        [-len(c.prune_ratio) + (c.fine_tune.get("learning_rate") == 0.1) for c in candidates], dtype=float
    )
    surrogate = Surrogate(table)
    surrogate.fit(features, scores)
    weights = np.mean([surrogate.sample(np.random.default_rng(i)) for i in range(100)], axis=0)
    costs = dict(zip((block.name for block in table.blocks), table.costs(weights[:-1]), strict=True))
    learned = dict(zip((None, 0.001, 0.1), costs["learning_rate"], strict=True))
    assert learned[0.1] < learned[None] and learned[0.1] < learned[0.001]
