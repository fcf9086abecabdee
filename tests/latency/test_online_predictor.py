"""Labels from a profile, against the made-up device's own latencies; and the grid of ranks in a profile's keys."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autocompress.cli import main
from autocompress.latency import LatencyModel
from autocompress.latency.layer_profiles import layer_keys
from autocompress.latency.online_predictor import label_slower_ranks
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from tests.latency.nets import RULES, made_up_table, net, true_ratios

TASK = """
import torch
from autocompress import SupervisedTask
from tests.latency.nets import Net
batch = (torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))
task = SupervisedTask(Net(), [batch], [batch], [batch])
"""


def labels(space: SearchSpace) -> set[tuple[str, Any]]:
    return {(knob.target, choice) for knob in space.knobs for choice in knob.size_only}


def single_ranks(space: SearchSpace) -> list[tuple[str, Any]]:
    return [(k.target, c) for k in space.knobs if k.kind == "rank_ratio" for c in k.choices if c is not None]


def test_the_ranks_that_a_device_runs_slower_are_labelled() -> None:
    space, shape, table = net()[2], net()[3], made_up_table(n_candidates=120, noise=0.001)
    ranks = single_ranks(space)
    alone = [Candidate(rank_ratio={path: choice}) for path, choice in ranks]
    truth = true_ratios(shape, dict(table.pieces), [Candidate(), *alone])
    gains = dict(zip(ranks, truth[0] - truth[1:], strict=True))
    clear = {rank: gain for rank, gain in gains.items() if abs(gain) > 0.02}
    slower = {rank for rank, gain in clear.items() if gain < 0}
    assert slower and len(slower) < len(clear)
    labelled = label_slower_ranks(space, LatencyModel(table))
    assert labels(labelled) & set(clear) == slower
    assert labelled.digest == space.digest


def test_a_rank_as_slow_as_the_whole_layer_is_labelled_but_not_one_that_was_not_measured() -> None:
    space = net()[2]
    first, second, third, *_ = single_ranks(space)
    ratios = {first: 1.1, second: 1.05, third: 1.2}

    def asked(candidate: Candidate) -> tuple[str, Any] | None:
        return next(iter(candidate.rank_ratio.items()), None)

    model: Any = SimpleNamespace(
        ratios=lambda candidates: np.array(
            [1.1 if c.is_baseline else ratios.get(asked(c), 0.9) for c in candidates]  # type: ignore[arg-type]
        ),
        n_outside=lambda candidates: np.array([int(asked(c) == third) for c in candidates]),
    )
    assert labels(label_slower_ranks(space, model)) == {first}


@pytest.mark.parametrize(("grid", "rank"), [(8, 16), (3, 15), (5, 15), (1, 16)])
def test_times_are_looked_up_at_the_rank_on_the_grid(grid: int, rank: int) -> None:
    _, graph, _, shape = net()
    space = SearchSpace.from_rules(graph, RULES, rank_grid=grid)
    candidate = space.candidate({"rank_ratio:blocks.0.conv1": 0.5})
    (key,) = [key for key in layer_keys(shape, [candidate])[0] if key is not None and " r0 " not in key]
    assert f" r{rank} " in key


def test_inspect_shows_the_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "device.json"
    LatencyModel(made_up_table()).save(path)
    space = tmp_path / "space.yaml"
    space.write_text('rules: [{match: "re:blocks.*", rank_ratio: [null, 0.5, 0.25]}]')
    expected = labels(label_slower_ranks(SearchSpace.load(str(space), net()[1]), LatencyModel.load(path)))
    assert expected
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "tasks.py"
    file.write_text(TASK)
    task = f"{file}:task"
    assert main(["inspect", task, "--space", str(space)]) == 0
    assert "size-only" not in capsys.readouterr().out
    assert main(["inspect", task, "--space", str(space), "--profile", str(path)]) == 0
    assert capsys.readouterr().out.count("(size-only)") == len(expected)
    assert main(["inspect", task, "--profile", str(path)]) == 2
    assert "--space" in capsys.readouterr().err
