from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from autocompress.graph import inspect_model


class EveryKind(nn.Module):
    """One layer of each kind, volumes, then words, then images; the sign of a sum can decide what is returned."""

    def __init__(self, traceable: bool) -> None:
        super().__init__()
        self.traceable = traceable
        self.volume, self.image, self.line = nn.Conv3d(1, 4, 3), nn.Conv2d(4, 5, 3), nn.Conv1d(6, 7, 3, padding=1)
        self.words = nn.Embedding(11, 6)
        self.lstm, self.gru = nn.LSTM(7, 8, 2, bidirectional=True), nn.GRU(16, 9, batch_first=True)
        self.head = nn.Linear(9, 3)
        self.normed = parametrizations.weight_norm(nn.Linear(5, 5))

    def forward(self, volume: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        image = self.image(self.volume(volume).mean(2)).mean((2, 3))
        x, _ = self.lstm(self.line(self.words(ids).mT).permute(2, 0, 1))
        x, _ = self.gru(x.transpose(0, 1))
        if not self.traceable and x.sum() > 1e9:
            return x, image
        return self.head(x[:, -1]), self.normed(image)


INPUTS = (torch.rand(2, 1, 5, 6, 6), torch.randint(0, 11, (2, 10)))


@pytest.mark.parametrize("traceable", [True, False])
def test_every_kind_of_layer_is_listed_with_its_size_and_work(traceable: bool) -> None:
    graph = inspect_model(EveryKind(traceable), INPUTS)
    assert [(layer.path, layer.kind, layer.weight_shape, layer.n_macs) for layer in graph.layers] == [
        ("volume", "conv3d", (4, 1, 3, 3, 3), 4 * 27 * 3 * 4 * 4),
        ("image", "conv2d", (5, 4, 3, 3), 5 * 4 * 9 * 2 * 2),
        ("words", "embedding", (11, 6), 0),
        ("line", "conv1d", (7, 6, 3), 7 * 6 * 3 * 10),
        ("lstm", "lstm", (32, 8), 10 * 2 * (32 * (7 + 8) + 32 * (16 + 8))),
        ("gru", "gru", (27, 9), 10 * 27 * (16 + 9)),
        ("head", "linear", (3, 9), 27),
        *([("normed", "linear", (5, 5), 25)] if traceable else []),  # its computed weight is found in the trace
    ]
    layer = graph.layer("lstm")
    assert layer.n_params == sum(parameter.numel() for parameter in EveryKind(True).lstm.parameters())
    frozen = {item.name: item.reason for item in graph.frozen if item.what == "layer"}
    assert traceable or "computed" in frozen["normed"]


def test_a_recurrent_layer_that_shares_a_weight_is_no_layer() -> None:
    model = EveryKind(True)
    model.lstm.weight_hh_l1 = model.lstm.weight_hh_l0
    graph = inspect_model(model, INPUTS)
    frozen = {item.name: item.reason for item in graph.frozen if item.what == "layer"}
    assert "lstm.weight_hh_l0" in frozen["lstm"] or "lstm.weight_hh_l1" in frozen["lstm"]


class OutsideLayers(nn.Module):
    """Weights that a user's module holds itself, and torch layers of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.experts = nn.Parameter(torch.rand(1, 1, 8)), nn.Parameter(torch.rand(3, 8, 8))
        self.up, self.attention = nn.ConvTranspose1d(4, 5, 2), nn.MultiheadAttention(8, 2, batch_first=True)
        self.up_again = nn.ConvTranspose1d(5, 5, 2)
        self.head, self.unread = nn.Linear(8, 5), nn.Parameter(torch.rand(2, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.token + (x[:, None] @ self.experts).sum(1)
        return self.head(self.attention(x, x, x, need_weights=False)[0]), self.up_again(self.up(x.mT[:, :4]))


def test_weights_outside_layers_are_listed_with_the_reason() -> None:
    graph = inspect_model(OutsideLayers(), torch.rand(2, 6, 8))
    assert [layer.path for layer in graph.layers] == ["head"]
    frozen = {item.name: item.reason for item in graph.frozen if item.what == "layer"}
    assert frozen.keys() == {"token", "experts", "up.weight", "attention.in_proj_weight", "attention.out_proj.weight"}
    assert frozen["experts"] == "ranks and bits are not offered for parameters of OutsideLayers"
    assert (
        frozen["up.weight"] == "ranks and bits are not offered for parameters of ConvTranspose1d (so in 1 more places)"
    )


class Places(nn.Module):
    """Positions that are counted while the model runs, and positions that it keeps in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.counted, self.kept = nn.Embedding(11, 6), nn.Embedding(10, 6), nn.Embedding(10, 6)
        self.mixed, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("places", torch.arange(10))

    def forward(self, ids: Tensor) -> Tensor:
        at = self.mixed(self.counted(torch.arange(ids.shape[1])))
        x: Tensor = self.head(self.words(ids) + at + self.kept(self.places[: ids.shape[1]]))
        return x


def test_layers_that_no_input_reaches_are_left_as_they_are() -> None:
    graph = inspect_model(Places(), (torch.randint(0, 11, (2, 5)),))
    assert [layer.path for layer in graph.layers] == ["words", "kept", "head"]
    frozen = {item.name: item.reason for item in graph.frozen if item.what == "layer"}
    assert set(frozen) == {"counted", "mixed"}
    assert "always the same" in frozen["counted"]
