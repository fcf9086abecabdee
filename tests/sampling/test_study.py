"""The study on disk: what was asked and told comes back, also after a kill at any moment."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from autocompress.errors import InputError
from autocompress.results.records import Latency, Rung, TrialRecord
from autocompress.sampling import study as study_module
from autocompress.sampling.study import POLISHED, Asked, SearchStudy
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Knob, SearchSpace
from tests.shared.objectives import of_accuracy

SPACE = SearchSpace(
    (
        Knob("prune_ratio", "conv", (0.0, 0.25, 0.5)),
        Knob("drop", "block", (False, True)),
        Knob("rank_ratio", "fc", (None, 0.5)),
        Knob("weight_bits", "fc", (32, 8)),
    )
)
ONE_KNOB = SearchSpace((Knob("weight_bits", "fc", (32, 8)),))


def opened(path: Path, space: SearchSpace = SPACE, budget: float | None = 0.5, seed: int = 0) -> SearchStudy:
    return SearchStudy(path, space, RandomSampler(seed=seed), of_accuracy(budget))


def record_of(asked: Asked | None, ratio: float = 0.4, accuracy: float = 0.9) -> TrialRecord:
    assert asked is not None
    return TrialRecord(
        number=asked.number,
        state="complete",
        origin=asked.origin,
        candidate=asked.candidate,
        metrics={"accuracy": accuracy, "loss": 0.1},
        latency=Latency(ratio, 0.01, ratio * 2, 9),
        feasible=ratio <= 0.5,
        rungs=(Rung(0, {"accuracy": 0.1}), Rung(20, {"accuracy": accuracy})),
        seconds={"compress": 0.5},
        size_mib=0.25,
    )


def frozen(path: Path) -> list[FrozenTrial]:
    """The trials as Optuna reads them from the file by itself."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name="autocompress", storage=storage).get_trials(deepcopy=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.journal"


def test_what_is_told_comes_back_from_a_reopened_study(path: Path) -> None:
    study = opened(path)
    told = []
    for i in range(6):
        record = record_of(study.ask(), ratio=0.3 + i / 20, accuracy=0.9 - i / 100)
        study.tell(record)
        told.append(record)
    assert [record.number for record in told] == sorted({record.number for record in told})
    assert study.records() == told
    again = opened(path)
    assert again.records() == told
    assert again.n_finished == 6
    for record, trial in zip(told, (t for t in frozen(path) if "record" in t.user_attrs), strict=True):
        assert record.latency is not None
        assert trial.state == TrialState.COMPLETE
        assert trial.values == [record.metrics["accuracy"], record.latency.ratio]
        choices = {knob.name: knob.choices[trial.params[knob.name]] for knob in SPACE.knobs}
        assert SPACE.candidate(choices) == record.candidate


def test_the_directions_are_metric_up_and_latency_down(path: Path) -> None:
    study = opened(path, budget=None)
    for ratio, accuracy in ((0.3, 0.8), (0.6, 0.9), (0.7, 0.7)):
        study.tell(record_of(study.ask(), ratio, accuracy))
    storage = JournalStorage(JournalFileBackend(str(path)))
    best = optuna.load_study(study_name="autocompress", storage=storage).best_trials
    assert sorted(tuple(trial.values) for trial in best) == [(0.8, 0.3), (0.9, 0.6)]


def test_the_budget_is_a_constraint_of_every_complete_trial(path: Path) -> None:
    study = opened(path)
    for ratio in (0.3, 0.5, 0.8):
        study.tell(record_of(study.ask(), ratio))
    constraints = [trial.constraints for trial in frozen(path) if "record" in trial.user_attrs]
    assert constraints == [{"latency": pytest.approx(value)} for value in (-0.2, 0.0, 0.3)]
    free = path.with_name("free.journal")
    study = opened(free, budget=None)
    study.tell(record_of(study.ask()))
    assert frozen(free)[0].constraints == {}


