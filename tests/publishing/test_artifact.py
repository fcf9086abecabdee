"""A compressed model comes back from its folder with the same outputs; a folder that is not one says why."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.compression import Recipe, rebuild, resolve
from autocompress.errors import InputError
from autocompress.graph import ModelGraph, inspect_model
from autocompress.publishing.artifact import (
    load,
    load_student,
    model_digest,
    read_manifest,
    save_student,
    write_manifest,
)
from autocompress.results.records import FileNumbers, Latency, TrialRecord
from autocompress.space.candidate import Candidate
from autocompress.task import SupervisedTask
from tests.shared.tasks import TinyNet, batches, images, tiny_task, trained_model

INPUTS = (images(1, 0)[0],)
EVERYTHING = Candidate(
    prune_ratio={"conv1": 0.5, "conv2": 0.25},
    rank_ratio={"conv2": 0.5},
    weight_bits={"conv1": 8, "conv2": 8, "fc": 8},
)
CANDIDATES = {
    "nothing": Candidate(),
    "pruned": Candidate(prune_ratio={"conv1": 0.5}),
    "low rank": Candidate(rank_ratio={"conv2": 0.5}),
    "8 bits": Candidate(weight_bits={"conv1": 8, "fc": 8}),
    "everything": EVERYTHING,
}
LATENCY = Latency(0.5, 0.01, 1.5, 9)
RECORD = TrialRecord(
    number=42,
    state="complete",
    origin="uniform",
    candidate=EVERYTHING,
    metrics={"accuracy": 0.9},
    latency=LATENCY,
    file=FileNumbers({"test": {"accuracy": 0.8}}, {"test": 100}, LATENCY, 0.2, 0.01, 0.99),
)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained_model()


@pytest.fixture(scope="module")
def graph(model: nn.Module) -> ModelGraph:
    return inspect_model(model, INPUTS)


def student_of(model: nn.Module, graph: ModelGraph, candidate: Candidate = EVERYTHING) -> tuple[nn.Module, Recipe]:
    """Compressed, and then changed as a fine-tune changes it: weights, norms and ranges."""
    recipe = resolve(model, graph, candidate)
    student = rebuild(model, graph, recipe, [INPUTS])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        student.train()(images(32, 8)[0])
    return student.eval(), recipe


@pytest.fixture(scope="module")
def point(model: nn.Module, graph: ModelGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A front point's folder."""
    folder = tmp_path_factory.mktemp("front") / "trial_0042"
    student, recipe = student_of(model, graph)
    save_student(folder, student, recipe)
    (folder / "recipe.json").unlink()
    (folder / "model.onnx").write_bytes(b"what the runtime runs")
    n_params = sum(parameter.numel() for parameter in model.parameters())
    facts = {"task": "tiny", "runtime": "onnxruntime", "uncompressed": {"n_params": n_params}}
    write_manifest(folder, RECORD, recipe, folder / "model.onnx", facts)
    return folder


@pytest.fixture
def copied(point: Path, tmp_path: Path) -> Path:
    """One that a test may damage."""
    return Path(shutil.copytree(point, tmp_path / "copied"))


def difference(one: nn.Module, other: nn.Module) -> float:
    x = images(64, 9)[0]
    with torch.no_grad():
        return float((one(x) - other(x)).abs().max())


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_student_comes_back_with_the_same_outputs(
    model: nn.Module, graph: ModelGraph, tmp_path: Path, name: str
) -> None:
    before = copy.deepcopy(model.state_dict())
    student, recipe = student_of(model, graph, CANDIDATES[name])
    save_student(tmp_path / "made" / "here", student, recipe)
    loaded, loaded_recipe = load_student(tmp_path / "made" / "here", model, graph)
    assert difference(student, loaded) == 0
    assert difference(student, model) > 1e-3, "it is not the uncompressed model that came back"
    assert loaded_recipe == recipe
    assert not loaded.training
    assert type(loaded) is TinyNet
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {path.name for path in (tmp_path / "made" / "here").iterdir()} == {"weights.safetensors", "recipe.json"}


