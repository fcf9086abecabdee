"""A replayed search gives the trials of a real one, in virtual time."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from optuna.samplers import RandomSampler

from autocompress.errors import InputError
from autocompress.results.records import Latency, Rung
from autocompress.sampling.study import SearchStudy
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Knob, SearchSpace
from autocompress.testing.replay import Evaluation, busy_share, read_table, replay, write_table
from tests.shared.objectives import of_accuracy

SPACE = SearchSpace(tuple(Knob("prune_ratio", name, (0.0, 0.25, 0.5)) for name in "abc"))


def evaluation(candidate: Candidate, seconds: float = 30.0) -> Evaluation:
    total = sum(candidate.prune_ratio.values())
    rungs = tuple(Rung(n, {"accuracy": 1 - total / 2 + n / 1000, "loss": total}) for n in (0, 10, 20))
    parts = (seconds / 3, 2 * seconds / 3, seconds)
    return Evaluation(candidate, Latency(1 - total / 3, 0.01, 2.0, 0), rungs, parts, 0.5, 10, 100)


def table() -> dict[str, Evaluation]:
    grid = [Candidate(dict(zip("abc", ratios, strict=True))) for ratios in product((0.0, 0.25, 0.5), repeat=3)]
    return {candidate.digest: evaluation(candidate) for candidate in grid}


def study(seed: int = 0, budget: float | None = None) -> SearchStudy:
    return SearchStudy(None, SPACE, RandomSampler(seed=seed), of_accuracy(budget))


def test_one_worker_runs_trials_one_after_the_other() -> None:
    records = replay(study(), evaluation, 5)
    assert [record.started for record in records] == [0, 30, 60, 90, 120]
    assert [record.ended for record in records] == [30, 60, 90, 120, 150]
    assert {record.state for record in records} == {"complete"}
    for record in records:
        assert record.metrics["accuracy"] == evaluation(record.candidate).rungs[-1].metrics["accuracy"]
        assert record.latency == evaluation(record.candidate).latency
    assert busy_share(records, 1) == 1.0


def test_the_same_seed_and_one_worker_give_the_same_trials() -> None:
    first, again, other = ([r.candidate.digest for r in replay(study(seed), evaluation, 12)] for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("n_workers", [1, 4, 9])
def test_workers_share_the_trials(n_workers: int) -> None:
    records = replay(study(), evaluation, 18, n_workers)
    assert len(records) == len({record.candidate.digest for record in records}) == 18
    assert max(record.ended for record in records) == pytest.approx(30 * -(-18 // n_workers))
    for record in records:
        at_work = sum(other.started <= record.started < other.ended for other in records)
        assert at_work <= n_workers


def test_a_space_smaller_than_the_workers_ends() -> None:
    records = replay(study(), evaluation, 1000, 64)
    assert len(records) == SPACE.size == 27


class StopAtFirst:
    def should_continue(self, trial: str, steps: int, score: float, ratio: float) -> bool:
        return score > 0.8


def test_stopped_trials_end_at_their_rung_and_free_the_worker() -> None:
    records = replay(study(), evaluation, 20, 2, StopAtFirst())
    stopped = [record for record in records if record.state == "stopped"]
    assert stopped and len(stopped) < len(records)
    for record in stopped:
        assert len(record.rungs) == 1 and not record.fine_tuned
        assert record.ended - record.started == pytest.approx(10)
    assert {record.ended - record.started for record in records if record.state == "complete"} == {30.0}


def test_a_candidate_that_was_not_recorded_is_a_failed_trial() -> None:
    known = table()
    known.pop(Candidate({"a": 0.25}).digest)
    records = replay(study(), lambda candidate: known[candidate.digest], 27, 3)
    failed = [record for record in records if record.state == "failed"]
    assert [record.candidate for record in failed] == [Candidate({"a": 0.25})]
    assert "no recorded evaluation" in str(failed[0].error)


def test_time_of_the_driver_counts_if_asked() -> None:
    records = replay(study(), lambda candidate: evaluation(candidate, 3e-6), 10, 4, driver_counts=True)
    assert busy_share(records, 4) < 0.5, "the workers wait for the driver"
    begins = [record.started for record in sorted(records, key=lambda record: record.number)]
    assert begins == sorted(begins) and begins[0] > 0


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_a_table_survives_the_file(tmp_path: Path, name: str) -> None:
    path, known = tmp_path / name, table()
    write_table(path, known.values())
    assert read_table(path).keys() == known.keys()
    for digest, item in read_table(path).items():
        assert item.candidate == known[digest].candidate
        assert item.seconds == pytest.approx(known[digest].seconds)
        assert [rung.steps for rung in item.rungs] == [0, 10, 20]
        for ours, theirs in zip(item.rungs, known[digest].rungs, strict=True):
            assert ours.metrics == pytest.approx(theirs.metrics)
        assert item.latency.ratio == pytest.approx(known[digest].latency.ratio)
    first = path.read_bytes()
    write_table(path, known.values())
    assert path.read_bytes() == first


def test_tables_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must exist"):
        read_table(tmp_path / "nothing.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="candidate"):
        read_table(tmp_path / "other.csv")