def test_a_useless_metric_is_a_constraint_unless_the_trial_was_too_slow_to_be_tuned(path: Path) -> None:
    study = SearchStudy(path, SPACE, RandomSampler(seed=0), of_accuracy(0.5, metric_limit=0.6))
    for ratio, accuracy in ((0.4, 0.9), (0.4, 0.2), (0.9, 0.2)):
        record = record_of(study.ask(), ratio=ratio, accuracy=accuracy)
        assert study.judged(record).feasible == ((ratio, accuracy) == (0.4, 0.9))
        study.tell(record)
    good, useless, slow = (trial.constraints for trial in frozen(path))
    assert good["metric"] == pytest.approx(-0.3) and good["latency"] < 0
    assert useless["metric"] == pytest.approx(0.4)
    assert set(slow) == {"latency"}


def test_enqueued_candidates_come_first_and_keep_their_origin(path: Path) -> None:
    study = opened(path)
    wanted = [
        Candidate(prune_ratio={"conv": 0.5}, weight_bits={"fc": 8}),
        Candidate(drop=frozenset({"block"}), rank_ratio={"fc": 0.5}),
    ]
    study.enqueue(wanted, "uniform")
    study = opened(path)
    asked = [study.ask() for _ in range(3)]
    assert [item.candidate for item in asked[:2] if item] == wanted
    assert [item.origin for item in asked if item] == ["uniform", "uniform", "sampler"]


def test_a_candidate_outside_the_space_is_not_enqueued(path: Path) -> None:
    with pytest.raises(InputError, match="offers"):
        opened(path).enqueue([Candidate(prune_ratio={"conv": 0.3})], "uniform")


def test_a_trial_that_is_finished_already_is_added(path: Path) -> None:
    study = opened(path)
    baseline = replace(record_of(Asked(0, Candidate(), "baseline"), 1.0), feasible=False)
    study.add(baseline)
    assert study.records() == [baseline]
    assert opened(path).records() == [baseline]
    for _ in range(30):
        asked = study.ask()
        if asked is None:
            break
        assert not asked.candidate.is_baseline, "it is known"
        study.tell(record_of(asked))


def test_a_failed_trial_is_told_as_failed_and_its_record_kept(path: Path) -> None:
    study = opened(path)
    asked = study.ask() or pytest.fail("nothing asked")
    failed = TrialRecord(asked.number, "failed", asked.origin, asked.candidate, error="Traceback ...", size_mib=0.0)
    study.tell(failed)
    assert frozen(path)[asked.number].state == TrialState.FAIL
    assert opened(path).records() == [failed]
    assert opened(path).n_finished == 1


@pytest.mark.parametrize("wrong", [{"accuracy": math.nan}, {"accuracy": math.inf}, {"other": 0.9}])
def test_a_metric_that_is_no_number_is_told_as_failed(path: Path, wrong: dict[str, float]) -> None:
    study = opened(path)
    record = replace(record_of(study.ask()), metrics=wrong)
    study.tell(record)
    assert [trial.state for trial in frozen(path)] == [TrialState.FAIL]
    assert len(study.records()) == 1
    study.tell(record_of(study.ask()))


# --- known candidates


def test_a_candidate_that_is_known_is_answered_from_its_record(path: Path) -> None:
    study = opened(path)
    wanted = Candidate(prune_ratio={"conv": 0.25})
    study.enqueue([wanted], "uniform")
    first = record_of(study.ask(), 0.45, 0.91)
    study.tell(first)
    for make in (lambda: study, lambda: opened(path)):  # one writer at a time, as the run's lock has it
        reopened = make()
        reopened.enqueue([wanted], "uniform")
        asked = reopened.ask()
        assert asked is not None
        assert asked.candidate != wanted
        assert reopened.n_finished == 1
    repeats = [trial for trial in frozen(path) if trial.user_attrs.get("repeats") == first.number]
    assert len(repeats) >= 2
    for trial in repeats:
        assert trial.state == TrialState.COMPLETE
        assert trial.values == [0.91, 0.45]
        assert trial.constraints == {"latency": pytest.approx(-0.05)}


def test_an_exhausted_space_gives_nothing_more(path: Path) -> None:
    study = opened(path, ONE_KNOB)
    asked = []
    while (item := study.ask()) is not None:
        asked.append(item.candidate)
        study.tell(record_of(item))
    assert sorted(candidate.to_json() for candidate in asked) == sorted(
        candidate.to_json() for candidate in (Candidate(), Candidate(weight_bits={"fc": 8}))
    )
    assert opened(path, ONE_KNOB).ask() is None
    assert study.n_finished == 2


