"""Devices by name, nested batches that move, and the second device itself: it must refuse what CUDA refuses."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from autocompress.batches import check_common_size, n_samples, part_of, parts_of
from autocompress.devices import (
    CPU,
    device_in,
    device_of,
    find_device,
    map_tensors,
    model_on,
    on_device,
    stream_to,
    tensors_in,
    without_index,
)
from autocompress.errors import InputError
from tests.second_device.backend import SecondTensor, register

register()
SECOND = torch.device("second")
Pair = namedtuple("Pair", "first second")


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...] | None = None


# --- the second device


def test_values_are_the_cpus_and_mixing_is_refused() -> None:
    x, y = torch.randn(3, 4), torch.randn(4, 2)
    there = x.to(SECOND)
    assert there.device.type == "second" and isinstance(there, SecondTensor)
    torch.testing.assert_close((there @ y.to(SECOND)).cpu(), x @ y, rtol=0, atol=0)
    for mixed in (lambda: there @ y, lambda: there + x, lambda: torch.cat([there, x]), lambda: there.copy_(x) + x):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    assert float((there + torch.tensor(1.0)).sum()) == pytest.approx(float((x + 1).sum()), rel=1e-6)  # CUDA takes it


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_cells_have_the_cpus_gradients(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    ours = kind(3, 5, num_layers=2, batch_first=True)
    theirs = model_on(ours, SECOND)
    x, weight = torch.randn(2, 4, 3), torch.randn(2, 4, 5)
    (ours(x)[0] * weight).sum().backward()
    (theirs(x.to(SECOND))[0] * weight.to(SECOND)).sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(other.grad.cpu(), one.grad)


# --- names


def test_names() -> None:
    assert find_device("cpu") == CPU
    assert find_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    assert find_device("second") == SECOND
    assert (without_index("cuda:1"), without_index("auto")) == ("cuda", "auto")


@pytest.mark.parametrize("name", ["second:1", "meta", "nothing", "cuda:99"])
def test_a_device_that_is_not_there_is_named_with_those_that_are(name: str) -> None:
    with pytest.raises(InputError, match=r"cpu") as raised:
        find_device(name)
    assert repr(name) in str(raised.value)


# --- nested values


def nested() -> object:
    x = torch.arange(6.0).reshape(3, 2)
    return {
        "pair": (x, [x + 1, {"deep": x + 2}]),
        "named": Pair(x + 3, "text"),
        "output": Output(x + 4, (x + 5,)),
        "none": None,
    }


def test_tensors_of_all_containers_move_and_come_back() -> None:
    value = nested()
    there = on_device(value, SECOND)
    assert {tensor.device.type for tensor in tensors_in(there)} == {"second"} and len(tensors_in(there)) == 6
    assert device_in(there).type == "second" and device_in(["text"]) == CPU
    back = on_device(there, CPU)
    for one, other in zip(tensors_in(value), tensors_in(back), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert isinstance(back["named"], Pair) and isinstance(back["output"], Output)  # type: ignore[index]
    assert back["named"].second == "text"  # type: ignore[index]


def test_packed_sequences_move() -> None:
    packed = pack_sequence([torch.randn(3, 2), torch.randn(1, 2)])
    assert on_device({"steps": packed}, SECOND)["steps"].data.device.type == "second"


def test_model_outputs_stay_model_outputs() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    made = map_tensors(lambda tensor: tensor + 1, outputs.SequenceClassifierOutput(logits=torch.zeros(2, 3)))
    assert isinstance(made, outputs.SequenceClassifierOutput) and float(made.logits.sum()) == 6.0


def test_a_stream_moves_every_batch_once_and_in_order() -> None:
    asked: list[int] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(3):
            asked.append(i)
            yield torch.full((2,), float(i)), torch.tensor([i])

    moved = list(stream_to(batches(), SECOND))
    assert [int(x[0]) for x, _ in moved] == asked == [0, 1, 2]
    assert all(tensor.device.type == "second" for tensor in tensors_in(moved))


def test_a_model_moves_as_a_copy_and_stays_where_it_is_already() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    there = model_on(model, SECOND)
    assert device_of(there).type == "second" and device_of(model) == CPU
    assert model_on(model, CPU) is model and model_on(there, SECOND) is there
    assert device_of(nn.ReLU()) == CPU


# --- parts of batches


def test_parts_hold_every_sample_once_with_its_target() -> None:
    inputs = {"ids": torch.arange(10).reshape(5, 2), "more": [torch.arange(5.0)]}
    targets = [{"boxes": torch.full((i, 4), float(i))} for i in range(5)]  # as detection has them
    found = list(parts_of((inputs, targets), inputs, 2))
    assert [share for _, share in found] == [0.6, 0.4]
    assert torch.cat([part[0]["more"][0] for part, _ in found]).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [len(target["boxes"]) for part, _ in found for target in part[1]] == [0, 1, 2, 3, 4]
    assert torch.equal(torch.cat([part[0]["ids"] for part, _ in found]), inputs["ids"])  # type: ignore[arg-type]


def test_what_does_not_count_samples_stays_whole() -> None:
    weights = torch.ones(3)
    inputs, kept = part_of((torch.zeros(4, 2), weights), 0, 2, 4)
    assert inputs.shape == (2, 2) and kept is weights
    assert n_samples({"mask": torch.tensor(1.0), "x": torch.zeros(7, 2)}) == 7


def test_a_batch_without_a_common_size_is_refused() -> None:
    check_common_size((torch.zeros(3, 2), torch.tensor(0.5)), "train")
    with pytest.raises(InputError, match=r"train_batches gives inputs of shapes .*\(3, 2\).*\(2,\)"):
        check_common_size({"x": torch.zeros(3, 2), "y": [torch.zeros(2)]}, "train_batches")
