"""The fine-tune against a loop written by hand; rungs that continue exactly; a teacher that is asked once."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import scipy.special  # type: ignore[import-untyped]
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.config import DistillSettings
from autocompress.distillation.fine_tune import (
    FastMode,
    FineTune,
    Teacher,
    choose_mode,
    distill,
    soft_target_loss,
    teaching_loss,
)
from autocompress.errors import CompressionError, InputError
from autocompress.space.candidate import Candidate
from autocompress.task import Batch, Inputs, SupervisedTask
from tests.shared.tasks import batches, images, tiny_task, trained_model

SETTINGS = DistillSettings(rungs=(0, 3, 6), learning_rate=0.05)


def plain_teacher(model: nn.Module) -> Teacher:
    """One that computes in float32, so that figures can be compared bit for bit."""
    return Teacher(model, FastMode(False))


def student_of(model: nn.Module, bits: int = 8) -> nn.Module:
    """Half of the channels, half of the rank, 8 bits."""
    candidate = Candidate(
        prune_ratio={"conv1": 0.5}, rank_ratio={"conv2": 0.5}, weight_bits={"conv1": bits, "conv2": bits, "fc": bits}
    )
    calibration = [inputs for inputs, _ in batches(64, 4)]
    # not refitted, so that the fine-tune has something to gain
    return compress(model, candidate, (images(1, 0)[0],), calibration, reconstruct=False)


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- loss


@given(
    shape=st.sampled_from([(1, 2), (7, 10), (3, 5, 4)]),
    temperature=st.floats(1, 20),
    size=st.floats(0.01, 50),
    seed=st.integers(0, 99),
)
def test_soft_target_loss_is_that_of_scipy(shape: tuple[int, ...], temperature: float, size: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ours, theirs = rng.normal(size=(2, *shape)) * size
    p = scipy.special.softmax(theirs / temperature, axis=-1)
    log_q = scipy.special.log_softmax(ours / temperature, axis=-1)
    divergence = (scipy.special.xlogy(p, p) - p * log_q).sum(-1)
    expected = temperature**2 * divergence.mean()
    found = soft_target_loss(torch.tensor(ours), torch.tensor(theirs), temperature)
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert float(soft_target_loss(torch.tensor(theirs), torch.tensor(theirs), temperature)) == pytest.approx(
        0, abs=1e-9
    )


def rate_at(step: int, n_steps: int, peak: float) -> float:
    """A rise over the first tenth (at least one step), a half cosine to zero over the rest."""
    rise = max(1.0, n_steps / 10)
    if step < rise:
        return peak * (step + 1) / (rise + 1)
    return peak * (1 + math.cos(math.pi * (step - rise) / (n_steps - rise))) / 2


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_steps_are_those_of_a_loop_by_hand(alpha: float) -> None:
    settings = DistillSettings(
        rungs=(0, 25), alpha=alpha, temperature=3.0, optimizer="sgd", learning_rate=0.2, weight_decay=0.05
    )
    torch.manual_seed(1)
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(64, 4)) for _ in range(2))
    task = SupervisedTask(student, batches(96, 1), batches(32, 2), batches(32, 3))
    by_hand = copy.deepcopy(student)
    weight, bias = by_hand.get_parameter("1.weight"), by_hand.get_parameter("1.bias")
    momenta = {id(weight): torch.zeros_like(weight), id(bias): torch.zeros_like(bias)}
    for step in range(20):
        (x,), labels = batches(96, 1)[step % 3]
        logits, soft = by_hand(x), teacher(x).detach()
        p, q = (soft / 3).softmax(1), (logits / 3).softmax(1)
        divergence = (p * (p.log() - q.log())).sum(1).mean()
        loss = alpha * 9 * divergence + (1 - alpha) * F.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, [weight, bias])
        norm = math.sqrt(sum(float(g.pow(2).sum()) for g in gradients))
        with torch.no_grad():
            for parameter, gradient in zip([weight, bias], gradients, strict=True):
                decay = 0.05 if parameter is weight else 0.0
                g = gradient * min(1.0, 5.0 / norm) + decay * parameter
                momenta[id(parameter)].mul_(0.9).add_(g)
                parameter.sub_(rate_at(step, 25, 0.2) * (g + 0.9 * momenta[id(parameter)]))
    fine_tune = FineTune(student, plain_teacher(teacher), task, settings)
    fine_tune.advance(20)
    assert fine_tune.step == 20
    torch.testing.assert_close(parameters(student), parameters(by_hand), atol=2e-5, rtol=1e-4)


def test_the_last_step_of_the_schedule_moves_almost_nothing() -> None:
    student = student_of(trained_model(), bits=32)
    fine_tune = FineTune(student, plain_teacher(trained_model()), tiny_task(), DistillSettings(rungs=(0, 40)))
    moves = []
    for step in range(1, 41):
        before = parameters(student)
        fine_tune.advance(step)
        moves.append(float((parameters(student) - before).norm()))
    assert moves[-1] < 0.05 * max(moves)
    assert 2 <= int(np.argmax(moves)) <= 30


# --- rungs


class WithDropout(nn.Module):
    """Draws random numbers while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop, self.out = nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(torch.relu(self.fc(x.flatten(1)))))