# --- kills


def test_interrupted_trials_run_again_with_the_same_candidate(path: Path) -> None:
    study = opened(path)
    enqueued = [Candidate(prune_ratio={"conv": 0.5}), Candidate(weight_bits={"fc": 8}), Candidate(drop={"block"})]  # type: ignore[arg-type]
    study.enqueue(enqueued, "uniform")
    first, second = study.ask(), study.ask()
    study.tell(record_of(first))
    del study  # killed; the third was never asked
    again = opened(path)
    assert again.n_finished == 1
    assert again.requeue_interrupted() == 1
    assert again.n_finished == 1, "the one that was cut off does not count"
    assert opened(path).requeue_interrupted() == 0
    assert first is not None
    assert second is not None
    asked = [again.ask(), again.ask()]
    assert {item.candidate for item in asked if item} == set(enqueued[1:])
    assert {item.origin for item in asked if item} == {"uniform"}
    assert not {item.number for item in asked if item} & {first.number, second.number}, "with numbers of their own"
    for item in asked:
        again.tell(record_of(item))
    assert again.n_finished == 3
    assert [record.candidate for record in opened(path).records()].count(second.candidate) == 1


def dies(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_kill_while_trials_are_queued_again_loses_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(path).ask() or pytest.fail("nothing asked")
    again = opened(path)
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "enqueue_trial", dies)
        with pytest.raises(KeyboardInterrupt):
            again.requeue_interrupted()
    last = opened(path, seed=1)
    last.requeue_interrupted()
    asked = last.ask()
    assert asked is not None
    assert asked.number != first.number
    assert asked.candidate == first.candidate


def test_a_kill_between_record_and_end_counts_the_trial_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened(path)
    record = record_of(study.ask())
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", dies)
        with pytest.raises(KeyboardInterrupt):
            study.tell(record)
    again = opened(path, seed=1)
    again.requeue_interrupted()
    for _ in range(3):
        again.tell(record_of(again.ask()))
    digests = [item.candidate.digest for item in opened(path).records()]
    assert digests.count(record.candidate.digest) == 1


