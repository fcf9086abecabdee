"""Peak memory of inspect, space, compress and export for models of real size with random weights.

scale.py encoder-100m onnxruntime            rows are appended to scale.csv
scale.py decoder-250m torch

Each step runs after the ones before it in one process; its peak is that of the process without what the libraries took,
as a multiple of the float32 weights. The process is ended beyond 16 GiB.
"""

from __future__ import annotations

import csv
import gc
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.devices import CPU, PeakMemory
from autocompress.runtimes import runtime_named

RESULTS = Path(__file__).with_name("scale.csv")
COLUMNS = ("model", "runtime", "n_params", "weights_mib", "step", "seconds", "peak_mib", "times_weights")
LIMIT_BYTES = 16 * 2**30


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids).logits
        return logits


def encoder() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return Logits(BertForSequenceClassification(BertConfig(attn_implementation="eager")))


def decoder(size: int, n_layers: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            hidden_size=size, intermediate_size=size * 11 // 4, num_hidden_layers=n_layers, num_attention_heads=16,
            num_key_value_heads=4, vocab_size=32_000, tie_word_embeddings=True, use_cache=False,
            attn_implementation="eager",
        )  # fmt: skip
        return Logits(LlamaForCausalLM(config))

    return make


MODELS = {
    "encoder-100m": encoder,
    "decoder-100m": decoder(768, 8),
    "decoder-250m": decoder(1024, 16),
    "decoder-500m": decoder(1536, 18),
    "decoder-1b": decoder(2048, 22),
}


def main() -> None:
    name, runtime = sys.argv[1:3]
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    torch.set_num_threads(1)
    inputs = (torch.ones(1, 64, dtype=torch.long),)
    runtime_named(runtime)
    libraries = PeakMemory(CPU).mib or 0.0
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    n_params = sum(parameter.numel() for parameter in model.parameters())
    weights = n_params * 4 / 2**20
    rows = []
    kept: dict[str, Any] = {}

    def step(what: str, call: Callable[[], Any]) -> None:
        gc.collect()
        memory, begin = PeakMemory(CPU), time.perf_counter()
        kept[what] = call()
        peak = (memory.mib or 0.0) - libraries
        row = {
            "model": name, "runtime": runtime, "n_params": n_params, "weights_mib": round(weights), "step": what,
            "seconds": round(time.perf_counter() - begin, 1), "peak_mib": round(peak),
            "times_weights": round(peak / weights, 2),
        }  # fmt: skip
        rows.append(row)
        print(row, flush=True)

    step("inspect", lambda: ac.inspect_model(model, inputs))
    step("space", lambda: ac.SearchSpace.load("default", kept["inspect"]))
    candidate = kept["space"].uniform(prune_ratio=0.25)
    step("compress", lambda: ac.compress(model, candidate, inputs, [inputs], graph=kept["inspect"]))
    with tempfile.TemporaryDirectory() as folder:
        step("export", lambda: runtime_named(runtime).export(kept["compress"], inputs, Path(folder)))
    is_new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
