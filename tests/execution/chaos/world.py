"""A search in which every number is a function of the candidate, so that only what was lost or counted twice differs.

Run as a script it is the driver: `python world.py RUN ADDRESS N_TRIALS` starts the run, or resumes it.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.api import resume, run_new
from autocompress.config import SearchSettings
from autocompress.distillation import teacher
from autocompress.execution import trial as worker_context
from autocompress.graph import inspect_model
from autocompress.latency import PairedTiming
from autocompress.latency import target_device as device
from autocompress.results.run_folder import RunFolder
from autocompress.runtimes import Capability
from autocompress.space.search_space import SearchSpace
from autocompress.task import Batch, Inputs, SupervisedTask, call_model

RULES = [
    {"match": "body.0", "prune_ratio": [0.0, 0.25, 0.5, 0.75], "rank_ratio": [None, 0.75, 0.5]},
    {"match": "body.2", "prune_ratio": [0.0, 0.25, 0.5, 0.75], "rank_ratio": [None, 0.75, 0.5, 0.25]},
]
"""192 candidates."""


def settings(n_trials: int, **more: Any) -> SearchSettings:
    values = {"runtime": "world:Stub", "sampler": "random", "n_trials": n_trials, "n_workers": 2, "trial_retries": 20}
    distill = {"rungs": [0, 2, 4, 6], "learning_rate": 0.05}
    rest = {"early_stopping": False, "polish_points": 0, "inherit_weights": False}
    return SearchSettings.from_dict({**values, "distill": distill, **rest, **more})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def _batches(n: int, seed: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32 * n, 16, generator=generator)
    labels = x.unflatten(1, (4, 4)).sum(-1).argmax(1)
    return [((a,), b) for a, b in zip(x.split(32), labels.split(32), strict=True)]


class World(SupervisedTask):
    """Steady: clocks and machine-dependent choices are taken out wherever the task is loaded, so also on workers.

    Args:
        pause: seconds that judging takes, so that there is time to kill something.
    """

    def __init__(self, pause: float) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Net()
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
            for epoch in range(20):
                for (x,), labels in _batches(8, 100 + epoch):
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
        super().__init__(model, _batches(4, 1), _batches(4, 2), _batches(4, 3), name="world")
        self._pause = pause
        still_the_clocks()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        still_the_clocks()

    def evaluate(self, predict: Callable[[Inputs], Tensor], split: str) -> dict[str, float]:
        time.sleep(self._pause)
        return super().evaluate(predict, split)


class Improvable(World):
    """The driver, which judges the uncompressed model, finds nothing wrong: every candidate has something to gain."""

    def evaluate(self, predict: Callable[[Inputs], Tensor], split: str) -> dict[str, float]:
        figures = super().evaluate(predict, split)
        on_worker = ray.is_initialized() and ray.get_runtime_context().get_actor_id()
        return figures if on_worker else {**figures, "accuracy": 1.0}


CLOCKS = [(worker_context, "time_sessions"), (device, "time_sessions"), (teacher, "choose_mode")]
"""What depends on the machine: modules and the names in them."""


def still_the_clocks(reference_ms: float = 2.0) -> None:
    def timed(candidate: Session, reference: Session, *_: object, **__: object) -> PairedTiming:
        ratio = candidate.cost / reference.cost
        return PairedTiming(ratio, 0.01, ratio * reference_ms, reference_ms, 9, 99)

    for module, name in CLOCKS[:2]:
        setattr(module, name, timed)
    teacher.choose_mode = lambda model, inputs: teacher.FastMode(False)


@contextlib.contextmanager
def clocks_go_on_afterwards() -> Iterator[None]:
    """For a world that is loaded into the tests' own process."""
    before = [getattr(module, name) for module, name in CLOCKS]
    try:
        yield
    finally:
        for (module, name), value in zip(CLOCKS, before, strict=True):
            setattr(module, name, value)


class Stub:
    """A file is the traced model; a run of it takes as long as it has parameters."""

    name = "world:Stub"

    def capabilities(self) -> tuple[Capability, ...]:
        return (Capability(32, {"linear": "counts"}),)

    def export(self, student: nn.Module, example_inputs: Inputs, folder: Path) -> Path:
        file = folder / "model.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer is old, and quick
            traced = torch.jit.trace(student, example_inputs)
            cost = sum(parameter.numel() for parameter in student.parameters())
            torch.jit.save(traced, str(file), _extra_files={"cost": str(cost)})
        return file

    def load(self, file: Path, n_threads: int = 1) -> Session:
        extra = {"cost": ""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.jit.load(str(file), _extra_files=extra)
        return Session(model, int(extra["cost"]))


class Session:
    """See `Stub`."""

    def __init__(self, model: nn.Module, cost: int) -> None:
        self._model, self.cost = model, cost

    def prepare(self, inputs: Inputs) -> object:
        return inputs

    def run(self, prepared: Any) -> None:
        call_model(self._model, prepared)

    def predict(self, inputs: Inputs) -> Tensor:
        with torch.no_grad():
            out: Tensor = call_model(self._model, inputs)
        return out


class OnDevice(Stub):
    """As on a machine where the uncompressed model takes 5 ms."""

    def load(self, file: Path, n_threads: int = 1) -> Session:
        if ray.is_initialized() and ray.get_runtime_context().get_assigned_resources().get("device"):
            still_the_clocks(5.0)
        return super().load(file, n_threads)


def space_of(model: nn.Module) -> SearchSpace:
    return SearchSpace.from_rules(inspect_model(model, (torch.zeros(1, 16),)), RULES)


def main(run: Path, address: str, n_trials: int) -> None:
    """Starts the run, or resumes it."""
    warnings.simplefilter("ignore")
    found = World(pause=0.1)
    if RunFolder(run).info.is_file():
        resume(run, task=found, show_progress=False)
    else:
        shutil.rmtree(run, ignore_errors=True)  # killed before it was a run
        space = space_of(found.build_model())
        run_new(found, settings(n_trials, ray_address=address or None), run, space=space, show_progress=False)


if __name__ == "__main__":
    import world  # what workers get must come from a module that they can import

    world.main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
