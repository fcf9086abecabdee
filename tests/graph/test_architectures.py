"""Architectures of the transformers package, small, from their configs: all prune, all export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.graph import ModelGraph, inspect_model
from autocompress.runtimes import export, runtime_named
from autocompress.space.candidate import Candidate

transformers = pytest.importorskip("transformers", reason="architectures come from the transformers package")

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
GPT = {
    "vocab_size": 60,
    "n_positions": 16,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
IMAGE = {key: value for key, value in SIZES.items() if key != "vocab_size"} | {"image_size": 16, "patch_size": 8}
IDS = torch.randint(2, 60, (2, 7), generator=torch.Generator().manual_seed(0))

MODELS: Mapping[str, tuple[str, dict[str, Any], dict[str, Tensor]]] = {
    "llama": (
        "LlamaForSequenceClassification",
        SIZES | {"num_key_value_heads": 2, "pad_token_id": 0},
        {"input_ids": IDS},
    ),
    "bert": ("BertForSequenceClassification", SIZES, {"input_ids": IDS}),
    "gpt2": ("GPT2LMHeadModel", GPT, {"input_ids": IDS}),
    "vit": ("ViTForImageClassification", IMAGE, {"pixel_values": torch.rand(2, 3, 16, 16)}),
    "mixtral": (
        "MixtralForCausalLM",
        SIZES | {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
        {"input_ids": IDS},
    ),
    "t5": ("T5ForConditionalGeneration", T5, {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}),
}


class First(nn.Module):
    """The tensor of a model's answer that a user reads."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.inner(**inputs).logits


def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    kind, keywords, inputs = MODELS[name]
    model_class = getattr(transformers, kind)
    config = model_class.config_class(**keywords)
    config.use_cache = False
    torch.manual_seed(0)
    return First(model_class(config)).eval(), inputs


def heads(graph: ModelGraph) -> list[str]:
    return [group.name for group in graph.groups if group.n_channels in (2, 4)]


@pytest.mark.parametrize("name", MODELS)
def test_it_prunes_and_exports(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    graph = inspect_model(model, inputs)
    assert heads(graph), "whole attention heads can go"
    student = compress(model, Candidate({group.name: 0.5 for group in graph.groups}), inputs, graph=graph)
    left = sum(parameter.numel() for parameter in student.parameters())
    assert left < 0.65 * graph.n_params
    assert type(student) is type(model)
    with torch.no_grad():
        expected = student(**inputs)
    program = torch.export.export(student, (), inputs, strict=False)
    torch.testing.assert_close(program.module()(**inputs), expected, atol=1e-5, rtol=1e-4)


def test_a_state_space_model_loses_channels_of_its_inner_stream() -> None:
    config = transformers.MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, state_size=4, use_cache=False)
    model, inputs = First(transformers.MambaForCausalLM(config)).eval(), {"input_ids": IDS}
    graph = inspect_model(model, inputs)
    assert [group.n_channels for group in graph.groups] == [16, 32, 32]
    student = compress(model, Candidate({group.name: 0.5 for group in graph.groups}), inputs, graph=graph)
    assert student.get_parameter("inner.backbone.layers.1.mixer.A_log").shape == (16, 4)
    with torch.no_grad():
        assert torch.isfinite(student(**inputs)).all()


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_the_pruned_model_runs_as_onnx(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    graph = inspect_model(model, inputs)
    student = compress(model, Candidate({group.name: 0.5 for group in graph.groups}), inputs, graph=graph)
    file = export(student, inputs, tmp_path)
    with torch.no_grad():
        expected = student(**inputs)
    found = runtime_named("onnxruntime").load(file).predict(inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
