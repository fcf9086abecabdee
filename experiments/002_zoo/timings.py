"""Time and memory of `inspect_model` on models of real size, on one core.

Each is measured in three fresh processes: in one nothing has run before, so that torch loads parts of itself (and
sympy, and networkx) at its first export, and kernels at the first forward pass; in another two small layers have been
traced and the model has run once before; in the third nothing has run before either, and instead of the graph only
torch.export.export runs, then the model once: what of the first one's memory is not ours.
"""

from __future__ import annotations

import json
import platform
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
CIFAR = {"resnet_56": 9, "resnet_110": 18}
"""Residual blocks in each stage of He et al.'s ResNets for CIFAR-10, two of equal kind to see how time grows."""

LIMITS = {"resnet50": 5, "vit_b_16": 10, "llama_24": 30, "llama_24_wide": 30}
"""CPU seconds that the graph may take."""

HOW = ("--first", "--again", "--export")
SMALL = "two small layers"
RESULTS = Path(__file__).with_name("timings.json")


def build(name: str) -> tuple[Any, Any]:
    """A model with random weights and its example inputs."""
    import torch
    import vision_ops

    vision_ops.allow_import()  # transformers imports torchvision too
    if name == SMALL:
        return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)).eval(), (torch.rand(1, 8),)
    if name in SIZES:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(**SIZES[name], use_cache=False)
        return LlamaForCausalLM(config).eval(), {"input_ids": torch.arange(16)[None]}
    if name in CIFAR:
        from autocompress.tasks.cifar10 import CifarResNet

        return CifarResNet(CIFAR[name]).eval(), (torch.rand(1, 3, 32, 32),)
    import torchvision.models

    return getattr(torchvision.models, name)().eval(), (torch.rand(1, 3, 224, 224),)


def measure(name: str, how: str) -> dict[str, Any]:
    """One row: CPU seconds of the graph or of torch's export, and memory of the process before it and at its peak."""
    import torch

    import autocompress as ac
    from autocompress.graph.trace import split_inputs, trace_model

    torch.set_num_threads(1)
    if how == "--again":
        trace_model(*build(SMALL))
    model, inputs = build(name)
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if how == "--again":
        args, kwargs = split_inputs(inputs)
        with torch.no_grad():
            model(*args, **kwargs)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: building a model takes more than it is
    before = resident_mib("VmRSS")
    cpu = time.process_time()
    if how == "--export":
        args, kwargs = split_inputs(inputs)
        with torch.no_grad():
            torch.export.export(model, args, kwargs, strict=False)
            exported = time.process_time() - cpu
            model(*args, **kwargs)
        return {"cpu_s": round(exported, 2), "added_mib": resident_mib("VmHWM") - before}
    graph = ac.inspect_model(model, inputs)
    seconds = time.process_time() - cpu
    peak = resident_mib("VmHWM")
    return {
        "model": name,
        "cpu_s": round(seconds, 2),
        "limit_cpu_s": LIMITS.get(name),
        "n_ops": sum(node.op == "call_function" for node in trace_model(model, inputs).nodes),
        "n_groups": len(graph.groups),
        "n_branches": len(graph.branches),
        "n_frozen": len(graph.frozen),
        "model_mib": round(size / 2**20, 1),
        "before_mib": before,
        "peak_mib": peak,
        "added_mib": peak - before,
    }


def resident_mib(what: str) -> int:
    """Resident memory of this process: "VmRSS" now, "VmHWM" at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(f"{what}:"))


def main() -> None:
    """Measures the models named, or all, and writes the file anew after each."""
    rows: dict[str, Any] = {}
    if RESULTS.exists():
        rows = {row["model"]: row for row in json.loads(RESULTS.read_text())["rows"]}
    for name in sys.argv[1:] or [SMALL, *CIFAR, "resnet50", "vit_b_16", *SIZES]:
        rows[name], again, export = (_measured(how, name) for how in HOW)
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
        rows[name] |= {
            "again_cpu_s": again["cpu_s"],
            "again_added_mib": again["added_mib"],
            "export_cpu_s": export["cpu_s"],
            "export_added_mib": export["added_mib"],
            "commit": commit.stdout.strip(),
        }
        print(rows[name], flush=True)
        facts = {
            "command": "python experiments/002_zoo/timings.py",
            "machine": f"{platform.machine()}, one thread, a machine shared with other work",
            "versions": {package: version(package) for package in ("torch", "torchvision", "transformers")},
        }
        RESULTS.write_text(json.dumps(facts | {"rows": list(rows.values())}, indent=1) + "\n")


def _measured(how: str, name: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, how, name], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in HOW:
        print(json.dumps(measure(sys.argv[2], sys.argv[1])))
    else:
        main()
