"""Low rank by output error beside plain weight SVD: per layer, whole models, timings, and which inputs count.

    python run.py errors|models|inputs|shows|timings|files|latency

Every part appends what it has measured to its own CSV file and passes over rows that are already there.
"""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from autocompress.compression import CalibrationStats, RebuildOptions, compress, rebuild, resolve
from autocompress.compression.low_rank.decomposition import compose
from autocompress.compression.low_rank.matrices import matrices_of
from autocompress.compression.low_rank.moments import collect_moments, windows
from autocompress.compression.low_rank.source import LowRankSource
from autocompress.compression.recipe import Recipe
from autocompress.execution.trial import n_macs
from autocompress.graph import Layer, inspect_model
from autocompress.latency import measure_paired
from autocompress.machine import describe_machine, describe_versions
from autocompress.runtimes import runtime_named
from autocompress.space.candidate import Candidate
from autocompress.space.ranks import Split, cost, largest_ranks, reason_against
from autocompress.task import Inputs, as_inputs, call_model, load_task

HERE = Path(__file__).parent
REFITTED = RebuildOptions(reconstruct=True)
MODELS = {"resnet56": "cifar10:resnet56", "minilm": "sst2:minilm"}
N_CALIBRATION = {"resnet56": 1024, "resnet20": 512, "minilm": 256}
SCHEMES = ("channel", "spatial", "tucker")
HALF = 0.5
Samples: TypeAlias = tuple[Tensor, ...]


class Case:
    """A model with its graph, calibration batches from the training data, and held-out inputs from the test data."""

    def __init__(self, name: str) -> None:
        self.name, self.task = name, load_task(MODELS.get(name, f"cifar10:{name}"))
        self.model = self.task.build_model()
        self.graph = inspect_model(self.model, as_inputs(self.task.example_inputs()))
        self.calibration = [inputs for inputs, _ in self.batches(N_CALIBRATION[name])]
        self.source = LowRankSource(self.model, self.graph, self.calibration)

    def batches(self, n_samples: int) -> Iterator[tuple[Samples, Tensor]]:
        """The first samples of the calibration order, in batches of 64, not augmented."""
        generator = torch.Generator().manual_seed(0)
        if self.name != "minilm":
            from autocompress.tasks.cifar10 import _to_inputs, load_images

            images, labels = load_images("train")
            for part in torch.randperm(len(images), generator=generator)[:n_samples].split(64):
                yield _to_inputs(images[part]), labels[part]
        else:
            from autocompress.tasks.sst2 import load_sentences

            ids, mask, labels = load_sentences("train")
            for part in torch.randperm(len(ids), generator=generator)[:n_samples].split(64):
                yield (ids[part], mask[part]), labels[part]

    def held_out(self) -> tuple[Samples, Tensor | None]:
        """128 samples that neither training nor calibration has seen, and which positions hold a token."""
        kept: list[Samples] = []
        n_classes = 2 if self.name == "minilm" else 10

        def keep(inputs: Inputs) -> Tensor:
            assert isinstance(inputs, tuple)
            kept.append(inputs)
            return torch.zeros(len(inputs[0]), n_classes)

        self.task.evaluate(keep, "test")
        inputs = tuple(torch.cat(parts)[:128] for parts in zip(*kept, strict=True))
        return inputs, inputs[1].bool().flatten() if self.name == "minilm" else None

    def test_samples(self, n_samples: int) -> tuple[Samples, Tensor]:
        """The first samples of the test split, or all."""
        if self.name == "minilm":
            from autocompress.tasks.sst2 import load_sentences

            ids, mask, labels = load_sentences("test")
            return (ids[:n_samples], mask[:n_samples]), labels[:n_samples]
        from autocompress.tasks.cifar10 import _to_inputs, load_images, split_indices

        images, labels = load_images("test")
        members = split_indices("test")[:n_samples]
        return _to_inputs(images[members]), labels[members]

    def layers(self) -> list[Layer]:
        """Without the first convolution, the embeddings and the classifier."""
        first = "" if self.name == "minilm" else "conv1"
        kinds = ("linear",) if self.name == "minilm" else ("conv2d",)
        return [layer for layer in self.graph.layers if layer.kind in kinds and layer.path not in (first, "head")]


