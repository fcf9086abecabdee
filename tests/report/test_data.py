"""The page's data against the records that it is made from."""

from __future__ import annotations

import json
import math
import random
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import binomtest

from autocompress.report.data import hypervolume_history, page_data
from autocompress.results.pareto import front_of
from autocompress.results.records import Latency
from autocompress.results.run_folder import Run
from autocompress.space.candidate import Candidate
from tests.report.conftest import MakeRun
from tests.report.searches import BUDGET, LAYERS, REFERENCE_MS, complete, failed, records_of_a_search
from tests.shared.objectives import of_accuracy


def test_every_candidate_can_be_read_back(make_run: MakeRun) -> None:
    run = make_run()
    data = page_data(run)
    names = data["names"]
    for record, trial in zip(run.records, data["trials"], strict=True):
        choices = trial["choices"]
        again = Candidate(
            prune_ratio=dict(zip(names["prune"], choices["prune"], strict=True)),
            drop=frozenset(name for name, gone in zip(names["drop"], choices["drop"], strict=True) if gone),
            rank_ratio=dict(zip(names["rank"], choices["rank"], strict=True)),
            weight_bits=dict(zip(names["bits"], choices["bits"], strict=True)),
            sparsity=dict(zip(names["sparsity"], choices["sparsity"], strict=True)),
        )
        assert again == record.candidate


def test_names_are_in_network_order(make_run: MakeRun) -> None:
    assert page_data(make_run())["names"]["bits"] == list(LAYERS)


def test_each_trial_is_drawn_as_what_it_is(make_run: MakeRun) -> None:
    run = make_run()
    kinds = {trial["number"]: trial["kind"] for trial in page_data(run)["trials"]}
    front = {point.number for point in run.front.points}
    assert kinds[0] == "baseline"
    assert kinds[2] == "uniform"
    assert kinds[len(run.records) - 1] == "failed"
    for record in run.records[3:-1]:
        assert record.latency is not None
        expected = "front" if record.number in front else "trial" if record.latency.ratio <= BUDGET else "infeasible"
        assert kinds[record.number] == expected


def test_only_failed_trials_and_those_over_the_budget_have_a_reason(make_run: MakeRun) -> None:
    records = records_of_a_search()
    over = complete(len(records), Candidate(weight_bits={"conv1": 8}), 1.3, 0.9, "uniform")
    for record, trial in zip([*records, over], page_data(make_run([*records, over]))["trials"], strict=True):
        late = record.latency is not None and record.latency.ratio > BUDGET and not record.candidate.is_baseline
        assert ("why" in trial) == (late or record.state == "failed")


def test_the_interval_is_of_the_file_on_each_split(make_run: MakeRun) -> None:
    run = make_run([complete(0, Candidate(), 0.5, 0.9)])
    file = run.records[0].file
    assert file is not None
    intervals = page_data(run)["trials"][0]["file"]["intervals"]
    reference = binomtest(round(5000 * file.metrics["test"]["accuracy"]), 5000).proportion_ci(method="wilson")
    assert intervals["test"] == pytest.approx([reference.low, reference.high])
    assert intervals["selection"][0] < 0.9 < intervals["selection"][1]


def test_there_is_no_interval_without_a_sample_count(make_run: MakeRun) -> None:
    run = make_run()
    point = run.front.points[0]
    assert point.file is not None
    point.file.n_samples["test"] = 0  # type: ignore[index]
    trial = page_data(run)["trials"][point.number]
    assert trial["file"]["intervals"]["test"] is None
    assert trial["file"]["intervals"]["selection"] is not None


def test_only_exported_points_have_commands_and_they_are_quoted(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    for record, trial in zip(run.records, page_data(run)["trials"], strict=True):
        assert ("commands" in trial) == (record.file is not None)
    folder = tmp_path / "it's a run"
    odd = Run(type(run.folder)(folder), run.info, run.records, run.front)
    commands = page_data(odd)["trials"][0]["commands"]
    assert shlex.split(commands["pick"]) == ["autocompress", "pick", str(folder), "--trial", "0", "-o", "model/"]
    compile(commands["load"], "load", "exec")
    assert repr(str(folder / "front" / "trial_0000")) in commands["load"]


def test_nothing_is_nan(make_run: MakeRun) -> None:
    untimed = replace(
        complete(1, Candidate(weight_bits={"conv1": 8}), 0.5, 0.9), latency=Latency(math.nan, math.nan, math.nan, 3)
    )
    run = make_run([complete(0, Candidate(), 0.5, math.nan), untimed, failed(2, "E: x")])
    json.dumps(page_data(run), allow_nan=False)
    assert page_data(run)["front"] == []


@pytest.mark.parametrize("budget", [None, BUDGET])
def test_hypervolume_history_is_that_of_the_front_of_each_prefix(budget: float | None) -> None:
    records = records_of_a_search(seed=3)
    random.Random(1).shuffle(records)
    history = hypervolume_history(records, of_accuracy(budget))
    ended = sorted(records, key=lambda record: record.ended)
    assert [step[0] for step in history] == list(range(1, len(records) + 1))
    for n, seconds, area in history:
        so_far = [
            record
            for record in ended[:n]
            if record.latency is not None and (budget is None or record.latency.ratio <= budget)
        ]
        assert seconds == ended[n - 1].ended
        assert area == pytest.approx(front_of(so_far, of_accuracy(None, REFERENCE_MS)).hypervolume)