@pytest.fixture(scope="module", params=["8 bits, low rank, norms", "dropout"])
def student(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return student_of(trained_model()) if request.param.startswith("8") else WithDropout().eval()


def tune(student: nn.Module) -> FineTune:
    """Under the trained model; an epoch of the task has four batches, so that six steps need two."""
    return FineTune(student, plain_teacher(trained_model()), tiny_task(), SETTINGS, seed=5)


def test_two_rungs_are_one_long_one(student: nn.Module) -> None:
    at_once, in_rungs = (tune(copy.deepcopy(student)) for _ in range(2))
    torch.manual_seed(7)
    at_once.advance(6)
    torch.manual_seed(7)
    in_rungs.advance(3)
    with torch.no_grad():
        in_rungs.student(images(32, 9)[0])  # what is judged between the rungs
    in_rungs.advance(6)
    assert same(at_once.student, in_rungs.student)
    assert not same(at_once.student, student), "something was learnt"
    assert not at_once.student.training


def test_a_saved_state_continues_exactly(student: nn.Module, tmp_path: Path) -> None:
    whole, first, second = (tune(copy.deepcopy(student)) for _ in range(3))
    torch.manual_seed(7)
    whole.advance(6)
    torch.manual_seed(7)
    first.advance(3)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(99)  # another process
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.step == 3
    assert same(second.student, first.student)
    second.advance(6)
    assert same(whole.student, second.student)


def test_a_step_that_is_reached_is_not_done_again() -> None:
    fine_tune = tune(student_of(trained_model()))
    fine_tune.advance(3)
    before = copy.deepcopy(fine_tune.student)
    fine_tune.advance(3)
    fine_tune.advance(0)
    assert same(fine_tune.student, before)
    assert fine_tune.step == 3


class Epochs:
    """A task of one-sample batches that says which epoch and position it was asked for."""

    def __init__(self, n_batches: int) -> None:
        self.seen: list[tuple[int, int]] = []
        self._n_batches, self._task = n_batches, tiny_task()

    def __getattr__(self, name: str) -> object:
        return getattr(self._task, name)

    def train_batches(self, seed: int) -> Iterator[Batch]:
        for i in range(self._n_batches):
            self.seen.append((seed, i))
            yield batches(8, 1000 * seed + i)[0]


def test_an_epoch_that_ends_is_followed_by_the_next_seed() -> None:
    task = Epochs(2)
    FineTune(trained_model(), plain_teacher(trained_model()), task, SETTINGS, seed=3).advance(5)  # type: ignore[arg-type]
    assert task.seen == [(3, 0), (3, 1), (4, 0), (4, 1), (5, 0)]


def test_no_batches() -> None:
    with pytest.raises(InputError, match="at least one batch"):
        FineTune(trained_model(), plain_teacher(trained_model()), Epochs(0), SETTINGS).advance(1)  # type: ignore[arg-type]


def test_every_step_holds_the_lock_by_itself() -> None:
    measurement_lock: list[str] = []

    @contextmanager
    def turn() -> Iterator[None]:
        measurement_lock.append("begin")
        yield
        measurement_lock.append("end")

    FineTune(trained_model(), plain_teacher(trained_model()), tiny_task(), SETTINGS, turn=turn).advance(3)
    assert measurement_lock == ["begin", "end"] * 3


# --- teacher


class Counting(nn.Module):
    """A model that counts its calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.n_calls = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        out: Tensor = self.model(x)
        return out


def test_outputs_on_equal_batches_are_computed_once() -> None:
    model = Counting(trained_model())
    teacher = plain_teacher(model)
    for _ in range(3):
        FineTune(trained_model(), teacher, tiny_task(), SETTINGS, seed=5).advance(6)
    assert model.n_calls == 6


def test_an_engine_is_asked_in_place_of_the_model_unless_it_refuses_the_shape() -> None:
    model, asked = Counting(trained_model()), []

    def engine(inputs: Inputs) -> Tensor:
        (x,) = inputs
        if len(x) != 32:
            raise InputError("32 samples only")
        asked.append(x)
        return trained_model()(x).detach().double() + 1.0

    teacher = Teacher(model, FastMode(False), engine=engine)
    x = images(32, 1)[0]
    for _ in range(2):
        outputs = teacher.outputs(0, (x,))
        torch.testing.assert_close(outputs, trained_model()(x).detach() + 1.0)  # float32, as the student's
    assert (len(asked), model.n_calls) == (1, 0), "kept"
    torch.testing.assert_close(teacher.outputs(1, (x[:16],)), trained_model()(x[:16]).detach())
    teacher.run((x,))
    assert (len(asked), model.n_calls) == (1, 2), "features are asked of the model itself"


def test_outputs_are_computed_again_for_other_batches() -> None:
    model = Counting(trained_model())
    teacher = plain_teacher(model)
    first, second = images(32, 1)[0], images(32, 2)[0]
    for x in (first, second, first):
        torch.testing.assert_close(teacher.outputs(0, (x,)), trained_model()(x).detach())
    assert model.n_calls == 3
    teacher.outputs(0, (first.clone(),))
    assert model.n_calls == 3
    teacher.outputs(0, (first[:16],))
    assert model.n_calls == 4


@given(st.integers(0, 31), st.integers(0, 63), st.sampled_from([1e-2, -0.3, 5.0]))
def test_a_single_pixel_makes_another_batch(sample: int, pixel: int, change: float) -> None:
    model = Counting(nn.Flatten())
    teacher = plain_teacher(model)
    x = images(32, 1)[0]
    other = x.clone()
    other.view(32, -1)[sample, pixel] += change
    teacher.outputs(0, (x,))
    assert torch.equal(teacher.outputs(0, (other,)), other.flatten(1))
    swapped = x[[*range(1, 32), 0]]
    assert torch.equal(teacher.outputs(0, (swapped,)), swapped.flatten(1))


def test_a_single_token_makes_another_batch() -> None:
    model = Counting(nn.Embedding(30_000, 1))
    teacher = plain_teacher(model)
    tokens = torch.randint(15_000, 30_000, (64, 128), generator=torch.Generator().manual_seed(0))
    teacher.outputs(0, (tokens,))
    for place in ((0, 0), (30, 17), (63, 127)):
        other = tokens.clone()
        other[place] -= 1
        assert torch.equal(teacher.outputs(0, (other,)), model.model(other)), f"token {place}"


def test_the_teacher_is_not_trained() -> None:
    teacher = trained_model().train()
    before = copy.deepcopy(teacher)
    distill(student_of(trained_model()), teacher, tiny_task(), steps=4)
    assert same(teacher, before)
    assert all(parameter.grad is None for parameter in teacher.parameters())


# --- features, failures, and what it is for


def feature_distance(student: nn.Module, x: Tensor) -> float:
    def features(model: nn.Module) -> Tensor:
        return model.get_submodule("bn2")(model.get_submodule("conv2")(_first_block(model, x)))

    with torch.no_grad():
        ours, theirs = features(student), features(trained_model())
    return float(F.mse_loss(ours, theirs) / theirs.pow(2).mean())


def _first_block(model: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = torch.relu(model.get_submodule("bn1")(model.get_submodule("conv1")(x)))
    return out


def test_feature_loss_brings_features_nearer() -> None:
    def tuned(weight: float) -> float:
        settings = DistillSettings(rungs=(0, 30), feature_weight=weight, feature_layers=("bn2", "bn1"))
        student = student_of(trained_model(), bits=32)
        FineTune(student, plain_teacher(trained_model()), tiny_task(), settings).advance(30)
        return feature_distance(student, images(64, 9)[0])

    before = feature_distance(student_of(trained_model(), bits=32), images(64, 9)[0])
    with_features, without = tuned(5.0), tuned(0.0)
    assert with_features < 0.9 * without
    assert with_features < 0.7 * before


def test_hooks_of_the_feature_loss_are_gone_afterwards() -> None:
    settings = DistillSettings(rungs=(0, 2), feature_weight=1.0, feature_layers=("bn2",))
    teacher, student = trained_model(), trained_model()
    FineTune(student, plain_teacher(teacher), tiny_task(), settings).advance(2)
    assert not any(module._forward_hooks for model in (teacher, student) for module in model.modules())


def test_a_loss_that_is_not_finite() -> None:
    student = trained_model()
    with torch.no_grad():
        student.get_parameter("fc.bias")[0] = math.nan
    with pytest.raises(CompressionError, match=r"loss must be finite, but is nan after 0 steps; lower learning_rate"):
        distill(student, trained_model(), tiny_task(), steps=2)


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps(steps: int) -> None:
    with pytest.raises(InputError, match=f"`steps >= 1` must hold and be whole, but got {steps}"):
        distill(trained_model(), trained_model(), tiny_task(), steps=steps)


def accuracy(model: nn.Module, split: str = "test") -> float:
    with torch.no_grad():
        return tiny_task().evaluate(lambda inputs: _outputs(model, inputs), split)["accuracy"]


def _outputs(model: nn.Module, inputs: object) -> Tensor:
    assert isinstance(inputs, tuple)
    out: Tensor = model(*inputs)
    return out


@pytest.mark.parametrize("bits", [32, 8])
def test_a_short_fine_tune_gives_accuracy_back(bits: int) -> None:
    student = student_of(trained_model(), bits)
    with torch.no_grad():
        student.get_parameter("fc.weight").add_(1.5 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0)))
    before = accuracy(student)
    result = distill(student, trained_model(), tiny_task(), steps=60, settings=DistillSettings(learning_rate=0.05))
    assert result is student
    assert not student.training
    assert accuracy(student) >= before + 0.05
    assert accuracy(student) >= accuracy(trained_model()) - 0.1


def test_bfloat16_and_channels_last_learn_as_well() -> None:
    tuned = {}
    for fast in (False, True):
        student = student_of(trained_model(), bits=32)
        with torch.no_grad():
            student.get_parameter("fc.weight").mul_(-1)
        FineTune(
            student, Teacher(trained_model(), FastMode(fast, fast)), tiny_task(), DistillSettings(rungs=(0, 60))
        ).advance(60)
        assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
        tuned[fast] = student
    assert 0 < float((parameters(tuned[True]) - parameters(tuned[False])).abs().max()) < 0.1, "rounded, no more"
    assert accuracy(tuned[True]) >= accuracy(tuned[False]) - 0.05
    assert accuracy(tuned[True]) > 0.5, "from none right at all"


def test_named_inputs(tmp_path: Path) -> None:
    def named(source: Iterable[Batch]) -> list[Batch]:
        return [({"x": inputs[0]}, labels) for inputs, labels in source if isinstance(inputs, tuple)]

    task = SupervisedTask(trained_model(), named(batches(64, 1)), named(batches(64, 2)), named(batches(64, 3)))
    by_name, by_place = student_of(trained_model()), student_of(trained_model())
    FineTune(by_name, plain_teacher(trained_model()), task, SETTINGS).advance(3)
    positional = SupervisedTask(trained_model(), batches(64, 1), batches(64, 2), batches(64, 3))
    FineTune(by_place, plain_teacher(trained_model()), positional, SETTINGS).advance(3)
    assert same(by_name, by_place)


def test_channels_last_changes_the_layout_and_nothing_else() -> None:
    trained = []
    for mode in (FastMode(False), FastMode(False, channels_last=True)):
        student = student_of(trained_model())
        FineTune(student, Teacher(trained_model(), mode), tiny_task(), SETTINGS).advance(3)
        trained.append(parameters(student))
    assert torch.allclose(trained[0], trained[1], atol=1e-5)


def test_the_mode_of_an_older_state_is_read(tmp_path: Path) -> None:
    fine_tune = FineTune(student_of(trained_model()), plain_teacher(trained_model()), tiny_task(), SETTINGS)
    fine_tune.advance(1)
    state = fine_tune.state_dict()
    again = FineTune(student_of(trained_model()), plain_teacher(trained_model()), tiny_task(), SETTINGS)
    again.load_state_dict({**state, "fast": True})
    assert again.mode == FastMode(True, channels_last=True)
    again.load_state_dict(state)
    assert again.mode == FastMode(False)


class WithoutHalf(nn.Linear):
    """Has no kernel for bfloat16, as oneDNN's LSTM on some machines."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive descriptor")
        return super().forward(x)


def test_a_layer_without_a_bfloat16_kernel_is_trained_in_float32() -> None:
    assert choose_mode(WithoutHalf(4, 2), (torch.rand(3, 4),)) == FastMode(False)
    with pytest.raises(RuntimeError, match="size|shape"):
        choose_mode(WithoutHalf(4, 2), (torch.rand(3, 5),))


@pytest.mark.parametrize("named", ["kl", "mse", "cosine"])
def test_the_teacher_loss_that_is_named_counts_whatever_the_targets_are(named: str) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(5, 7, generator=generator), torch.randn(5, 7, generator=generator)
    speakers = torch.tensor([0, 1, 2, 0, 1])  # integer labels with an embedding: no classes of its dimensions
    a, b = ours.double().numpy(), theirs.double().numpy()
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (b / 2, a / 2))
    expected = {
        "kl": 4 * (p * np.log(p / q)).sum(1).mean(),
        "mse": ((a - b) ** 2).mean(),
        "cosine": 1 - ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean(),
    }
    assert teaching_loss(ours, theirs, 2.0, speakers, named).item() == pytest.approx(expected[named], rel=1e-5)
