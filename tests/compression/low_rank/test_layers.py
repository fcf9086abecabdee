"""What each kind of layer becomes: plain torch layers, exact at full rank, merged back, trained, copied."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from autocompress.compression import merge
from autocompress.compression.low_rank.recurrent import StackedRecurrent
from autocompress.errors import CompressionError
from tests.compression.low_rank.reference import error, random_inputs, size, split

GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"padding": "same", "dilation": 2},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": (2, 1), "padding_mode": "circular", "stride": (1, 2)},
    {"padding": 1, "padding_mode": "replicate", "groups": 2, "bias": False},
]


@pytest.mark.parametrize("scheme", ["channel", "spatial", "tucker"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_convolution_at_full_rank_is_the_same_function(scheme: str, geometry: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(4, 6, 3, **geometry)), random_inputs(0, 2, 4, 9, 9)
    ranks = {"channel": (6,), "spatial": (12,), "tucker": (4, 6)}[scheme]
    student = split(model, "0", scheme, ranks, [(x,)])
    assert error(student, model, x) <= 1e-5 * size(model, x)
    row = student[0]
    assert type(row) is nn.Sequential
    assert {type(layer) for layer in row} == {nn.Conv2d}
    assert len(row) == (3 if scheme == "tucker" else 2)


@pytest.mark.parametrize("scheme", ["channel", "spatial", "tucker"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_merge_gives_one_convolution_that_does_the_same(scheme: str, geometry: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(4, 6, 3, **geometry)), random_inputs(0, 2, 4, 9, 9)
    student = split(model, "0", scheme, (2, 4) if scheme == "tucker" else (4,), [(x,)])
    merged = merge(student[0])  # type: ignore[index]
    assert type(merged) is nn.Conv2d and merged.weight.shape == model[0].weight.shape
    assert error(merged, student, x) <= 1e-5 * size(student, x)
    assert error(student, model, x) > 1e-3 * size(model, x)


def test_depthwise_convolutions_take_the_spatial_scheme_alone() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(8, 16, 5, padding=2, groups=8)), random_inputs(0, 3, 8, 9, 9)
    student = split(model, "0", "spatial", (8 * 5,), [(x,)])
    assert error(student, model, x) <= 1e-5 * size(model, x)
    thin = split(model, "0", "spatial", (8,), [(x,)])
    assert [layer.weight.shape for layer in thin[0]] == [(8, 1, 5, 1), (16, 1, 1, 5)]  # type: ignore[index,union-attr]
    for scheme, ranks in (("channel", (8,)), ("tucker", (8, 8))):
        with pytest.raises(CompressionError, match="depthwise convolution.: only spatial splits it"):
            split(model, "0", scheme, ranks, [(x,)])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.cell = kind(5, 6, **options)

    def forward(self, x: Tensor, state: Any = None) -> Tensor:
        made, last = self.cell(x, state)
        last = torch.cat([part.flatten() for part in (last if isinstance(last, tuple) else (last,))])
        return torch.cat([made.flatten(), last])


OPTIONS = [
    {},
    {"batch_first": True, "bidirectional": True},
    {"num_layers": 3, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "bias": False, "dropout": 0.5},
]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_recurrent_layer_keeps_its_calls(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Recurrent(kind, **options).eval(), torch.randn(7, 4, 5)
    levels = options.get("num_layers", 1)
    full = split(model, "cell", "channel", (5, *(6 * (1 + model.cell.bidirectional),) * (levels - 1)), [(x,)])
    assert isinstance(full.cell, StackedRecurrent)
    assert error(full, model, x) <= 1e-5 * size(model, x)
    n_states = levels * (1 + model.cell.bidirectional)
    batch = x.shape[0 if model.cell.batch_first else 1]
    state: Any = torch.randn(n_states, batch, 6)
    state = (state, torch.randn(n_states, batch, 6)) if kind is nn.LSTM else state
    thin = split(model, "cell", "channel", (2, *(0, 3)[: levels - 1]), [(x,)])
    merged = copy.deepcopy(model)
    merged.cell = merge(thin.cell)  # type: ignore[assignment]
    assert type(merged.cell) is kind
    with torch.no_grad():
        assert torch.allclose(full(x, state), model(x, state), atol=1e-5)
        assert torch.allclose(thin(x, state), merged(x, state), atol=1e-5)
    assert error(thin, model, x) > 1e-3 * size(model, x)


def test_a_recurrent_layer_takes_packed_sequences() -> None:
    torch.manual_seed(0)

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(5, 6, 2, bidirectional=True, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            made, _ = self.cell(pack_padded_sequence(x, torch.tensor([3, 7, 5]), True, enforce_sorted=False))
            return pad_packed_sequence(made, batch_first=True)[0]

    model, x = Packed().eval(), torch.randn(3, 7, 5)
    full = split(model, "cell", "channel", (5, 12), [(x,)])
    assert error(full, model, x) <= 1e-5 * size(model, x)


def test_input_weights_of_every_level_are_the_best_of_their_rank() -> None:
    torch.manual_seed(0)
    model = Recurrent(nn.LSTM, num_layers=2, bidirectional=True).eval()
    x = random_inputs(0, 60, 5)[:, None]
    with torch.no_grad():
        first, _ = nn.LSTM(5, 6, bidirectional=True).eval()(x)  # shape only
        lower = nn.LSTM(5, 6, bidirectional=True).eval()
        lower.load_state_dict({k: v for k, v in model.cell.state_dict().items() if "_l0" in k})
        first, _ = lower(x)
    thin = split(model, "cell", "channel", (2, 4), [(x,)])
    for level, (rank, rows) in enumerate(((2, x[:, 0]), (4, first[:, 0]))):
        names = [f"weight_ih_l{level}", f"weight_ih_l{level}_reverse"]
        weight = torch.cat([getattr(model.cell, name) for name in names]).detach().double()
        merged: Any = merge(thin.cell)  # type: ignore[arg-type]
        product = torch.cat([getattr(merged, name) for name in names]).detach().double()
        outputs = rows.double() @ weight.mT
        tail = torch.linalg.svdvals(outputs)[rank:].norm()
        assert float((rows.double() @ (weight - product).mT).norm()) == pytest.approx(float(tail), rel=1e-3)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "batch_first": True}], ids=str)
def test_hidden_weights_of_an_lstm_go_through_its_projection(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Recurrent(nn.LSTM, **options).eval(), torch.randn(7, 4, 5)
    with torch.no_grad():  # a state that lives in four dimensions of six
        for level in range(model.cell.num_layers):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                by_unit = getattr(model.cell, f"{name}_l{level}").unflatten(0, (4, 6))
                by_unit[:, 4:] = by_unit[:, :2]
    levels = model.cell.num_layers
    student = split(model, "cell", "recurrent", (4,) * levels, [(x,)])
    assert [level.proj_size for level in student.cell.levels] == [4] * levels  # type: ignore[union-attr]
    assert error(student, model, x) <= 1e-4 * size(model, x)
    batch = x.shape[0 if model.cell.batch_first else 1]
    hidden = torch.randn(levels, batch, 4)[..., [0, 1, 2, 3, 0, 1]]
    state = (hidden, torch.randn(levels, batch, 4)[..., [0, 1, 2, 3, 0, 1]])
    with torch.no_grad():
        assert torch.allclose(student(x, state), model(x, state), atol=1e-4)
    thin = split(model, "cell", "recurrent", (2, *(0,) * (levels - 1)), [(x,)])
    assert error(thin, model, x) > 1e-2 * size(model, x)
    with pytest.raises(CompressionError, match="which no plain LSTM gives"):
        merge(thin.cell)  # type: ignore[arg-type]
    thin.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in thin.parameters())


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_the_projection_is_the_best_for_what_reads_the_state() -> None:
    torch.manual_seed(0)
    model, x = Recurrent(nn.LSTM).eval(), random_inputs(0, 80, 5)[:, None]
    with torch.no_grad():
        states = model.cell(x)[0][:, 0].double()
    reads = torch.cat([model.cell.weight_hh_l0.detach(), torch.eye(6)]).double()
    student = split(model, "cell", "recurrent", (3,), [(x,)]).cell
    level, outward = student.levels[0], student.outputs[0]  # type: ignore[union-attr,index]
    second = torch.cat([level.weight_hh_l0, outward.weight]).detach().double()
    kept = second @ level.weight_hr_l0.detach().double()
    least = torch.linalg.svdvals(states @ reads.mT)[3:].norm()
    assert float((states @ (reads - kept).mT).norm()) == pytest.approx(float(least), rel=1e-3)


def test_dropout_between_levels_stays() -> None:
    model, x = Recurrent(nn.GRU, num_layers=2, dropout=0.9).eval(), torch.randn(7, 4, 5)
    student = split(model, "cell", "channel", (5, 6), [(x,)])
    with torch.no_grad():
        assert not torch.allclose(student.train()(x), model.eval()(x), atol=1e-3)


def test_an_embedding_becomes_a_narrow_one_and_a_linear_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 12, padding_idx=0))
    seen = torch.randint(0, 20, (30, 5), generator=torch.Generator().manual_seed(0)).square() % 20
    student = split(model, "0", "channel", (4,), [(seen,)])
    narrow, outward = student[0]  # type: ignore[index,misc]
    assert type(narrow) is nn.Embedding and narrow.weight.shape == (50, 4) and narrow.padding_idx == 0
    assert type(outward) is nn.Linear and outward.bias is None
    table = model[0].weight.detach().double()
    counts = torch.bincount(seen.flatten(), minlength=50).double()
    tail = torch.linalg.svdvals(table * counts.sqrt()[:, None])[4:].norm()
    assert error(student, model, seen) == pytest.approx(float(tail), rel=1e-4)
    assert error(split(model, "0", "channel", (4,), [(seen,)], aware=False), model, seen) > 1.05 * float(tail)
    assert error(split(model, "0", "channel", (12,), [(seen,)]), model, torch.arange(50)) < 1e-4
    assert torch.allclose(merge(student[0])(seen), student(seen), atol=1e-5)  # type: ignore[index]


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv2d(8, 8, 3, padding=1), nn.Conv1d(8, 8, 3)], ids=str)
def test_factors_train_copy_and_keep_type_and_flags(layer: nn.Module) -> None:
    model = nn.Sequential(copy.deepcopy(layer).double().requires_grad_(False)).eval()
    model[0].bias.requires_grad_(True)  # type: ignore[operator,union-attr]
    shape = {nn.Linear: (20, 8), nn.Conv1d: (2, 8, 9), nn.Conv2d: (2, 8, 5, 5)}[type(layer)]  # type: ignore[index]
    x = torch.randn(*shape, dtype=torch.float64)
    student = split(model, "0", "channel", (4,), [(x,)])
    assert not student[0].training  # type: ignore[index]
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float64}
    assert [parameter.requires_grad for parameter in student.parameters()] == [False, False, True]
    assert student[0][1].bias is not model[0].bias  # type: ignore[index]
    student.train().requires_grad_(True)(x).square().sum().backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in student.parameters())  # type: ignore[union-attr]
    twin = copy.deepcopy(student)
    twin.load_state_dict(student.state_dict())
    assert torch.equal(twin(x), student(x))


def test_only_what_was_split_is_merged() -> None:
    for module in (nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.LSTM(3, 3)):
        with pytest.raises(CompressionError, match="only layers that were split can be merged"):
            merge(module)
