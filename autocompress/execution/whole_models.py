"""The uncompressed model at each precision that the runtime executes: what a user gets without any search."""

from __future__ import annotations

from collections.abc import Iterator

from autocompress.execution.trial import Trial, TrialPlan, WorkerContext
from autocompress.results.records import WHOLE_MODEL, TrialRecord
from autocompress.results.run_folder import RunFolder
from autocompress.sampling.study import SearchStudy
from autocompress.search_context import SearchContext
from autocompress.space.candidate import FULL_BITS, Candidate, bits_number
from autocompress.space.search_space import SearchSpace

_LEAST_BITS = 8  # lower precisions of the whole model are no runtime's own


def whole_model_candidates(space: SearchSpace) -> Iterator[Candidate]:
    """Nothing removed, and every layer at one precision that the space offers and the runtime executes."""
    knobs = [knob for knob in space.knobs if knob.kind == "weight_bits"]
    executed = [choice for knob in knobs for choice in knob.choices if choice not in knob.size_only]
    for precision in dict.fromkeys(executed):
        if not isinstance(precision, int | str) or precision == FULL_BITS or bits_number(precision) < _LEAST_BITS:
            continue
        choices = {knob.name: precision for knob in knobs if precision in knob.choices}
        yield space.candidate(choices)


def judge_whole_models(study: SearchStudy, context: SearchContext, folder: RunFolder) -> list[str]:
    """Judges each without training, before anything else is tried, and adds it to the study; those known are skipped.

    Returns:
        Why candidates that the runtime or the model refuses could not be judged; the search may still try them.
    """
    refused: list[str] = []
    known = {record.candidate.digest for record in study.records()}
    wanted = [item for item in whole_model_candidates(study.space) if item.digest not in known]
    if not wanted:
        return refused
    worker = WorkerContext(context)
    try:
        for candidate in dict.fromkeys(wanted):
            try:
                record = _judged(worker, candidate, study.next_number, folder)
            except Exception as error:  # whatever export, the runtime or the task raises
                refused.append(f"{type(error).__name__}: {error}")
                continue
            study.add(study.judged(record))
    finally:
        worker.close()
    return refused


def _judged(worker: WorkerContext, candidate: Candidate, number: int, folder: RunFolder) -> TrialRecord:
    trial = Trial.begin(worker, TrialPlan(candidate))
    trial.step()
    outcome = trial.outcome()
    record = TrialRecord(
        number,
        "complete",
        WHOLE_MODEL,
        candidate,
        metrics=outcome.metrics,
        latency=outcome.latency,
        n_params=outcome.n_params,
        n_macs=outcome.n_macs,
        size_mib=outcome.size_mib,
        rungs=outcome.rungs,
        seconds=outcome.seconds,
        peak_memory_mib=outcome.peak_memory_mib,
    )
    path = folder.made(folder.trial(record.name))
    for name, content in trial.files().items():
        (path / name).write_bytes(content)
    return record
