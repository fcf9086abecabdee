"""Data and models of real kinds go all the way: nested inputs, several outputs, lengths that differ, half precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autocompress as ac
from autocompress.batches import counted, restored
from autocompress.compression.low_rank.moments import collect_moments
from autocompress.config import DistillSettings
from autocompress.devices import tensors_in
from autocompress.distillation.fine_tune import FineTune, Teacher, teaching_loss
from autocompress.distillation.precision import FastMode
from autocompress.errors import ExportError, InputError
from autocompress.evaluation import evaluate_model, evaluate_session
from autocompress.graph import inspect_model
from autocompress.metrics import main_output
from autocompress.results.records import read_records
from autocompress.runtimes import check_parity, export_for, runtime_named
from autocompress.space.candidate import Candidate
from autocompress.task import SupervisedTask
from autocompress.task_access import calibration_of, examples_of, model_of
from autocompress.task_check import check_task
from tests.shared.real_data import DYNAMIC, TextNet, text_batches, text_task, two_heads_task


@dataclasses.dataclass
class Output:
    hidden: Tensor
    logits: Tensor


# --- which output


def test_the_main_output() -> None:
    logits, other, ids = torch.zeros(2, 3), torch.ones(2, 5), torch.ones(2, dtype=torch.long)
    assert main_output(logits) is logits
    assert main_output({"loss": other, "logits": logits}) is logits
    assert main_output(Output(other, logits)) is logits
    assert main_output((ids, (other, logits))) is other
    with pytest.raises(InputError, match="floating-point tensor"):
        main_output({"ids": ids})


def test_outputs_are_put_together_again() -> None:
    example = {"a": torch.zeros(1), "b": (None, [torch.ones(1)]), "c": Output(torch.zeros(2), torch.zeros(3))}
    numbered = [torch.tensor([i]) for i in range(4)]
    made = restored(example, numbered)
    assert [int(tensor) for tensor in tensors_in(made)] == [0, 1, 2, 3]
    assert made["b"][0] is None and isinstance(made["c"], Output)


# --- padding


def test_padding_and_ignored_targets_count_in_no_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 3, 5, 7, generator=generator)
    targets = torch.randint(7, (3, 5), generator=generator)
    targets[0, 1] = -100
    inputs = {"attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])}
    kept = inputs["attention_mask"].bool() & (targets != -100)
    p, log_q = (theirs[kept] / 2).softmax(-1), (ours[kept] / 2).log_softmax(-1)
    expected = 4 * (p * (p.log() - log_q)).sum(-1).mean()
    torch.testing.assert_close(teaching_loss(ours, theirs, 2.0, targets, "kl", inputs), expected)
    squares = (ours - theirs)[kept].square().mean()
    torch.testing.assert_close(teaching_loss(ours, theirs, 2.0, targets, "mse", inputs), squares)
    cosine = (1 - F.cosine_similarity(ours[kept], theirs[kept], dim=-1)).mean()
    torch.testing.assert_close(teaching_loss(ours, theirs, 2.0, targets, "cosine", inputs), cosine)
    assert counted((3,), {"x": torch.zeros(3, 5)}, torch.zeros(3)) is None


def test_padding_counts_in_no_second_moment() -> None:
    torch.manual_seed(0)
    model = TextNet().eval()
    batches = [inputs for inputs, _ in text_batches(48, 0)]
    found = collect_moments(model, ["embedding", "query"], batches)
    rows, n_tokens = [], torch.zeros(50, dtype=torch.double)
    for inputs in batches:
        kept = inputs["attention_mask"].bool()
        rows.append(model.embedding(inputs["input_ids"])[kept].detach().double().numpy())
        n_tokens += torch.bincount(inputs["input_ids"][kept], minlength=50)
    x = np.concatenate(rows)
    np.testing.assert_allclose(found["query"][0].numpy(), x.T @ x / len(x), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["embedding"][0].numpy(), (n_tokens / n_tokens.sum()).numpy(), rtol=1e-12)


# --- nested inputs, several outputs


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_nested_inputs_and_several_outputs_go_all_the_way(runtime: str, tmp_path: Path) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    task = two_heads_task()
    check_task(task)
    model, inputs = model_of(task), examples_of(task)
    graph = inspect_model(model, inputs)
    assert {group.name for group in graph.groups} >= {"conv1", "conv2"}
    candidate = Candidate(
        prune_ratio={"conv1": 0.5, "conv2": 0.5}, weight_bits={"conv2": 8} if runtime != "torch" else {}
    )
    student = ac.compress(model, candidate, inputs, calibration_of(task), graph=graph)
    before = task.loss(student(*task_batch(task)[0]), task_batch(task)).item()
    FineTune(student, Teacher(model), task, DistillSettings(rungs=(0, 20), learning_rate=0.02)).advance(20)
    assert task.loss(student(*task_batch(task)[0]), task_batch(task)).item() < before
    engine = runtime_named(runtime)
    file = export_for(task, engine, student, inputs, tmp_path)
    parity = check_parity(student, engine.load, file, next(calibration_of(task)))
    assert parity.relative_error < 0.15
    metrics, n_samples = evaluate_session(engine.load(file), task, "test")
    assert n_samples == 64 and list(metrics) == ["ShareRight", "loss"]
    assert metrics["ShareRight"] == pytest.approx(evaluate_model(student, task, "test")["ShareRight"], abs=0.05)


def task_batch(task: SupervisedTask) -> Any:
    return next(task.train_batches(0))


def test_what_is_taught_is_the_tasks_choice() -> None:
    task = two_heads_task()
    (inputs, targets) = task_batch(task)
    model = model_of(task)
    student = ac.compress(model, Candidate(prune_ratio={"conv1": 0.5}), examples_of(task))
    fine_tune = FineTune(student, Teacher(model, FastMode(False)), task, DistillSettings(rungs=(0, 1), alpha=1.0))
    ours, theirs = student(*inputs), model(*inputs)
    expected = sum(teaching_loss(ours[name], theirs[name], 4.0, targets) for name in ("scores", "size")) / 2
    torch.testing.assert_close(fine_tune._loss(ours, theirs, (inputs, targets)), expected)


# --- lengths that differ


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_files_take_texts_of_any_length(runtime: str, tmp_path: Path) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    task = text_task()
    check_task(task)
    model, inputs = model_of(task), examples_of(task)
    graph = inspect_model(model, inputs)
    candidate = Candidate(weight_bits={"query": 8, "inner": 8, "outer": 8})
    student = ac.compress(model, candidate, inputs, calibration_of(task), graph=graph)
    engine = runtime_named(runtime)
    file = export_for(task, engine, student, inputs, tmp_path)
    session = engine.load(file)
    session.run(session.prepare(inputs))  # what is timed has the example's shape
    lengths = {tuple(batch["input_ids"].shape) for batch, _ in text_batches(128, 3)}
    assert len(lengths) > 1
    assert evaluate_session(session, task, "test")[0]["accuracy"] == pytest.approx(
        evaluate_model(student, task, "test")["accuracy"], abs=0.03
    )


def test_fixed_files_say_how_to_take_other_lengths(tmp_path: Path) -> None:
    task = text_task(dynamic_dims=None)
    engine = runtime_named("onnxruntime")
    session = engine.load(export_for(task, engine, model_of(task), examples_of(task), tmp_path))
    with pytest.raises(InputError, match="`dynamic_dims`"):
        evaluate_session(session, task, "test")
    with pytest.raises(ExportError, match="runtime 'torch' writes files of fixed shapes"):
        export_for(text_task(), runtime_named("torch"), model_of(task), examples_of(task), tmp_path)
    wrong = text_task(dynamic_dims={"input_ids": {2: "length"}})
    with pytest.raises(InputError, match="'input_ids'.* is none of"):
        export_for(wrong, engine, model_of(task), examples_of(task), tmp_path)


# --- half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_are_widened(dtype: torch.dtype, tmp_path: Path) -> None:
    task = text_task(dtype)
    check_task(task)
    model = model_of(task)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in task.build_model().parameters()} == {dtype}, "the user's is untouched"
    engine = runtime_named("onnxruntime")
    session = engine.load(export_for(task, engine, model, examples_of(task), tmp_path))
    found, _ = evaluate_session(session, task, "test")
    assert found["accuracy"] == pytest.approx(evaluate_model(model, task, "test")["accuracy"], abs=0.02)


def test_inputs_in_half_precision_are_widened_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).bfloat16().eval()
    parts = [(torch.randn(16, 8).bfloat16(), torch.randint(3, (16,))) for _ in range(3)]
    task = SupervisedTask(model, parts, parts, parts)
    check_task(task)
    wide = model_of(task)
    student = ac.compress(wide, Candidate(weight_bits={"0": 8}), examples_of(task), calibration_of(task))
    FineTune(student, Teacher(wide), task, DistillSettings(rungs=(0, 3))).advance(3)
    engine = runtime_named("onnxruntime")
    session = engine.load(export_for(task, engine, student, examples_of(task), tmp_path))
    assert evaluate_session(session, task, "test")[0].keys() == {"accuracy", "loss"}


# --- whole searches


@pytest.mark.slow
@pytest.mark.parametrize("make_task", [text_task, two_heads_task])
def test_a_whole_search_ends_with_files(make_task: Any, tmp_path: Path) -> None:
    task = make_task()
    front = ac.search(
        task, run_dir=tmp_path / "run", n_trials=3, n_workers=1, polish_points=0, show_progress=False,
        distill={"rungs": [0, 4]}, n_threads=1,
    )  # fmt: skip
    records = read_records(tmp_path / "run" / "trials.jsonl")
    assert [record.error for record in records if record.state == "failed"] == []
    assert front.points and all(point.file is not None for point in front.points)
    assert all(record.peak_memory_mib for record in records if record.origin != "baseline")
    for point in front.points:
        assert (tmp_path / "run" / "front" / point.name / "model.onnx").is_file()


def test_dynamic_dims_of_the_tests_name_both_inputs() -> None:
    assert DYNAMIC.keys() == examples_of(text_task()).keys()  # type: ignore[union-attr]
