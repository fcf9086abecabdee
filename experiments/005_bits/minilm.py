"""MiniLM's sentence embeddings with linears and embeddings at 4 bits (weights only), after a short distillation.

    python minilm.py files FOLDER    distils, exports for each runtime, counts its kernels, compares embeddings
    python minilm.py speed FOLDER    paired latencies; the only part that needs a quiet core

Figures go to results.json in FOLDER; rows that are there already are passed over.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import onnxruntime as ort
import torch
import torch.nn.functional as F
from run import Results
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.config import DistillSettings
from autocompress.distillation.fine_tune import FineTune, Teacher
from autocompress.graph import inspect_model
from autocompress.latency import time_sessions
from autocompress.runtimes import Runtime, check_parity, runtime_named
from autocompress.runtimes.onnxruntime_backend import session_options
from autocompress.runtimes.openvino_backend import compile_file
from autocompress.space.candidate import Candidate
from autocompress.task import Batch, Inputs, Predict, call_model
from autocompress.tasks.data import data_folder

N_TOKENS, BATCH_SIZE = 64, 16
N_TRAINING, N_CALIBRATION, N_PAIRS = 960, 32, 100
STEPS = 40
RUNTIMES = ("onnxruntime", "openvino")
Ids: TypeAlias = tuple[Tensor, Tensor]  # token ids and mask


class SentenceEncoder(nn.Module):
    """The mean of a BERT encoder's token vectors, at length 1."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        folder = data_folder() / "minilm"
        config = json.loads((folder / "config.json").read_text())
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        shape = {name: config[name] for name in (*sizes, "max_position_embeddings")}
        self.bert = BertModel(BertConfig(**shape), add_pooling_layer=False)
        weights = load_file(folder / "model.safetensors")
        self.bert.load_state_dict({name: weights[name] for name in self.bert.state_dict()})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embeddings (n, 384) of token ids (n, n_tokens); the mask is 1 where there is a token."""
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)


def tokens(sentences: list[str]) -> Ids:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(data_folder() / "minilm" / "tokenizer.json"))
    tokenizer.enable_truncation(N_TOKENS)
    tokenizer.enable_padding(length=N_TOKENS)
    encoded = tokenizer.encode_batch(sentences)
    return torch.tensor([row.ids for row in encoded]), torch.tensor([row.attention_mask for row in encoded])


def rows(name: str) -> list[list[str]]:
    import gzip

    with gzip.open(data_folder() / "text" / f"{name}.tsv.gz", "rt", encoding="utf-8", newline="\n") as file:
        return [line.rstrip("\r\n").split("\t") for line in file][1:]


class EmbeddingTask:
    """Sentences of STS-B's training split; the loss is one minus the cosine to the uncompressed model's embedding."""

    name = "embeddings"

    def __init__(self, model: nn.Module) -> None:
        sentences = [text for row in rows("stsb_train") for text in row[-2:]][:N_TRAINING]
        self._ids, self._mask = tokens(sentences)
        self._teacher = Teacher(model)

    def example_inputs(self) -> Ids:
        return torch.ones(1, N_TOKENS, dtype=torch.long), torch.ones(1, N_TOKENS, dtype=torch.long)

    def train_batches(self, seed: int) -> Iterator[Batch]:
        order = torch.randperm(len(self._ids), generator=torch.Generator().manual_seed(seed))
        for members in order.split(BATCH_SIZE):
            inputs = (self._ids[members], self._mask[members])
            yield inputs, self._teacher.run(inputs)

    def calibration_batches(self) -> Iterator[Inputs]:
        return iter([(self._ids[:N_CALIBRATION], self._mask[:N_CALIBRATION])])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (1 - F.cosine_similarity(outputs.float(), batch[1])).mean()

    def build_model(self) -> nn.Module:
        return self._teacher.model

    def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        raise NotImplementedError("embeddings are judged below")


def embeddings(model: nn.Module, inputs: Ids) -> Tensor:
    with torch.no_grad():
        return torch.cat([call_model(model, part) for part in zip(*(x.split(50) for x in inputs), strict=True)])


def kernels(runtime: str, file: Path, inputs: Ids) -> dict[str, int]:
    """The matrix products that the runtime says it ran, by kernel: its own profile of one run."""
    if runtime == "openvino":
        ops = compile_file(file, 1).get_runtime_model().get_ordered_ops()
        found = [op for op in ops if op.get_rt_info()["layerType"].astype(str) in ("FullyConnected", "MatMul")]
        types = ([item.get_element_type().get_type_name() for item in op.inputs()[:2]] for op in found)
        kinds = (op.get_rt_info()["primitiveType"].astype(str) for op in found)
        return dict(Counter(f"{kind} ({' × '.join(pair)})" for kind, pair in zip(kinds, types, strict=True)))
    options = session_options(1)
    options.enable_profiling = True
    options.profile_file_prefix = str(file.with_name("profile"))
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    session.run(None, dict(zip((item.name for item in session.get_inputs()), (x.numpy() for x in inputs), strict=True)))
    events = json.loads(Path(session.end_profiling()).read_text())
    names = [e["args"]["op_name"] for e in events if e.get("cat") == "Node" and e["name"].endswith("kernel_time")]
    return dict(Counter(name for name in names if "MatMul" in name or "Gemm" in name))


def files(folder: Path, results: Results) -> None:
    torch.manual_seed(0)
    model = SentenceEncoder().eval()
    task = EmbeddingTask(model)
    graph = inspect_model(model, task.example_inputs())
    pairs = rows("stsb_test")[:N_PAIRS]
    test = tokens([text for row in pairs for text in row[-2:]])
    scores = [float(row[-3]) for row in pairs]
    expected = embeddings(model, test)
    student = compress(
        model,
        Candidate(weight_bits={layer.path: "4w" for layer in graph.layers}),
        task.example_inputs(),
        list(task.calibration_batches()),
        graph=graph,
    )
    before = float(F.cosine_similarity(embeddings(student, test), expected).mean())
    begin = time.perf_counter()
    settings = DistillSettings(rungs=(0, STEPS), learning_rate=0.05, alpha=0.0, weight_decay=0.0)
    FineTune(student, Teacher(model), task, settings).advance(STEPS)
    seconds = time.perf_counter() - begin
    trained = embeddings(student, test)
    row = {"cosine_before": before, "cosine": float(F.cosine_similarity(trained, expected).mean())}
    row |= {"spearman": spearman(trained, scores), "spearman_float": spearman(expected, scores)}
    results.add("minilm", "student", {**row, "steps": STEPS, "seconds": seconds})
    for name in RUNTIMES:
        runtime = runtime_named(name)
        sizes = {}
        for bits, net in (("32", model), ("4w", student)):
            for n in (1, 64):
                target = folder / f"minilm_{name}_{bits}_{n}"
                target.mkdir(parents=True, exist_ok=True)
                sizes[bits] = runtime.export(net, batch_of(n), target).stat().st_size
        results.add(
            "minilm", name, _row(runtime, folder / f"minilm_{name}_4w_1", student, test, expected, sizes, scores)
        )


def _row(
    runtime: Runtime,
    folder: Path,
    student: nn.Module,
    test: Ids,
    expected: Tensor,
    sizes: dict[str, int],
    scores: list[float],
) -> dict[str, object]:
    file = folder / "model.onnx"
    ids, mask = test
    check = (ids[:64], mask[:64])
    found = runtime.load(file).predict(test)
    cosines = F.cosine_similarity(found, expected)
    return {
        "bytes_float": sizes["32"],
        "bytes": sizes["4w"],
        "size_ratio": sizes["4w"] / sizes["32"],
        "cosine": float(cosines.mean()),
        "cosine_lowest": float(cosines.min()),
        "spearman": spearman(found, scores),
        "relative_error_to_student": check_parity(student, runtime.load, file, check).relative_error,
        "kernels": kernels(runtime.name, file, (ids[:1], mask[:1])),
    }


def spearman(vectors: Tensor, scores: list[float]) -> float:
    """Rank correlation of the pairs' cosines with the people's scores."""
    similar = F.cosine_similarity(vectors[0::2], vectors[1::2])
    return float(spearmanr(similar.numpy(), scores).statistic)


def batch_of(n: int) -> Ids:
    return torch.ones(n, N_TOKENS, dtype=torch.long), torch.ones(n, N_TOKENS, dtype=torch.long)


def speed(folder: Path, results: Results) -> None:
    for name in RUNTIMES:
        for n, n_rounds in ((1, 15), (64, 3)):
            key = f"{name} batch {n}"
            if results.has("minilm speed", key):
                continue
            load = runtime_named(name).load
            small, whole = (load(folder / f"minilm_{name}_{bits}_{n}" / "model.onnx") for bits in ("4w", "32"))
            timing = time_sessions(small, whole, batch_of(n), n_rounds)
            row = {"ratio": timing.ratio, "spread": timing.spread}
            results.add("minilm speed", key, {**row, "ms": timing.candidate_ms, "reference_ms": timing.reference_ms})


if __name__ == "__main__":
    {"files": files, "speed": speed}[sys.argv[1]](Path(sys.argv[2]), Results(Path(sys.argv[2]) / "results.json"))
