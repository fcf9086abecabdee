"""Sensitivities: the measured choices, the file, and that a killed measurement resumes."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocompress.compression import compress
from autocompress.config import SearchSettings
from autocompress.errors import InputError
from autocompress.execution.fisher import fisher_sensitivity
from autocompress.execution.sensitivity import (
    ChoiceLoss,
    Effort,
    Sensitivity,
    SensitivityProbe,
    measure_sensitivity,
    single_choices,
    spread_choices,
    with_estimates,
)
from autocompress.graph import inspect_model
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Choice, Knob, SearchSpace
from autocompress.task import call_model
from tests.shared.tasks import images, tiny_space, tiny_task, trained_model

GRAPH = inspect_model(trained_model(), (images(1, 0)[0],))
SPACE = tiny_space()


def probe(**settings: object) -> SensitivityProbe:
    return SensitivityProbe(tiny_task(), trained_model(), GRAPH, SearchSettings.from_dict(settings), True)


class Counting(SensitivityProbe):
    n_asked = 0

    def loss(self, candidate: Candidate) -> float:
        self.n_asked += 1
        return super().loss(candidate)


def counting() -> Counting:
    return Counting(tiny_task(), trained_model(), GRAPH, SearchSettings(), True)


def test_every_choice_that_changes_something_is_measured(tmp_path: Path) -> None:
    measured = measure_sensitivity(SPACE, probe(), tmp_path)
    n_wanted = sum(len(knob.choices) - 1 for knob in SPACE.knobs)
    assert len(measured.choices) == n_wanted == len(list(single_choices(SPACE)))
    assert measured.baseline_loss == pytest.approx(loss_of(trained_model()), rel=1e-5)
    calibration = list(tiny_task().calibration_batches())
    for item, (_, _, candidate) in zip(measured.choices, single_choices(SPACE), strict=True):
        student = compress(trained_model(), candidate, (images(1, 0)[0],), calibration)
        assert item.loss_increase == pytest.approx(loss_of(student) - measured.baseline_loss, abs=1e-5)


def loss_of(model: torch.nn.Module) -> float:
    """Mean loss on the first training batches, which are of one size."""
    task = tiny_task()
    with torch.no_grad():
        losses = [float(task.loss(call_model(model, batch[0]), batch)) for batch in task.train_batches(0)]
    return sum(losses) / len(losses)


def test_increases_cover_every_choice_of_the_space() -> None:
    sensitivity = Sensitivity(
        0.5, (ChoiceLoss("weight_bits", "fc", 8, 0.25), ChoiceLoss("prune_ratio", "conv1", 0.5, math.nan))
    )
    table = sensitivity.increases(SPACE)
    assert set(table) == {knob.name for knob in SPACE.knobs}
    assert table["weight_bits:fc"] == {32: 0.0, 8: 0.25}
    assert table["prune_ratio:conv1"] == {0.0: 0.0, 0.5: math.inf}, "what cannot be applied is never worth it"


def test_the_grid_of_weights_is_that_of_the_runs_files() -> None:
    """Kernels that saturate get half the range; see `Recipe`."""
    whole = SensitivityProbe(tiny_task(), trained_model(), GRAPH, SearchSettings())
    half = probe()
    candidate = Candidate(weight_bits={"conv1": 8, "conv2": 8, "fc": 8})
    assert whole.loss(candidate) != half.loss(candidate) and whole.digest != half.digest
    assert whole.loss(Candidate()) == half.loss(Candidate())


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    first, again = counting(), counting()
    one = measure_sensitivity(SPACE, first, tmp_path)
    other = measure_sensitivity(SPACE, again, tmp_path)
    assert (first.n_asked, again.n_asked) == (len(one.choices) + 1, 0)
    assert other == one


def test_a_measurement_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    whole = measure_sensitivity(SPACE, probe(), tmp_path / "whole")
    (file,) = (tmp_path / "whole").iterdir()
    lines = file.read_text().splitlines()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / file.name).write_text("\n".join(lines[:4]) + "\n" + lines[4][:9])
    rest = counting()
    again = measure_sensitivity(SPACE, rest, tmp_path / "cut")
    assert rest.n_asked == len(lines) - 4
    for ours, theirs in zip(again.choices, whole.choices, strict=True):
        assert ours.loss_increase == pytest.approx(theirs.loss_increase, abs=1e-5)


def test_the_digest_follows_model_and_way_of_compressing() -> None:
    other = trained_model()
    with torch.no_grad():
        other.fc.weight += 0.1  # type: ignore[union-attr]
    digests = {
        probe().digest,
        probe(importance="l1").digest,
        probe(reconstruct=False).digest,
        SensitivityProbe(tiny_task(), other, GRAPH, SearchSettings()).digest,
    }
    assert len(digests) == 4
    assert probe().digest in digests


def test_the_file_has_the_form_that_the_report_reads(tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.json"
    sensitivity = Sensitivity(
        0.5, (ChoiceLoss("drop", "block", True, 1.5), ChoiceLoss("rank_ratio", "fc", 0.5, math.nan))
    )
    sensitivity.write(path)
    assert json.loads(path.read_text()) == {
        "schema": 1,
        "unit": "calibration loss increase",
        "baseline_loss": 0.5,
        "choices": [
            {"knob": "drop", "name": "block", "value": True, "loss_increase": 1.5},
            {"knob": "rank_ratio", "name": "fc", "value": 0.5, "loss_increase": None},
        ],
    }
    back = Sensitivity.read(path)
    assert back.choices[0] == sensitivity.choices[0]
    assert math.isnan(back.choices[1].loss_increase)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 9}', '{"schema": 1, "choices": [{}]}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sensitivity.json").write_text(text)
    with pytest.raises(InputError, match="sensitivity.json"):
        Sensitivity.read(tmp_path / "sensitivity.json")


def test_a_model_without_a_finite_loss_is_refused(tmp_path: Path) -> None:
    model = trained_model()
    with torch.no_grad():
        model.fc.bias.fill_(math.nan)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="finite"):
        measure_sensitivity(SPACE, SensitivityProbe(tiny_task(model), model, GRAPH, SearchSettings()), tmp_path)


def test_the_cheap_variant_orders_the_choices_of_a_layer() -> None:
    task, model = tiny_task(), trained_model()
    cheap = fisher_sensitivity(SPACE, task, model, GRAPH, list(task.train_batches(0)))
    assert cheap.unit == "estimated loss increase"
    table = {(item.knob, item.name, item.value): item.loss_increase for item in cheap.choices}
    assert len(table) == len(list(single_choices(SPACE)))
    assert all(value >= 0 and math.isfinite(value) for value in table.values())
    for layer in ("conv1", "conv2"):
        assert table["weight_bits", layer, 8] < table["prune_ratio", layer, 0.5]
    assert table["rank_ratio", "conv2", 0.5] > 0


def test_the_fisher_of_a_linear_model_is_that_of_the_formula() -> None:
    """One weight w, loss (w x - y)^2 / 2 of one sample: the gradient is (w x - y) x."""
    from torch import nn

    from autocompress.execution.fisher import _fisher

    class Task:
        def loss(self, outputs: torch.Tensor, batch: object) -> torch.Tensor:
            return ((outputs - batch[1]) ** 2 / 2).mean()  # type: ignore[index]

    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
    batches = [((torch.tensor([[3.0]]),), torch.tensor([[1.0]]))]
    information, loss = _fisher(model, Task(), batches)  # type: ignore[arg-type]
    assert information["weight"].item() == pytest.approx(((2 * 3 - 1) * 3) ** 2)
    assert loss == pytest.approx((2 * 3 - 1) ** 2 / 2)


# --- effort and estimates

STEPS = SearchSpace(
    (
        Knob("prune_ratio", "conv1", (0.0, 0.25, 0.5, 0.75)),
        Knob("prune_ratio", "conv2", (0.0, 0.25, 0.5, 0.75)),
        Knob("weight_bits", "fc", (32, 8)),
        Knob("drop", "block", (False, True)),
    )
)
SINGLE = [(knob.name, choice) for knob, choice, _ in single_choices(STEPS)]


@given(st.dictionaries(st.sampled_from(SINGLE), st.floats(-1.0, 5.0) | st.just(math.nan)))
def test_measured_values_are_kept_and_estimates_lie_between_their_neighbours(
    measured: dict[tuple[str, Choice], float],
) -> None:
    found = with_estimates(STEPS, measured)
    assert set(found) == set(SINGLE), "each choice has a value"
    assert all(found[key] is value for key, value in measured.items())
    for knob in STEPS.knobs:
        known = {0: 0.0} | {
            place: measured[knob.name, choice]
            for place, choice in enumerate(knob.choices)
            if math.isfinite(measured.get((knob.name, choice), math.nan))
        }
        for place, choice in enumerate(knob.choices[1:], 1):
            if len(known) == 1 or (knob.name, choice) in measured:
                continue
            below = known[max(at for at in known if at < place)]
            above = known[min((at for at in known if at > place), default=max(known))]
            assert min(below, above) - 1e-9 <= found[knob.name, choice] <= max(below, above) + 1e-9


def test_a_knob_of_which_nothing_is_known_gets_the_median_of_its_kind() -> None:
    measured: dict[tuple[str, Choice], float] = {("prune_ratio:conv1", 0.25): 0.1, ("prune_ratio:conv1", 0.75): 0.9}
    found = with_estimates(STEPS, measured)
    conv2 = [found["prune_ratio:conv2", choice] for choice in (0.25, 0.5, 0.75)]
    assert conv2 == pytest.approx([0.1, 0.5, 0.9]) or conv2 == pytest.approx([0.1, 0.1, 0.9])
    assert found["prune_ratio:conv1", 0.5] == pytest.approx(0.5)
    assert found["drop:block", True] == found["weight_bits:fc", 8] == 0.0, "nothing of their kind is known"


def test_the_strongest_choice_of_every_knob_is_measured_first() -> None:
    order = [(knob.name, choice) for knob, choice, _ in spread_choices(STEPS)]
    assert order[:4] == [
        ("prune_ratio:conv1", 0.75),
        ("prune_ratio:conv2", 0.75),
        ("weight_bits:fc", 8),
        ("drop:block", True),
    ]
    assert sorted(order, key=str) == sorted(SINGLE, key=str)


def test_when_the_time_is_over_the_rest_is_estimated_and_measured_in_a_later_search(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    short = counting()
    partly = measure_sensitivity(
        SPACE, short, tmp_path, effort=Effort(until=time.monotonic(), on_choice=lambda *of: seen.append(of))
    )
    n_choices = len(list(single_choices(SPACE)))
    assert short.n_asked == 1, "the uncompressed model at least"
    assert seen == [(1, n_choices + 1)]
    assert len(partly.choices) == n_choices and all(math.isfinite(item.loss_increase) for item in partly.choices)
    rest = counting()
    whole = measure_sensitivity(SPACE, rest, tmp_path, effort=Effort(on_choice=lambda *of: seen.append(of)))
    assert rest.n_asked == n_choices
    assert seen[1:] == [(i, n_choices + 1) for i in range(2, n_choices + 2)]
    assert whole == measure_sensitivity(SPACE, probe(), tmp_path / "other")