def test_saving_again_replaces_what_was_there(model: nn.Module, graph: ModelGraph, tmp_path: Path) -> None:
    for candidate in (EVERYTHING, Candidate(weight_bits={"fc": 8})):
        student, recipe = student_of(model, graph, candidate)
        save_student(tmp_path, student, recipe)
        assert difference(load_student(tmp_path, model, graph)[0], student) == 0


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x.flatten(1))))


def test_a_weight_that_two_layers_share(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    graph = inspect_model(model, INPUTS)
    student = rebuild(model, graph, Recipe())
    with torch.no_grad():
        student.get_parameter("a.weight").mul_(2)
    save_student(tmp_path, student, Recipe())
    loaded, _ = load_student(tmp_path, model, graph)
    assert difference(student, loaded) == 0
    assert loaded.get_parameter("a.weight") is loaded.get_parameter("b.weight")


def test_a_front_point_is_loaded_as_a_plain_module(model: nn.Module, graph: ModelGraph, point: Path) -> None:
    student, _ = student_of(model, graph)
    for folder in (point, str(point)):
        loaded = load(folder, tiny_task())
        assert difference(student, loaded) <= 1e-5
        assert not loaded.training
    outputs: Tensor = loaded.train()(images(4, 0)[0])
    torch.autograd.backward(outputs.sum())
    assert difference(copy.deepcopy(loaded.eval()), loaded) == 0


def test_nothing_in_a_folder_is_pickled(point: Path) -> None:
    content = (point / "weights.safetensors").read_bytes()
    (n_header,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + n_header])
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    assert "fc.weight" in tensors
    assert max(entry["data_offsets"][1] for entry in tensors.values()) == len(content) - 8 - n_header
    json.loads((point / "manifest.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert {path.name for path in point.iterdir()} == {"weights.safetensors", "manifest.json", "model.onnx"}
    for path in point.iterdir():
        assert not path.read_bytes().startswith((b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"))


def test_the_manifest_says_what_was_done_and_measured(point: Path) -> None:
    data = read_manifest(point)
    assert (data["trial"], data["task"], data["runtime_file"]) == (42, "tiny", "model.onnx")
    assert Candidate.from_dict(data["candidate"]) == EVERYTHING
    assert Recipe.from_dict(data["recipe"]).bits == {"conv1": 8, "conv2": 8, "fc": 8}
    for name in ("model.onnx", "weights.safetensors"):
        assert data["files"][name] == hashlib.sha256((point / name).read_bytes()).hexdigest()
    assert FileNumbers.from_dict(data["numbers"]) == RECORD.file
    assert data["search"] == {"metrics": {"accuracy": 0.9}, "latency": LATENCY.__dict__}


# --- folders that are not what they should be


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "manifest.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**data, **changes}), encoding="utf-8")


@pytest.mark.parametrize("missing", ["manifest.json", "weights.safetensors"])
def test_a_file_that_is_missing(copied: Path, missing: str) -> None:
    (copied / missing).unlink()
    with pytest.raises(InputError, match=f"holds {missing}, but .*copied does not"):
        load(copied, tiny_task())


def test_no_such_folder(model: nn.Module, graph: ModelGraph, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name a folder in RUN/front/"):
        load(tmp_path / "nothing", tiny_task())
    with pytest.raises(InputError, match=r"recipe\.json must exist"):
        load_student(tmp_path / "nothing", model, graph)


@pytest.mark.parametrize("text", ["", "{", '{"schema": 1', "nonsense", b"\xff\xfe\x00"])
def test_a_manifest_that_is_no_json(copied: Path, text: str | bytes) -> None:
    (copied / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        load(copied, tiny_task())


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"'])
def test_a_manifest_that_is_no_object(copied: Path, text: str) -> None:
    (copied / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json is damaged: .* must hold a JSON object"):
        load(copied, tiny_task())


def test_a_manifest_of_another_version(copied: Path) -> None:
    edit(copied, schema=99)
    with pytest.raises(InputError, match="has schema 99, but this version reads 1"):
        load(copied, tiny_task())


@pytest.mark.parametrize("key", ["recipe", "uncompressed", "task"])
def test_a_manifest_without_a_part(copied: Path, key: str) -> None:
    data = read_manifest(copied)
    del data[key]
    (copied / "manifest.json").write_text(json.dumps(data))
    other_model = SupervisedTask(nn.Sequential(TinyNet(), nn.Linear(4, 4)), batches(64, 1), [], [])
    with pytest.raises(InputError, match=r"manifest\.json|was compressed from a model of"):
        load(copied, other_model if key == "task" else tiny_task())


@pytest.mark.parametrize("recipe", [{}, {"dropped": 5}, [], {"surprise": 1}])
def test_a_recipe_that_is_damaged(copied: Path, recipe: object) -> None:
    edit(copied, recipe=recipe)
    with pytest.raises(InputError, match="recipe"):
        load(copied, tiny_task())


@pytest.mark.parametrize("n_bytes", [0, 4, 100, -50])
def test_weights_that_are_cut_off(copied: Path, n_bytes: int) -> None:
    weights = copied / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:n_bytes])
    with pytest.raises(InputError, match=r"weights\.safetensors differs from the digest"):
        load(copied, tiny_task())
    edit(copied, files={})
    with pytest.raises(InputError, match=r"weights\.safetensors must hold the weights of this model"):
        load(copied, tiny_task())


def test_weights_of_another_candidate(model: nn.Module, graph: ModelGraph, copied: Path, tmp_path: Path) -> None:
    student, recipe = student_of(model, graph, Candidate(prune_ratio={"conv1": 0.5}))
    save_student(tmp_path / "other", student, recipe)
    shutil.copy(tmp_path / "other" / "weights.safetensors", copied)
    edit(copied, files={})
    with pytest.raises(InputError, match="compressed by its recipe, but"):
        load(copied, tiny_task())


class Renamed(nn.Module):
    """As many parameters under other names."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TinyNet()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def test_another_model(copied: Path) -> None:
    bigger = SupervisedTask(nn.Sequential(TinyNet(), nn.Linear(4, 4)), batches(64, 1), [], [])
    with pytest.raises(InputError, match=r"from a model of 2772 parameters, but .* has 2792; .* searched \(tiny\)"):
        load(copied, bigger)
    with pytest.raises(InputError, match="the recipe in .* does not fit this model"):
        load(copied, SupervisedTask(Renamed(), batches(64, 1), [], []))


# --- digests


def test_digests_follow_names_shapes_and_values(model: nn.Module) -> None:
    digest = model_digest(model)
    assert re.fullmatch("[0-9a-f]{12}", digest)
    assert model_digest(copy.deepcopy(model)) == digest
    changed = {
        "a weight": lambda net: net.get_parameter("fc.weight")[0, 0].add_(1e-6),
        "a buffer": lambda net: net.get_buffer("bn1.running_var")[3].add_(1e-6),
        "a counter": lambda net: net.get_buffer("bn1.num_batches_tracked").add_(1),
    }
    digests = {digest}
    for change in changed.values():
        other = copy.deepcopy(model)
        with torch.no_grad():
            change(other)
        digests.add(model_digest(other))
    digests.add(model_digest(Renamed()))
    digests.add(model_digest(copy.deepcopy(model).double()))
    digests.add(model_digest(copy.deepcopy(model).bfloat16()))
    assert len(digests) == 7


def test_a_digest_tells_a_shape_from_its_transpose() -> None:
    one, other = nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        one.weight.fill_(1.0)
        other.weight.fill_(1.0)
    assert model_digest(one) != model_digest(other)
