"""Hand-edited and cut-off profiles: one clear error with the line, whatever was edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autocompress.errors import InputError
from autocompress.latency import LatencyModel
from autocompress.space.candidate import Candidate
from tests.latency.nets import made_up_table


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    table = made_up_table(14).to_dict()
    return json.loads(json.dumps({**table, "updates": []}))  # type: ignore[no-any-return]


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the numbers, texts, lists and mappings of a document are."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, item in inner for place in places(item, (*here, key)))]


def edited(document: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(document))
    target = copy
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    return copy  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("place", "value", "rule"),
    [
        (("baseline_ms",), 0, "must be a positive number, but is 0"),
        (("n_threads",), "one", "must be a whole number of at least 0, but is 'one'"),
        (("device", "cpu"), 5, "must be text, but is 5"),
        (("repeatability",), "low", "must be a number, but is 'low'"),
        (("shape", "layers", 3, "n_out"), 1.5, r"`shape.layers\[3\].n_out` must be a whole number"),
        (("shape", "layers", 3, "n_out"), 0, r"`shape.layers\[3\]` must have at least one input"),
        (("shape", "layers", 2, "feeds"), [99], r"`shape.layers\[2\]` must name layers by indices below 8"),
        (("shape", "layers", 2, "feeds"), [-1], "must be a whole number of at least 0"),
        (("shape", "layers", 2, "path"), "head", "must be a name of its own, but 'head' is another's"),
        (("shape", "layers", 2, "colour"), "red", "'colour' is missing or too many"),
        (("shape", "groups", 0, "out"), [[0]], "must be a list of 2"),
        (("shape", "groups", 0, "producers"), [8], "must name layers by indices below 8"),
        (("candidates", 3, 1), -1, r"`candidates\[3\]\[1\]` must be a positive number, but is -1"),
        (("candidates", 2, 0, "weight_bits"), {"nowhere": 8}, r"`candidates\[2\]` must be a candidate of this model"),
        (("candidates", 2, 0, "weight_bits"), {"head": 9}, r"`candidates\[2\]` must be a candidate of this model"),
        (("pieces", "fast"), 0.1, "must be the key of a layer"),
        (("schema",), 99, "must be 1, but is 99"),
    ],
)
def test_the_line_of_an_edit_is_named(
    good: dict[str, Any], tmp_path: Path, place: tuple[Any, ...], value: Any, rule: str
) -> None:
    path = tmp_path / "device.json"
    path.write_text(json.dumps(edited(good, place, value), indent=1), encoding="utf-8")
    with pytest.raises(InputError, match=rf"device.json, line \d+: .*{rule}") as error:
        LatencyModel.load(path)
    line = path.read_text(encoding="utf-8").splitlines()[int(str(error.value).split("line ")[1].split(":")[0]) - 1]
    if not isinstance(value, list | dict) and "at least one" not in rule and "colour" not in rule:
        assert json.dumps(value) in line


def test_any_cut_is_refused(good: dict[str, Any], tmp_path: Path) -> None:
    path, text = tmp_path / "device.json", json.dumps(good, indent=1)
    for n in range(0, len(text) - 2, len(text) // 25):
        path.write_text(text[:n], encoding="utf-8")
        with pytest.raises(InputError, match=r"device.json is damaged: line \d+ is not JSON"):
            LatencyModel.load(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_edit_is_refused_or_leaves_a_model_that_predicts(
    good: dict[str, Any], tmp_path: Path, data: st.DataObject
) -> None:
    place = data.draw(st.sampled_from([place for place in places(good) if place]))
    wrong = st.sampled_from([None, True, -1, 0, 3, 1e9, 0.5, "", "text", [], [1], {}, {"a": 1}])
    path = tmp_path / "device.json"
    path.write_text(json.dumps(edited(good, place, data.draw(wrong)), indent=1), encoding="utf-8")
    try:
        model = LatencyModel.load(path)
    except InputError as error:
        assert "line " in str(error)
        return
    assert model.interval([Candidate()]).shape == (1, 2)
