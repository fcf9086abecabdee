"""Why a model is not faster, on made-up layer times whose cause is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.report.point_files import PointFiles, read_point_files, time_shares
from autocompress.report.why import Finding, why_not_faster
from autocompress.results.node_times import LayerTimes, NodeTime
from autocompress.space.candidate import Candidate
from tests.shared.points import Point

LAYERS = ["a", "b", "b.c", "d"]
FULL = {"a": ((16, 3, 3, 3),), "b": ((32, 16, 3, 3),), "d": ((10, 32),)}


def files(shapes: dict[str, tuple[tuple[int, ...], ...]], *nodes: tuple[str, str, float]) -> PointFiles:
    times = tuple(NodeTime(*node) for node in nodes)
    return PointFiles({**FULL, **shapes}, LayerTimes("onnxruntime", 9, sum(n.ms for n in times), 1.0, times))


BEFORE = files({}, ("a", "Conv", 0.1), ("b", "Conv", 0.1), ("d", "Gemm", 0.1))


def found(candidate: Candidate, after: PointFiles, before: PointFiles = BEFORE) -> dict[str, Finding]:
    return {finding.kind: finding for finding in why_not_faster(candidate, before, after, LAYERS)}


def test_nodes_are_gathered_by_the_layer_around_them() -> None:
    nodes = [("b.0", "Conv", 1.0), ("b.c", "Conv", 2.0), ("b", "Relu", 4.0), ("d.q", "QuantizeLinear", 8.0)]
    nodes += [("", "ReorderInput", 16.0), ("x.y", "Add", 32.0), ("", "Relu", 64.0)]
    point = files({}, *nodes)
    assert point.times is not None
    shares = time_shares(point.times, LAYERS)
    assert dict(shares.layers) == {"b": 5.0, "b.c": 2.0}
    assert (shares.conversions_ms, shares.n_conversions, shares.layout_ms, shares.n_layout) == (8.0, 1, 16.0, 1)
    assert (shares.other_ms, shares.n_other, shares.total_ms) == (96.0, 2, 127.0)


def test_a_model_that_got_as_fast_as_it_got_small_has_nothing_to_explain() -> None:
    half = {"a": ((8, 3, 3, 3),), "b": ((16, 8, 3, 3),), "d": ((10, 16),)}
    after = files(half, ("a", "Conv", 0.05), ("b", "Conv", 0.025), ("d", "Gemm", 0.05))
    assert found(Candidate({"a": 0.5, "b": 0.5}), after) == {}


@pytest.mark.parametrize(
    ("kind", "shapes", "ms"),
    [
        ("alignment", ((11, 16, 3, 3),), 0.1),
        ("split", ((4, 16, 3, 3), (32, 4, 1, 1)), 0.1),
        ("no gain", ((16, 8, 3, 3),), 0.1),
    ],
)
def test_a_layer_that_gained_nothing_has_its_cause(kind: str, shapes: tuple[tuple[int, ...], ...], ms: float) -> None:
    after = files({"b": shapes}, ("a", "Conv", 0.01), ("b", "Conv", ms), ("d", "Gemm", 0.01))
    finding = found(Candidate({"b": 0.5}, weight_bits={"a": 8, "d": 8}), after)[kind]
    assert finding.layers == ("b",) and finding.text.startswith("b: ")
    assert finding.share == pytest.approx(ms / (ms + 0.02))


def test_a_short_layer_is_bound_by_its_start() -> None:
    before = files({}, ("a", "Conv", 0.1), ("b", "Conv", 0.006), ("d", "Gemm", 0.006))
    after = files({"b": ((16, 16, 3, 3),)}, ("a", "Conv", 0.03), ("b", "Conv", 0.006), ("d", "Gemm", 0.006))
    assert found(Candidate({"b": 0.5}, weight_bits={"a": 8}), after, before)["launch"].layers == ("b",)


def test_precision_borders_are_counted_and_named() -> None:
    nodes = [("a", "QLinearConv", 0.02), ("b", "Conv", 0.1), ("d", "QGemm", 0.02), ("d", "QuantizeLinear", 0.04)]
    finding = found(Candidate(weight_bits={"a": 8, "d": 8}), files({}, *nodes, ("", "DequantizeLinear", 0.02)))[
        "borders"
    ]
    assert "2 conversions" in finding.text and "changes 2 times" in finding.text and "between a and b" in finding.text
    assert finding.share == pytest.approx(0.06 / 0.2)


def test_untouched_layers_and_operations_without_weights() -> None:
    after = files(
        {"a": ((8, 3, 3, 3),)}, ("a", "Conv", 0.02), ("b", "Conv", 0.1), ("d", "Gemm", 0.1), ("", "Add", 0.06)
    )
    causes = found(Candidate({"a": 0.5}), after)
    assert causes["untouched"].layers == ("b", "d") and "71%" in causes["untouched"].text
    assert causes["rest"].share == pytest.approx(0.06 / 0.28)
    assert list(causes) == ["untouched", "rest"], "the largest share first"


def test_without_layer_times_there_is_nothing_to_say() -> None:
    assert why_not_faster(Candidate({"a": 0.5}), BEFORE, PointFiles(FULL), LAYERS) == []


def test_a_points_files_are_read(mixed_point: Point) -> None:
    point = read_point_files(mixed_point[0], ["conv1", "conv2", "fc"])
    assert point.shapes["conv1"] == ((8, 1, 3, 3),)
    assert [shape[0] for shape in point.shapes["conv2"]] == [8, 16], "both factors: rank 8, 16 outputs"
    assert point.times is not None and len(point.answers) == 8


@pytest.mark.parametrize("damage", [b"", b"\x00", b"\xff" * 16, b"\x04\0\0\0\0\0\0\0null"])
def test_damaged_files_are_left_out_with_a_warning(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "weights.safetensors").write_bytes(damage)
    with pytest.warns(UserWarning, match="cannot be read and are left out"):
        assert read_point_files(tmp_path, ["a"]) == PointFiles()
    assert read_point_files(tmp_path / "missing", ["a"]) == PointFiles()
