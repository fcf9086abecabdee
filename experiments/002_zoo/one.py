"""Reads, prunes and exports one model of the zoo."""

from __future__ import annotations

import math
import re
import resource
import time
from collections import Counter
from typing import Any

import torch
from models import build
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import autocompress as ac
from autocompress.graph import ModelGraph
from autocompress.space.candidate import Candidate

SHARE = 0.3
"""Of the channels of every group, rounded up; at least one stays."""


def examine(source: str, name: str) -> dict[str, Any]:
    """The result line of one model."""
    model, inputs = build(source, name)
    row: dict[str, Any] = {"source": source, "name": name}
    start, cpu = time.perf_counter(), time.process_time()
    graph = ac.inspect_model(model, inputs)
    row |= {"graph_s": round(time.perf_counter() - start, 2), "graph_cpu_s": round(time.process_time() - cpu, 2)}
    row |= {
        "n_params": graph.n_params,
        "n_groups": len(graph.groups),
        "n_branches": len(graph.branches),
        "n_frozen": len(graph.frozen),
        "untraced": any(item.name == "(the whole model)" for item in graph.frozen),
        "frozen": reasons(graph),
    }
    ratios = {group.name: min(math.ceil(SHARE * n), n - 1) / n for group in graph.groups for n in [group.n_channels]}
    student = ac.compress(model, Candidate(ratios), inputs, graph=graph)
    before, after = outputs(model, inputs), outputs(student, inputs)
    same = [tensor.shape for tensor in before] == [tensor.shape for tensor in after]
    row["forward_ok"] = same and all(bool(torch.isfinite(t).all()) for t in after if t.is_floating_point())
    row["left"] = round(sum(parameter.numel() for parameter in student.parameters()) / graph.n_params, 4)
    row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    del model
    row["exports"] = exports(student, inputs)
    return row


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All tensors that a model returns."""
    with torch.no_grad():
        found = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


def exports(model: nn.Module, inputs: Any) -> str:
    """ "yes" when `torch.export`, from which every runtime's file is made, takes the model; else its complaint."""
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    try:
        torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:  # whatever goes wrong is the result
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "yes"


def reasons(graph: ModelGraph) -> dict[str, int]:
    """How often each reason for frozen channels or branches occurs; places and counts are left out."""
    counts: Counter[str] = Counter()
    for item in graph.frozen:
        text = re.sub(r"^\d+ of its \d+ channels: ", "", item.reason)
        text = re.sub(r" \(in [^)]*\)", "", text)
        text = re.sub(r"off by [^)]*", "off", re.sub(r"\d+", "N", text))
        counts[f"{item.what}: {text[:160]}"] += 1
    return dict(counts)
