"""Layer times against what is known of the model: which layers there are, and how long a run takes."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis.strategies as st
import onnx
import pytest
from hypothesis import given

from autocompress.errors import InputError
from autocompress.latency.layer_times import _without_profiler, measure_layer_times
from autocompress.results.node_times import LayerTimes, NodeTime
from autocompress.runtimes.node_names import module_of, modules_of_values
from autocompress.task import as_inputs
from tests.shared.points import Point
from tests.shared.tasks import tiny_task

LAYERS = {"conv1", "conv2", "fc"}


@pytest.mark.parametrize("name", ["float_point", "mixed_point"])
def test_every_layer_is_found_and_the_times_sum_to_a_run(name: str, request: pytest.FixtureRequest) -> None:
    folder, record = request.getfixturevalue(name)
    times = LayerTimes.read(folder / "layer_times.json")
    paths = [node.path for node in times.nodes if node.op in ("Conv", "FusedConv", "Gemm", "QLinearConv", "QGemm")]
    expected = ["conv1", "conv2", "fc"] if record.candidate.is_baseline else ["conv1", "conv2.0", "conv2.1", "fc"]
    assert paths == expected, "network order, both factors of a split layer"
    assert sum(node.ms for node in times.nodes) == pytest.approx(times.run_ms)
    assert times.profiled_ms >= 0 and times.n_runs > 2
    n_conversions = sum(node.op in ("QuantizeLinear", "DequantizeLinear") for node in times.nodes)
    assert (n_conversions > 0) == (not record.candidate.is_baseline)


def test_module_names_survive_in_the_file(float_point: Point) -> None:
    file = float_point[0] / "model.onnx"
    nodes, modules = onnx.load(file).graph.node, modules_of_values(file)
    for node in nodes:
        if node.op_type in ("Conv", "Gemm"):
            weight = next(name for name in node.input if name.endswith(".weight"))
            assert module_of(node.name) == weight.removesuffix(".weight")
        if node.op_type == "Relu":
            assert modules[node.output[0]] == modules[node.input[0]] in LAYERS, "an activation is its layer's"
    assert len({node.name for node in nodes}) == len(nodes)


def test_a_runtime_without_a_profiler_has_no_layer_times(tmp_path: Path) -> None:
    assert measure_layer_times(tmp_path / "any", as_inputs(tiny_task().example_inputs()), "other:Runtime") is None


def test_openvino_profiles_the_same_file(mixed_point: Point) -> None:
    pytest.importorskip("openvino", reason="needs the openvino extra")
    inputs = as_inputs(tiny_task().example_inputs())
    times = measure_layer_times(mixed_point[0] / "model.onnx", inputs, "openvino")
    assert times is not None
    # what rounds an input is a node of its own, and on slow machines takes a microsecond
    paths = {node.path.removesuffix(".input_quantizer") for node in times.nodes if node.path}
    assert {"conv1", "conv2.0"} <= paths <= {"conv1", "conv2.0", "conv2.1", "fc"}, "it counts whole microseconds"
    assert sum(node.ms for node in times.nodes) == pytest.approx(times.run_ms)


@given(st.lists(st.floats(1e-4, 10), min_size=1, max_size=20), st.floats(1e-3, 10))
def test_the_profilers_own_cost_is_taken_off_all_nodes_alike(ms: list[float], run_ms: float) -> None:
    left = [node.ms for node in _without_profiler([NodeTime("a", "Conv", value) for value in ms], run_ms)]
    assert sum(left) == pytest.approx(run_ms) or not any(left)
    assert all(value >= 0 for value in left)
    assert [b for _, b in sorted(zip(ms, left, strict=True))] == sorted(left), "the order stays"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "nodes": [{"path": "a"}]}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "layer_times.json"
    file.write_text(text)
    with pytest.raises(InputError, match="must hold layer times"):
        LayerTimes.read(file)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "layer_times.json"
    times = LayerTimes("onnxruntime", 3, 1.0, 1.5, (NodeTime("a", "Conv", 1.0),))
    times.write(file)
    assert LayerTimes.read(file) == times
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 0}))
    with pytest.raises(InputError, match="schema 0"):
        LayerTimes.read(file)
