"""Time and memory of `inspect_model` on models of real size, each in a process of its own, on one core."""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

LLAMA = {"intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32000}
SIZES: dict[str, dict[str, int]] = {
    **{f"llama_{n}": LLAMA | {"hidden_size": 1024, "num_hidden_layers": n} for n in (6, 12, 24)},
    "llama_24_wide": LLAMA | {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24},
}
LIMITS = {"resnet50": 5, "vit_b_16": 10, "llama_24": 30, "llama_24_wide": 30}
"""CPU seconds that the graph may take."""

RESULTS = Path(__file__).with_name("timings.json")


def build(name: str) -> tuple[Any, Any]:
    """A model with random weights and its example inputs."""
    import torch
    import vision_ops

    vision_ops.allow_import()  # transformers imports torchvision too
    if name == "two small layers":  # what tracing costs at all: torch loads parts of itself at its first export
        return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)).eval(), (torch.rand(1, 8),)
    if name in SIZES:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(**SIZES[name], use_cache=False)
        return LlamaForCausalLM(config).eval(), {"input_ids": torch.arange(16)[None]}
    import torchvision.models

    return getattr(torchvision.models, name)().eval(), (torch.rand(1, 3, 224, 224),)


def measure(name: str) -> dict[str, Any]:
    """One row: CPU seconds of the graph, and the highest memory of the process before and after it."""
    import torch

    import autocompress as ac
    from autocompress.graph.trace import trace_model

    torch.set_num_threads(1)
    model, inputs = build(name)
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    before = peak_mib()
    cpu = time.process_time()
    graph = ac.inspect_model(model, inputs)
    seconds = time.process_time() - cpu
    after = peak_mib()
    return {
        "model": name,
        "cpu_s": round(seconds, 2),
        "limit_cpu_s": LIMITS.get(name),
        "n_ops": sum(node.op == "call_function" for node in trace_model(model, inputs).nodes),
        "n_groups": len(graph.groups),
        "n_branches": len(graph.branches),
        "n_frozen": len(graph.frozen),
        "model_mib": round(size / 2**20, 1),
        "peak_before_mib": before,
        "peak_after_mib": after,
        "added_mib": after - before,
    }


def peak_mib() -> int:
    """The highest resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Measures the models named, or all, and writes the file anew after each."""
    rows: dict[str, Any] = {}
    if RESULTS.exists():
        rows = {row["model"]: row for row in json.loads(RESULTS.read_text())["rows"]}
    for name in sys.argv[1:] or ["two small layers", "resnet50", "vit_b_16", *SIZES]:
        done = subprocess.run([sys.executable, __file__, "--one", name], check=True, capture_output=True, text=True)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        print(rows[name], flush=True)
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
        facts = {
            "command": "python experiments/002_zoo/timings.py",
            "commit": commit.stdout.strip(),
            "machine": f"{platform.machine()}, one thread, a machine shared with other work",
            "versions": {package: version(package) for package in ("torch", "torchvision", "transformers")},
        }
        RESULTS.write_text(json.dumps(facts | {"rows": list(rows.values())}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main()
