"""On a real GPU: students, streams, both half precisions, a step that does not fit, and a whole search."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autocompress.api import search
from autocompress.compression import compress
from autocompress.config import DistillSettings
from autocompress.devices import PeakMemory, find_device, model_on, on_device, stream_to, tensors_in
from autocompress.distillation.fine_tune import FineTune, Teacher
from autocompress.distillation.precision import FastMode
from autocompress.results.records import read_records
from autocompress.space.candidate import Candidate
from autocompress.task import SupervisedTask
from tests.shared.tasks import batches, images, tiny_task, trained_model

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
EXAMPLE = (images(1, 0)[0],)
CALIBRATION = [inputs for inputs, _ in batches(64, 4)]
EVERYTHING = Candidate(prune_ratio={"conv1": 0.5}, rank_ratio={"conv2": 0.5}, weight_bits={"conv2": 8, "fc": 8})


def test_a_student_made_there_is_the_one_made_here() -> None:
    model = trained_model()
    here = compress(model, EVERYTHING, EXAMPLE, CALIBRATION)
    there = compress(model_on(model, CUDA), EVERYTHING, EXAMPLE, CALIBRATION)
    assert {tensor.device.type for tensor in there.state_dict().values()} == {"cuda"}
    x = (images(32, 5)[0],)
    with torch.no_grad():
        torch.testing.assert_close(there(*on_device(x, CUDA)).cpu(), here(*x), rtol=0.05, atol=0.05)


def test_a_stream_gives_every_batch_unharmed() -> None:
    parts = [(torch.full((1 << 20,), float(i)), torch.tensor([i])) for i in range(20)]
    for i, moved in enumerate(stream_to(parts, CUDA)):
        assert all(tensor.is_cuda for tensor in tensors_in(moved))
        assert bool((moved[0] == i).all()) and int(moved[1]) == i


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_fine_tune_in_half_precision_gains(half: torch.dtype) -> None:
    model = model_on(trained_model(), find_device("cuda"))
    student = compress(model, EVERYTHING, EXAMPLE, CALIBRATION, reconstruct=False)
    fine_tune = FineTune(
        student, Teacher(model, FastMode(True, True, "cuda", half)), tiny_task(), DistillSettings(rungs=(0, 40))
    )
    x, labels = on_device(images(256, 9), CUDA)
    before = nn.functional.cross_entropy(student(x), labels).item()
    fine_tune.advance(40)
    assert nn.functional.cross_entropy(student(x), labels).item() < before


def test_a_step_that_does_not_fit_is_done_in_halves() -> None:
    class Greedy(nn.Module):
        """Takes memory with its batch: 32 samples do not fit, 16 do."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            total = torch.cuda.get_device_properties(x.device).total_memory
            if self.training:
                torch.empty(len(x), total // 30, dtype=torch.uint8, device=x.device)
            return self.inner(x.flatten(1))

    model = Greedy().eval().to(CUDA)
    parts = batches(128, 1)
    task = SupervisedTask(model, parts, parts, parts)
    student = compress(model, Candidate(), EXAMPLE)
    fine_tune = FineTune(student, Teacher(model), task, DistillSettings(rungs=(0, 4)))
    memory = PeakMemory(CUDA)
    fine_tune.advance(4)
    assert fine_tune._n_parts == 2 and memory.mib


def test_a_whole_search(tmp_path: Path) -> None:
    front = search(
        tiny_task(), run_dir=tmp_path / "run", device="cuda", gpus_per_trial=0.5, n_trials=4, n_workers=2,
        polish_points=1, polish_steps=4, show_progress=False, distill={"rungs": [0, 4]},
    )  # fmt: skip
    records = read_records(tmp_path / "run" / "trials.jsonl")
    assert [record.error for record in records if record.state == "failed"] == []
    assert front.points and all(point.file is not None for point in front.points)
