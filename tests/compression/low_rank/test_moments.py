"""Second moments: against numpy, in one pass, on disk, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.compression.low_rank import moments as moments_module
from autocompress.compression.low_rank.moments import cached_moments, collect_moments, moments_digest, windows
from autocompress.errors import CompressionError
from autocompress.tasks.data import CACHE_VARIABLE
from tests.compression.low_rank.reference import error, random_inputs, size, split, window_rows


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.Conv2d(4, 6, 3, groups=2, padding=1),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv1d(4, 6, 5, padding=2),
    ],
    ids=str,
)
def test_windows_of_a_convolution(conv: nn.Module) -> None:
    x = random_inputs(0, 3, 4, *((6, 7) if isinstance(conv, nn.Conv2d) else (9,)))
    found = collect_moments(nn.Sequential(conv), ["0"], [(x[:2],), (x[2:],)])["0"]
    rows = window_rows(conv, x)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), rows.transpose(0, 2, 1) @ rows / rows.shape[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_windows_of_other_paddings(mode: str) -> None:
    conv = nn.Conv2d(3, 4, 3, padding=(2, 1), stride=(1, 2), padding_mode=mode)
    x = random_inputs(0, 2, 3, 6, 7)
    padded = torch.nn.functional.pad(x, (1, 1, 2, 2), mode)
    expected = torch.nn.functional.unfold(padded, 3, stride=(1, 2)).mT.flatten(0, 1)
    assert torch.equal(windows(conv, x)[0], expected)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 4)
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        return torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(2 * x)


def test_one_pass_over_the_batches_gives_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = Attention(), torch.randint(0, 9, (6, 5), generator=torch.Generator().manual_seed(0))
    calls: list[int] = []
    model.register_forward_pre_hook(lambda _module, args: calls.append(len(args[0])))
    products: list[torch.Size] = []
    gram = moments_module._gram
    monkeypatch.setattr(moments_module, "_gram", lambda rows: (products.append(rows.shape), gram(rows))[1])
    found = collect_moments(model, ["tokens", "q", "k", "v"], [(ids[:4],), (ids[4:],)])
    assert calls == [4, 2]
    assert len(products) == 2 * 2, "query and key read the same tensor: one product for both"
    rows = model.tokens(ids).detach().double().flatten(0, 1)
    for name, factor in (("q", 1), ("k", 1), ("v", 4)):
        torch.testing.assert_close(found[name][0], factor * rows.mT @ rows / len(rows))
    counts = torch.bincount(ids.flatten(), minlength=9)
    torch.testing.assert_close(found["tokens"][0], counts.double() / ids.numel())


def test_of_many_positions_as_many_count_as_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "_MIN_ROWS", 4000)
    x = random_inputs(0, 50, 3, 20, 20)
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    some = collect_moments(model, ["0"], [(part,) for part in x.split(10)])["0"]
    monkeypatch.setattr(moments_module, "_MIN_ROWS", 10**9)
    every = collect_moments(model, ["0"], [(part,) for part in x.split(10)])["0"]
    assert not torch.equal(some, every)
    torch.testing.assert_close(some, every, rtol=0.15, atol=0.05)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    return tmp_path / "moments"


def test_moments_are_collected_once_and_kept_on_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), random_inputs(0, 30, 4)
    first = cached_moments(model, ["0", "2"], [(x,)])
    monkeypatch.setattr("autocompress.compression.low_rank.moments.collect_moments", None)
    again = cached_moments(model, ["0", "2"], [(x,)])
    assert first.keys() == again.keys() == {"0", "2"}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"], "nothing half-written stays"


def test_a_damaged_file_is_made_again(cache: Path) -> None:
    model, x = nn.Sequential(nn.Linear(4, 3)), random_inputs(0, 30, 4)
    first = cached_moments(model, ["0"], [(x,)])
    (file,) = cache.iterdir()
    file.write_bytes(b"half a file")
    assert torch.equal(cached_moments(model, ["0"], [(x,)])["0"], first["0"])
    assert file.stat().st_size > 100


def test_the_digest_tells_models_data_and_forwards_apart() -> None:
    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    class Squared(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x).square())  # type: ignore[no-any-return]

    Squared.__name__ = Squared.__qualname__ = "Net"
    torch.manual_seed(0)
    model, x = Net(nn.Linear(4, 4), nn.Linear(4, 4)).train(), random_inputs(0, 6, 4)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1].weight[0, 0] += 1e-3  # type: ignore[index,operator]
    code = Squared(*copy.deepcopy(model))
    assert repr(code) == repr(model)
    digests = [
        moments_digest(model, ["0"], [(x,)]),
        moments_digest(other, ["0"], [(x,)]),
        moments_digest(code, ["0"], [(x,)]),
        moments_digest(model, ["0"], [(x + 1e-3,)]),
        moments_digest(model, ["0", "1"], [(x,)]),
    ]
    assert len(set(digests)) == len(digests)
    assert moments_digest(copy.deepcopy(model), ["0"], [(x.clone(),)]) == digests[0]
    assert model.training


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5))


def test_without_any_input_the_weight_itself_is_split() -> None:
    model = net()
    zero = split(model, "0", "channel", (2,), [(torch.zeros(9, 6),)])
    plain = split(model, "0", "channel", (2,), [(torch.zeros(9, 6),)], aware=False)
    x = torch.randn(20, 6)
    assert error(zero, plain, x) <= 1e-5 * size(plain, x)


def test_constant_inputs_keep_their_output_and_leave_the_rest_to_the_weight() -> None:
    model, x = net(), torch.arange(6.0).expand(9, 6)
    student = split(model, "0", "channel", (1,), [(x,)])
    assert error(student, model, x) <= 1e-5 * size(model, x)
    full = split(model, "0", "channel", (5,), [(x,)])
    other = torch.randn(20, 6)
    assert error(full, model, other) <= 1e-5 * size(model, other)


def test_fewer_samples_than_features_are_reproduced_and_nothing_blows_up() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(40, 30)), torch.randn(3, 40)
    student = split(model, "0", "channel", (3,), [(x,)])
    assert error(student, model, x) <= 1e-5 * size(model, x)
    other = torch.randn(50, 40)
    assert error(student, model, other) <= 1.01 * size(model, other), "a projection of the output is never larger"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused(bad: float) -> None:
    x = torch.ones(9, 6)
    x[4, 2] = bad
    with pytest.raises(CompressionError, match="inputs of layer '0' must be finite.*NaN or infinity"):
        split(net(), "0", "channel", (2,), [(x,)])


def test_weights_that_are_not_finite_are_refused() -> None:
    model: Any = net()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(CompressionError, match="weight of layer '0' must be finite"):
        split(model, "0", "channel", (2,), [(torch.ones(9, 6),)])


def test_a_layer_that_the_data_never_reaches_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)  # type: ignore[no-any-return]

    with pytest.raises(CompressionError, match="layer 'unused' must be called"):
        split(Two(), "unused", "channel", (2,), [(torch.ones(9, 6),)])


@pytest.mark.parametrize(
    ("scheme", "ranks"), [("channel", (0,)), ("channel", (6,)), ("channel", (2, 2)), ("channel", ())]
)
def test_ranks_out_of_range_are_refused(scheme: str, ranks: tuple[int, ...]) -> None:
    with pytest.raises(CompressionError, match=r"`1 <= rank <= largest` must hold for '0'.*the largest \[5\]"):
        split(net(), "0", scheme, ranks, [(torch.ones(9, 6),)])


def test_schemes_that_make_no_sense_are_refused() -> None:
    for layer, scheme, message in (
        (nn.Linear(6, 6), "spatial", "larger than 1 x 1, not linear"),
        (nn.Conv2d(6, 6, 1), "spatial", "larger than 1 x 1, not conv2d"),
        (nn.Conv2d(6, 6, (1, 3)), "spatial", "larger than 1 x 1"),
        (nn.Conv2d(6, 6, 1), "tucker", "for convolutions with a kernel"),
        (nn.Embedding(6, 6, max_norm=1.0), "channel", "max_norm"),
        (nn.LSTM(6, 6, proj_size=2), "channel", "proj_size"),
        (nn.GRU(6, 6), "recurrent", "split of an LSTM, by its projection, not of gru"),
        (nn.LSTM(6, 6, bidirectional=True), "recurrent", "of one direction"),
        (nn.Linear(6, 6), "recurrent", "not of linear"),
        (nn.Conv3d(6, 6, 3), "channel", "of kind conv3d is not split"),
    ):
        with pytest.raises(CompressionError, match=message):
            split(nn.Sequential(layer), "0", scheme, (2,), [], aware=False)


def test_tied_weights_are_refused() -> None:
    model: Any = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    with pytest.raises(CompressionError, match="'0' shares a weight with 1.weight; tied layers are not split"):
        split(model, "0", "channel", (2,), [(torch.ones(9, 6),)])


def test_moments_of_a_large_model_are_collected_in_passes_and_stay_on_disk(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 8), nn.Linear(8, 2)).eval()
    batches, paths = [(torch.randn(5, 3, 8, 8),), (torch.randn(3, 3, 8, 8),)], ["0", "2", "3"]
    whole = collect_moments(model, paths, batches)
    monkeypatch.setattr(moments_module, "PASS_BYTES", 8 * 27**2)
    assert moments_module.passes_of(model, paths) == [["0"], ["2"], ["3"]]
    stored = cached_moments(model, paths, batches)
    assert isinstance(stored, moments_module.StoredMoments) and sorted(stored) == sorted(whole) and len(stored) == 3
    assert len(list(cache.iterdir())) == 3
    monkeypatch.setattr(moments_module, "collect_moments", None)
    for found in (stored, cached_moments(model, paths, batches)):
        assert all(torch.equal(found[path], whole[path]) for path in paths)