def test_a_journal_that_was_cut_off_anywhere_opens(path: Path) -> None:
    study = opened(path)
    told = []
    for _ in range(4):
        record = record_of(study.ask())
        study.tell(record)
        told.append(record)
    asked = study.ask()
    assert asked is not None
    whole = path.read_bytes()
    for i, cut in enumerate(range(1, len(whole) // 2, 101)):
        part = path.with_name(f"cut{i}.journal")
        part.write_bytes(whole[:-cut])
        in_a_line = not whole[:-cut].endswith(b"\n")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            again = opened(part, seed=i)
        assert bool(caught) == in_a_line
        assert all("cut off and is dropped" in str(warning.message) for warning in caught)
        assert part.read_bytes().endswith(b"\n")
        again.requeue_interrupted()
        kept = again.records()
        assert kept == told[: len(kept)]
        again.tell(record_of(again.ask()))
        after = [record.candidate.digest for record in opened(part).records()]
        assert len(after) == len(set(after)) == len(kept) + 1


def as_file(lock: Path, _: Path) -> None:
    lock.touch()


def as_link(lock: Path, target: Path) -> None:
    lock.symlink_to(target)


@pytest.mark.parametrize("left_behind", [as_file, as_link])
def test_the_lock_of_a_killed_writer_is_removed(path: Path, left_behind: Callable[[Path, Path], None]) -> None:
    study = opened(path)
    study.tell(record_of(study.ask()))
    left_behind(path.with_name("study.journal.lock"), path)
    begin = time.monotonic()
    again = opened(path)
    again.tell(record_of(again.ask()))
    assert time.monotonic() - begin < 5, "nobody waits for it"
    assert again.n_finished == 2


# --- predictions


def test_a_candidate_that_is_predicted_to_miss_the_budget_is_never_given_out(path: Path) -> None:
    def predict(candidate: Candidate) -> float:
        return 0.9 - candidate.prune_ratio.get("conv", 0.0)

    study = SearchStudy(path, SPACE, RandomSampler(seed=0), of_accuracy(0.5), predict=predict)
    asked = []
    while (item := study.ask()) is not None:
        asked.append(item.candidate)
        study.tell(record_of(item))
    assert asked and all(predict(candidate) <= 0.5 for candidate in asked)
    screening_ratio = [trial for trial in frozen(path) if trial.state == TrialState.PRUNED]
    assert screening_ratio and all(trial.constraints["latency"] > 0 for trial in screening_ratio)
    assert study.n_finished == len(asked)


def test_an_infeasible_baseline_is_added_all_the_same(path: Path) -> None:
    study = SearchStudy(path, SPACE, RandomSampler(seed=0), of_accuracy(0.5), predict=lambda _: 1.0)
    study.add(replace(record_of(Asked(0, Candidate(), "baseline"), 1.0), feasible=False))
    assert study.n_finished == 1
    assert study.ask() is None


def test_a_study_in_memory_needs_no_file() -> None:
    study = SearchStudy(None, SPACE, RandomSampler(seed=0), of_accuracy(0.5))
    study.tell(record_of(study.ask()))
    assert study.n_finished == 1


def test_what_all_trials_have_in_common_is_in_memory_once(tmp_path: Path) -> None:
    study = opened(tmp_path / "journal")
    for _ in range(3):
        study.tell(record_of(study.ask()))
    for same in (study, opened(tmp_path / "journal")):
        trials = same._study.get_trials(deepcopy=False)
        assert len(trials) == 3 and len({id(trial.distributions) for trial in trials}) == 1
        names = [list(trial.params) for trial in trials]
        assert all(name is first for own in names for name, first in zip(own, names[0], strict=True))
    assert [trial.distributions for trial in frozen(tmp_path / "journal")] == [trials[0].distributions] * 3


def test_a_stopped_trial_is_judged_by_those_of_about_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "_LEARNT_FROM", 8)
    knobs = tuple(Knob("weight_bits", f"fc{i}", (32, 8)) for i in range(8))
    study = opened(tmp_path / "journal", SearchSpace(knobs))
    for i in range(20):
        asked = record_of(study.ask())
        reached = 0.5 if i < 10 else 0.9
        study.tell(
            replace(
                asked,
                rungs=(Rung(0, {"accuracy": 0.1 + i / 100}), Rung(20, {"accuracy": reached})),
                metrics={"accuracy": reached},
            )
        )
    asked = record_of(study.ask())
    study.tell(replace(asked, state="stopped", metrics={"accuracy": 0.2}, rungs=(Rung(0, {"accuracy": 0.2}),)))
    told = frozen(tmp_path / "journal")[-1].values
    assert told == pytest.approx([0.9, 0.4]), "the first ten, which reached 0.5, are too long ago"


def test_a_stopped_trial_is_feasible_by_what_it_has_reached_whatever_it_is_told_as(tmp_path: Path) -> None:
    knobs = tuple(Knob("weight_bits", f"fc{i}", (32, 8)) for i in range(4))
    study = SearchStudy(None, SearchSpace(knobs), RandomSampler(seed=0), of_accuracy(metric_limit=0.5))
    rungs = Rung(0, {"accuracy": 0.2}), Rung(20, {"accuracy": 0.9})
    for _ in range(6):
        study.tell(replace(record_of(study.ask()), rungs=rungs))
    asked = record_of(study.ask())
    stopped = replace(asked, state="stopped", metrics={"accuracy": 0.2}, rungs=rungs[:1])
    assert not study.judged(stopped).feasible
    study.tell(study.judged(stopped))
    last = study._study.get_trials(deepcopy=False)[-1]
    assert last.values[0] == pytest.approx(0.9), "others of its first rung came so far"
    assert last.constraints["metric"] < 0, "so the sampler takes it for useful"


def test_what_an_ended_trial_leaves_in_memory_is_little_and_the_journal_has_all(path: Path) -> None:
    study = opened(path)
    kept = []
    for _ in range(3):
        kept.append(record_of(study.ask()))
        study.tell(kept[-1])
    study.enqueue([kept[0].candidate], "uniform")  # answered from its record
    study.ask()
    held = study._study.get_trials(deepcopy=False)
    ended = [trial for trial in held if trial.state.is_finished()]
    assert len(ended) == 4
    for trial in ended:
        assert trial.distributions is ended[0].distributions, "all trials share them"
        assert not {"record", "fixed_params"} & {*trial.user_attrs, *trial.system_attrs}
    again = opened(path)
    assert again.records() == kept
    assert again.requeue_interrupted() == 1 and again.records() == kept


# --- what does not go through the queue


def test_what_is_added_leaves_the_queue_as_it_is(path: Path) -> None:
    study = opened(path)
    queued = [Candidate(prune_ratio={"conv": 0.5}), Candidate(drop=frozenset({"block"}))]
    study.enqueue(queued, "uniform")
    whole = record_of(Asked(study.next_number, Candidate(weight_bits={"fc": 8}), "whole model"), 0.8)
    study.add(whole)
    assert study.records() == opened(path).records() == [whole]
    asked = [study.ask(), study.ask()]
    assert [item.candidate for item in asked if item] == queued


def test_a_polish_leaves_the_queue_and_the_sampler_as_they_are(path: Path) -> None:
    study = opened(path)
    first = record_of(study.ask())
    study.tell(first)
    queued = Candidate(drop=frozenset({"block"}), weight_bits={"fc": 8})
    study.enqueue([queued], "uniform")
    polish = study.ask_polish(first.candidate, {"origin": first.number, "steps": 300})
    assert (polish.candidate, polish.origin, polish.polish) == (
        first.candidate, POLISHED, {"origin": first.number, "steps": 300},
    )  # fmt: skip
    assert study.n_open == 1
    study.tell(replace(record_of(polish), metrics={"accuracy": 0.99, "loss": 0.0}))
    assert study.n_open == 0
    assert frozen(path)[polish.number].state == TrialState.FAIL, "no sampler learns from a failed trial"
    assert (study.n_finished, len(study.records())) == (1, 2)
    assert study.explored() == opened(path).explored() == [first]
    asked = study.ask()
    assert asked is not None and asked.candidate == queued
    study.enqueue([first.candidate], "uniform")
    study.ask()
    repeat = next(trial for trial in frozen(path) if trial.user_attrs.get("repeats") == first.number)
    assert repeat.values == [0.9, 0.4], "its repeats are answered by what the exploration gave"


def test_a_polish_that_was_cut_off_keeps_its_number_and_is_given_out_once(path: Path) -> None:
    study = opened(path)
    first = record_of(study.ask())
    study.tell(first)
    polish = study.ask_polish(first.candidate, {"origin": first.number, "steps": 300})
    for _ in range(2):  # killed, and again before anything was asked
        study = opened(path)
        assert study.ask_cut_off() is None
        assert study.requeue_interrupted() == study.n_open == 1
    assert study.ask_cut_off() == polish
    assert study.ask_cut_off() is None and study.n_open == 1
    study.tell(record_of(polish))
    again = opened(path)
    assert again.requeue_interrupted() == again.n_open == 0
    assert [record.origin for record in again.records()] == ["sampler", POLISHED]


def test_a_stopped_trial_is_not_told_by_what_a_polish_reached() -> None:
    knobs = tuple(Knob("weight_bits", f"fc{i}", (32, 8)) for i in range(4))
    study = SearchStudy(None, SearchSpace(knobs), RandomSampler(seed=0), of_accuracy())
    for _ in range(6):
        first = record_of(study.ask(), accuracy=0.5)
        study.tell(first)
        polish = study.ask_polish(first.candidate, {"origin": first.number, "steps": 300})
        study.tell(record_of(polish, accuracy=0.99))
    asked = record_of(study.ask(), accuracy=0.2)
    study.tell(replace(asked, state="stopped", rungs=(Rung(0, {"accuracy": 0.2}),)))
    assert study._study.get_trials(deepcopy=False)[-1].values[0] == pytest.approx(0.5)