def ranks_within(layer: Layer, scheme: str, share: float) -> tuple[int, ...] | None:
    """The largest ranks, not on a grid, at which the factors take at most this share of the layer's MACs."""
    if reason_against(layer, scheme) is not None:
        return None
    largest = largest_ranks(layer, scheme)
    for step in range(1000, 0, -1):
        ranks = tuple(max(1, math.floor(step / 1000 * most)) for most in largest)
        if cost(layer, scheme, ranks) <= share * cost(layer, None):
            return ranks
    return None


def rows_of(layer: Layer, module: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """What the layer's outputs are computed from, (n, features)."""
    rows = windows(module, x)[0] if isinstance(module, nn.Conv2d) else x.flatten(0, -2)
    return (rows if mask is None else rows[mask]).double()


def layer_inputs(model: nn.Module, layers: list[Layer], inputs: Inputs) -> dict[str, Tensor]:
    """What each layer reads."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(layer.path).register_forward_pre_hook(
            lambda _module, args, path=layer.path: seen.__setitem__(path, args[0])
        )
        for layer in layers
    ]
    with torch.no_grad():
        call_model(model, inputs)
    for handle in handles:
        handle.remove()
    return seen


def errors() -> None:
    """Output error of each layer at half of its MACs, on held-out inputs."""
    for name in MODELS:
        case = Case(name)
        inputs, mask = case.held_out()
        seen = layer_inputs(case.model, case.layers(), inputs)
        for layer in case.layers():
            module = case.model.get_submodule(layer.path)
            (weight,) = matrices_of(module, layer, SCHEMES[0], {})
            rows = rows_of(layer, module, seen[layer.path], mask)
            whole = rows @ weight[0].flatten(1).double().mT
            for scheme in SCHEMES:
                ranks = ranks_within(layer, scheme, HALF)
                if ranks is None or is_done("errors", model=name, layer=layer.path, scheme=scheme):
                    continue
                found = {}
                for aware in (False, True):
                    made = case.source.factors(layer, Split(scheme, ranks), activation_aware=aware)
                    assert made.factors[0] is not None
                    composed = compose(made.factors[0])[0].flatten(1)
                    lost = rows @ (weight[0].flatten(1).double() - composed).mT
                    found[aware] = float(lost.norm() / whole.norm())
                append(
                    "errors",
                    model=name,
                    layer=layer.path,
                    shape="x".join(map(str, layer.weight_shape)),
                    scheme=scheme,
                    ranks=" ".join(map(str, ranks)),
                    macs_share=round(cost(layer, scheme, ranks) / cost(layer, None), 3),
                    plain_error=round(found[False], 5),
                    aware_error=round(found[True], 5),
                    ratio=round(found[True] / found[False], 4),
                )
            print(layer.path, flush=True)


def models() -> None:
    """Accuracy of whole models, every layer at half of its MACs, without any fine-tune; up to 1,000 test samples."""
    for name in sys.argv[2:] or MODELS:
        case = Case(name)
        calibration_stats = CalibrationStats(case.model, case.graph, case.calibration)
        calibration_stats.__dict__["low_rank"] = case.source
        record_model(case, "none", 1.0, None, case.model)
        for scheme in SCHEMES:
            ranks = {layer.path: ranks_within(layer, scheme, HALF) for layer in case.layers()}
            splits = {path: Split(scheme, found) for path, found in ranks.items() if found is not None}
            for aware in (False, True):
                if not splits or is_done("models", model=name, scheme=scheme, macs_share=HALF, aware=aware):
                    continue
                student = rebuild(
                    case.model,
                    case.graph,
                    Recipe(ranks=splits),
                    case.calibration[:4],  # for the norms' statistics
                    RebuildOptions(activation_aware=aware),
                    calibration_stats,
                )
                record_model(case, scheme, HALF, aware, student)


def record_model(case: Case, scheme: str, share: float, aware: bool | None, student: nn.Module) -> None:
    """Judges a model on the test split."""
    if not is_done("models", model=case.name, scheme=scheme, macs_share=share, aware=aware):
        images, labels = case.test_samples(1000)
        with torch.no_grad():
            outputs = torch.cat([call_model(student, part) for part in batches_of(images)])
        values = {
            "n_samples": len(labels),
            "accuracy": round(float((outputs.argmax(1) == labels).double().mean()), 4),
            "loss": round(float(cross_entropy(outputs, labels)), 4),
        }
        append("models", model=case.name, scheme=scheme, macs_share=share, aware=aware, **values)
        print(case.name, scheme, share, aware, values, flush=True)


def batches_of(inputs: Samples) -> Iterator[Samples]:
    """In parts of 100 samples."""
    yield from zip(*(values.split(100) for values in inputs), strict=True)


@torch.no_grad()
def inputs() -> None:
    """After pruning: second moments of the uncompressed model's inputs, or of the pruned student's own."""
    case = Case("resnet20")
    images, labels = case.test_samples(1000)
    calibration_stats = CalibrationStats(case.model, case.graph, case.calibration)
    calibration_stats.__dict__["low_rank"] = case.source
    for prune_ratio in (0.25, 0.5):
        groups = [group for group in case.graph.groups if group.name.endswith("conv1") and group.name != "conv1"]
        candidate = Candidate(prune_ratio={group.name: prune_ratio for group in groups})
        pruned = resolve(case.model, case.graph, candidate, calibration_stats=calibration_stats)
        bare = rebuild(case.model, case.graph, pruned, case.calibration[:4], REFITTED)
        ranks = {layer.path: "spatial:0.25" for layer in case.layers()}
        both = Candidate(prune_ratio=candidate.prune_ratio, rank_ratio=ranks)
        recipe = resolve(case.model, case.graph, both, calibration_stats=calibration_stats)
        own = LowRankSource(case.model, case.graph, case.calibration)
        own.__dict__["moments"] = collect_moments(bare, list(recipe.ranks), case.calibration)
        for kind, source in (("pruned only", None), ("uncompressed model's", case.source), ("student's own", own)):
            if is_done("inputs", prune_ratio=prune_ratio, moments=kind):
                continue
            student = bare
            if source is not None:
                student = _with_source(case, recipe, source, pruned_inputs=kind == "student's own")
            outputs = call_model(student, images)
            values = {
                "accuracy": float((outputs.argmax(1) == labels).double().mean()),
                "loss": round(float(cross_entropy(outputs, labels)), 4),
                "logit_error": round(float((outputs - call_model(bare, images)).norm() / outputs.norm()), 4),
            }
            append("inputs", prune_ratio=prune_ratio, moments=kind, **values)
            print(prune_ratio, kind, values, flush=True)


def _with_source(case: Case, recipe: Recipe, source: LowRankSource, pruned_inputs: bool) -> nn.Module:
    """`rebuild` with these second moments; those of a pruned student are of the kept channels already."""
    calibration_stats = CalibrationStats(case.model, case.graph, case.calibration)
    calibration_stats.__dict__["low_rank"] = source
    if not pruned_inputs:
        return rebuild(case.model, case.graph, recipe, case.calibration[:4], REFITTED, calibration_stats)
    from autocompress.compression.low_rank import matrices
    from autocompress.compression.low_rank import source as module

    whole = matrices.second_moments_of
    setattr(module, "second_moments_of", lambda moments, layer, scheme, gone: [moments[layer.path]])  # noqa: B010
    try:
        return rebuild(case.model, case.graph, recipe, case.calibration[:4], REFITTED, calibration_stats)
    finally:
        setattr(module, "second_moments_of", whole)  # noqa: B010


def shows() -> None:
    """A ResNet-56 with prune, rank and 8 bits in one layer, exported, run by ONNX Runtime beside PyTorch."""
    case = Case("resnet56")
    target = "layer3.4.conv2"
    candidate = Candidate(
        prune_ratio={"layer3.4.conv1": 0.25},
        rank_ratio={target: "spatial:0.25"},
        weight_bits={layer.path: 8 for layer in case.graph.layers},
    )
    calibration_stats = CalibrationStats(case.model, case.graph, case.calibration)
    recipe = resolve(case.model, case.graph, candidate, calibration_stats=calibration_stats)
    student = rebuild(case.model, case.graph, recipe, case.calibration[:4], REFITTED, calibration_stats)
    runtime = runtime_named("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        session = runtime.load(runtime.export(student, as_inputs(case.task.example_inputs()), Path(folder)))
        held_out, _ = case.held_out()
        with torch.no_grad():
            ours = call_model(student, held_out)
        theirs = session.predict(held_out)
        text = f"{target} of ResNet-56: input channels pruned by a quarter, then split, both factors at 8 bits\n\n"
        text += f"{student.get_submodule(target)}\n\n"
        text += "logits of the first three held-out images, PyTorch above ONNX Runtime\n"
        for one, other in list(zip(ours, theirs, strict=True))[:3]:
            for row in (one, other):
                text += " ".join(f"{value:8.4f}" for value in row.tolist()) + "\n"
            text += "\n"
        noise = (theirs - ours).square().mean() / ours.square().mean()
        text += (
            f"difference on 128 images: {10 * float(noise.log10()):.1f} dB, largest {(theirs - ours).abs().max():.4f}, "
        )
        text += f"same class on {int((theirs.argmax(1) == ours.argmax(1)).sum())} of 128\n"
        images, labels = case.test_samples(1000)
        for label, predict in (("PyTorch", predictor(student)), ("ONNX Runtime", session.predict)):
            outputs = torch.cat([predict(part) for part in batches_of(images)])
            share = float((outputs.argmax(1) == labels).double().mean())
            text += f"accuracy on {len(labels)} test images, {label}: {share:.4f}\n"
    (HERE / "shows.txt").write_text(text)
    print(text)


LATENCIES = {
    "resnet56": (0.5, 0.25, "spatial:0.25", "spatial:0.125", "tucker:0.5", "tucker:0.25"),
    "minilm": (0.5, 0.25),
}


def files() -> None:
    """Writes the ONNX files that `latency` times: every layer at one choice, ranks on the grid."""
    for name, choices in LATENCIES.items():
        task = load_task(MODELS[name])
        model, example = task.build_model(), as_inputs(task.example_inputs())
        graph = inspect_model(model, example)
        kinds = ("conv2d",) if name == "resnet56" else ("linear",)
        paths = [layer.path for layer in graph.layers if layer.kind in kinds and layer.path not in ("conv1", "head")]
        for choice in (None, *choices):
            student = model
            if choice is not None:
                candidate = Candidate(rank_ratio=dict.fromkeys(paths, choice))
                student = compress(model, candidate, example, graph=graph, activation_aware=False)
            folder = HERE / "files" / name / str(choice).replace(":", "_")
            folder.mkdir(parents=True, exist_ok=True)
            runtime_named("onnxruntime").export(student, example, folder)
            print(folder, n_macs(student, example), flush=True)


def latency() -> None:
    """Times the files, each in rounds that alternate with the uncompressed model's; an idle machine."""
    for name, choices in LATENCIES.items():
        example = as_inputs(load_task(MODELS[name]).example_inputs())
        (reference,) = (HERE / "files" / name / "None").glob("*.onnx")
        for choice in choices:
            if is_done("latency", model=name, choice=choice):
                continue
            (file,) = (HERE / "files" / name / str(choice).replace(":", "_")).glob("*.onnx")
            found = measure_paired(file, reference, example)
            append("latency", model=name, choice=choice, ratio=round(found.ratio, 4), spread=round(found.spread, 4))
            print(name, choice, found, flush=True)


def timings() -> None:
    """Seconds of each step, on an idle machine."""
    found: dict[str, float] = {}
    for name in MODELS:
        case = Case(name)
        paths = [layer.path for layer in case.graph.layers]
        found[f"{name}: second moments of {N_CALIBRATION[name]} samples, s"], moments = timed(
            lambda: collect_moments(case.model, paths, case.calibration)  # noqa: B023
        )
        case.source.__dict__["moments"] = moments
        begin = time.perf_counter()
        for layer in case.graph.layers:
            case.source.decompositions(layer, "channel")
        found[f"{name}: channel decompositions of all {len(paths)} layers, s"] = time.perf_counter() - begin
        CalibrationStats(case.model, case.graph, case.calibration).low_rank.moments  # noqa: B018
        seconds, _ = timed(lambda: CalibrationStats(case.model, case.graph, case.calibration).low_rank.moments)  # noqa: B023
        found[f"{name}: moments found on disk, digest of model and data included, s"] = seconds
        for scheme in SCHEMES if name == "resnet56" else ("channel",):
            ranks_of = {layer: ranks_within(layer, scheme, HALF) for layer in case.layers()}
            cold: list[float] = []
            warm: list[float] = []
            for layer, ranks in ranks_of.items():
                if ranks is None:
                    continue
                case.source.decompositions(layer, scheme)
                for times, at in ((cold, ranks), (warm, ranks)):
                    seconds, _ = timed(lambda: apply(case, layer, Split(scheme, at)))  # noqa: B023
                    times.append(1e3 * seconds)
            for label, times in (("a rank not asked before", cold), ("a rank asked before", warm)):
                found[f"{name} {scheme}: {label}, ms a layer, mean"] = sum(times) / len(times)
                found[f"{name} {scheme}: {label}, ms a layer, largest"] = max(times)
    data = {**{key: round(value, 3) for key, value in found.items()}, "n_threads": torch.get_num_threads()}
    (HERE / "timings.json").write_text(json.dumps({**environment(), "seconds": data}, indent=1))
    print(json.dumps(data, indent=1))


def apply(case: Case, layer: Layer, split: Split) -> nn.Module:
    """The torch layers at this rank, as in a trial, without the copy of the model."""
    from autocompress.compression.low_rank.layers import layers_of

    made = case.source.factors(layer, split)
    assert made.factors[0] is not None
    return layers_of(case.model.get_submodule(layer.path), split.scheme, made.factors[0])


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it gave."""
    begin = time.perf_counter()
    value = run()
    return time.perf_counter() - begin, value


def predictor(model: nn.Module) -> Callable[[Inputs], Tensor]:
    """What a task judges."""

    def predict(inputs: Inputs) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = call_model(model, inputs)
        return outputs

    return predict


def append(part: str, **row: object) -> None:
    """Adds a row to the part's CSV file."""
    file = HERE / f"{part}.csv"
    is_new = not file.exists()
    with file.open("a", newline="") as out:
        writer = csv.DictWriter(out, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def is_done(part: str, **keys: object) -> bool:
    """Whether a row with these values is there."""
    file = HERE / f"{part}.csv"
    if not file.exists():
        return False
    with file.open(newline="") as rows:
        return any(all(row[key] == str(value) for key, value in keys.items()) for row in csv.DictReader(rows))


def environment() -> dict[str, object]:
    """Machine and library versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return {"commit": commit.stdout.strip(), "machine": describe_machine(), "versions": describe_versions()}


if __name__ == "__main__":
    parts = (errors, models, inputs, shows, timings, files, latency)
    {part.__name__: part for part in parts}[sys.argv[1]]()
