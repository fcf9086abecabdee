"""The uncompressed model at each precision of the runtime: which ones, judged once, recorded with their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from optuna.samplers import RandomSampler

from autocompress.execution import whole_models
from autocompress.execution.trial import TrialPlan
from autocompress.execution.whole_models import WHOLE_MODEL, judge_whole_models, whole_model_candidates
from autocompress.publishing.artifact import load_student
from autocompress.results.run_folder import RunFolder
from autocompress.sampling.study import SearchStudy
from autocompress.search_context import SearchContext
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Knob, SearchSpace
from tests.execution.test_trial import context_of, judged
from tests.shared.objectives import of_accuracy
from tests.shared.tasks import tiny_space

pytestmark = pytest.mark.usefixtures("brief_clock")

EIGHT_BITS = Candidate(weight_bits={"conv1": 8, "conv2": 8, "fc": 8})


def test_every_layer_gets_the_precision_where_it_has_it() -> None:
    space = SearchSpace(
        (
            Knob("prune_ratio", "conv1", (0.0, 0.5)),
            Knob("weight_bits", "conv1", (32, 16, 8, 4), size_only=(4,)),
            Knob("weight_bits", "fc", (32, 8, 2)),
        )
    )
    assert list(whole_model_candidates(space)) == [
        Candidate(weight_bits={"conv1": 16}),
        Candidate(weight_bits={"conv1": 8, "fc": 8}),
    ], "neither what no kernel executes, nor less than eight bits"
    assert list(whole_model_candidates(tiny_space())) == [EIGHT_BITS]


@pytest.mark.parametrize(
    "knobs", [(Knob("prune_ratio", "conv1", (0.0, 0.5)),), (Knob("weight_bits", "fc", (32, 8), size_only=(8,)),)]
)
def test_a_space_without_executed_precisions_has_none(knobs: tuple[Knob, ...]) -> None:
    assert list(whole_model_candidates(SearchSpace(knobs))) == []


@pytest.fixture
def study(tmp_path: Path) -> SearchStudy:
    study = SearchStudy(tmp_path / "journal", tiny_space(), RandomSampler(seed=0), of_accuracy())
    study.enqueue([Candidate(prune_ratio={"conv1": 0.5})], "uniform")
    return study


def test_each_is_judged_once_and_leaves_its_files(tmp_path: Path, study: SearchStudy) -> None:
    context, folder = context_of(tmp_path), RunFolder(tmp_path / "run")
    folder.path.mkdir()
    assert judge_whole_models(study, context, folder) == []
    (record,) = study.records()
    assert (record.origin, record.candidate, record.state) == (WHOLE_MODEL, EIGHT_BITS, "complete")
    assert [rung.steps for rung in record.rungs] == [0] and not record.fine_tuned
    assert record.latency is not None and record.size_mib > 0 and record.n_macs > 0
    student, _ = load_student(folder.trial(record.name), context.model, context.graph)
    assert judged(student) == record.metrics
    judge_whole_models(study, context, folder)
    assert study.records() == [record], "it is known"
    asked = study.ask()
    assert asked is not None and asked.candidate == Candidate(prune_ratio={"conv1": 0.5}), "still queued"


def test_what_the_runtime_refuses_is_named_and_left_to_the_search(
    tmp_path: Path, study: SearchStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(worker: object, plan: TrialPlan) -> None:
        raise RuntimeError(f"no kernel for {plan.candidate.weight_bits['fc']} bits")

    monkeypatch.setattr(whole_models.Trial, "begin", refuses)
    context: SearchContext = replace(context_of(tmp_path))
    assert judge_whole_models(study, context, RunFolder(tmp_path / "run")) == ["RuntimeError: no kernel for 8 bits"]
    assert study.records() == []
