"""The sensitivity map, laid out from what the search wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from autocompress.execution.sensitivity import ChoiceLoss, Sensitivity
from autocompress.report.data import sensitivity_map

CHOICES = [
    {"knob": "prune_ratio", "name": "b", "value": 0.5, "loss_increase": 0.2},
    {"knob": "prune_ratio", "name": "a", "value": 0.25, "loss_increase": 0.1},
    {"knob": "weight_bits", "name": "a", "value": 8, "loss_increase": -0.001},
    {"knob": "prune_ratio", "name": "a", "value": 0.125, "loss_increase": 0.05},
    {"knob": "rank_ratio", "name": "<b>", "value": "energy:0.9", "loss_increase": 0.3},
]


def test_rows_follow_the_network_and_columns_the_knobs(tmp_path: Path) -> None:
    file = tmp_path / "sensitivity.json"
    file.write_text(json.dumps({"schema": 1, "unit": "nats", "baseline_loss": 0.3, "choices": CHOICES}))
    assert sensitivity_map(file, ["a", "b"]) == {
        "unit": "nats",
        "baseline_loss": 0.3,
        "columns": [
            ["prune_ratio", "0.125"],
            ["prune_ratio", "0.25"],
            ["prune_ratio", "0.5"],
            ["rank_ratio", "energy:0.9"],
            ["weight_bits", "8"],
        ],
        "rows": [
            ["a", [0.05, 0.1, None, None, -0.001]],
            ["b", [None, None, 0.2, None, None]],
            ["<b>", [None, None, None, 0.3, None]],
        ],
    }


def test_it_reads_what_the_search_writes(tmp_path: Path) -> None:
    choices = (ChoiceLoss("prune_ratio", "a", 0.5, 0.25), ChoiceLoss("weight_bits", "a", 8, math.nan))
    Sensitivity(0.5, choices, "loss").write(tmp_path / "sensitivity.json")
    found = sensitivity_map(tmp_path / "sensitivity.json", ["a"])
    assert found is not None and found["rows"] == [["a", [0.25, None]]]
    assert (found["unit"], found["baseline_loss"]) == ("loss", 0.5)


def test_a_search_without_one(tmp_path: Path) -> None:
    assert sensitivity_map(tmp_path / "sensitivity.json", []) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "choices": [{}]}', "{"])
def test_a_damaged_one_is_left_out_with_a_warning(tmp_path: Path, text: str) -> None:
    file = tmp_path / "sensitivity.json"
    file.write_text(text)
    with pytest.warns(UserWarning, match="cannot be read and is left out"):
        assert sensitivity_map(file, []) is None


def test_figures_that_are_no_numbers_are_empty(tmp_path: Path) -> None:
    file = tmp_path / "sensitivity.json"
    choice = {"knob": "drop", "name": "a", "value": True, "loss_increase": float("nan")}
    file.write_text(json.dumps({"schema": 1, "unit": "", "baseline_loss": float("nan"), "choices": [choice]}))
    found = sensitivity_map(file, [])
    assert found is not None and found["rows"] == [["a", [None]]] and found["baseline_loss"] is None
    json.dumps(found, allow_nan=False)
