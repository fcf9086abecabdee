"""Decoders by id: perplexity by hand, GPT-2's layers as linear ones, what can be compressed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.compression import compress
from autocompress.errors import InputError
from autocompress.graph import inspect_model
from autocompress.space.search_space import SearchSpace
from autocompress.task import Inputs, as_inputs, call_model, load_task
from autocompress.task_check import check_task
from tests.tasks.hub_models import WORDS, write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def decoder(name: str) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=12, n_positions=32, n_embd=32, n_layer=2, n_head=2)).eval()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=12, max_position_embeddings=32, num_key_value_heads=2, **sizes)
    return LlamaForCausalLM(config).eval()


def write_decoder(folder: Path, name: str) -> Any:
    model = decoder(name)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    order = torch.randint(0, len(WORDS), (60, 8), generator=torch.Generator().manual_seed(1)).tolist()
    (folder / "text.txt").write_text("\n".join(" ".join(WORDS[i] for i in row) for row in order), encoding="utf-8")
    return model


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_perplexity_is_that_of_the_library(name: str, tmp_path: Path) -> None:
    theirs = write_decoder(tmp_path, name)
    task = load_task(f"hf:{tmp_path}", data=str(tmp_path / "text.txt"), max_length=16)
    check_task(task)
    model = task.build_model()
    seen: list[Tensor] = []

    def predict(inputs: Inputs) -> Tensor:
        seen.append(inputs["input_ids"])  # type: ignore[call-overload]
        outputs: Tensor = call_model(model, inputs)
        return outputs

    figures = task.evaluate(predict, "test")
    ids = torch.cat(seen)
    with torch.no_grad():
        logits = theirs(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids), logits)
        expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert figures["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert ids.shape == (4, 16), "480 words are 30 blocks, of which 15% are test"
    assert next(iter(task.objectives.items())) == ("perplexity", "minimize")  # type: ignore[attr-defined]


def test_gpt2s_layers_get_ranks_bits_and_widths(tmp_path: Path) -> None:
    write_decoder(tmp_path, "gpt2")
    task = load_task(f"hf:{tmp_path}", data=str(tmp_path / "text.txt"), max_length=16)
    model, inputs = task.build_model(), as_inputs(task.example_inputs())
    graph = inspect_model(model, inputs)
    space = SearchSpace.load("default", graph)
    knobs = {(knob.kind, knob.target) for knob in space.knobs}
    for layer in ("mlp.c_fc", "mlp.c_proj", "attn.c_proj", "attn.c_attn"):
        assert ("weight_bits", f"model.transformer.h.0.{layer}") in knobs
    assert ("prune_ratio", "model.transformer.h.0.mlp.c_fc") in knobs
    student = compress(model, space.uniform(prune_ratio=0.5, weight_bits=8), inputs, list(task.calibration_batches()))
    with torch.no_grad():
        assert torch.isfinite(call_model(student, inputs)).all()


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    write_decoder(tmp_path, "gpt2")
    (tmp_path / "text.txt").write_text("good film", encoding="utf-8")
    with pytest.raises(InputError, match="at least 7 blocks of 32 tokens, but .*text.txt gives 0"):
        check_task(load_task(f"hf:{tmp_path}", data=str(tmp_path / "text.txt")))
