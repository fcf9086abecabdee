"""Which optimizer a model gets, and that AdamW's steps are those of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.config import DistillSettings
from autocompress.distillation.optimizers import (
    DEFAULTS,
    RECURRENT_LEARNING_RATE,
    make_optimizer,
    optimizer_for,
    settings_for,
)
from autocompress.errors import InputError
from autocompress.tasks.digits import DigitsNet
from tests.graph.nets import CNNS, Recurrent, Transformer


@pytest.mark.parametrize(
    ("model", "name"),
    [
        *((kind(), "sgd") for kind, _ in CNNS.values()),
        (DigitsNet(), "sgd"),
        *((Transformer(kind), "adamw") for kind in ("bert", "gpt", "vit", "llama")),
        (Recurrent(), "adamw"),
        (nn.Sequential(nn.Conv1d(4, 4, 3), nn.LSTM(4, 4)), "adamw"),
        (nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.TransformerEncoderLayer(8, 2)), "adamw"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), "adamw"),
    ],
)
def test_the_kind_of_net_decides(model: nn.Module, name: str) -> None:
    assert optimizer_for(model) == name
    found = settings_for(DistillSettings(), model)
    assert found.optimizer == name and found.weight_decay == DEFAULTS[name].weight_decay
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    assert found.learning_rate == (RECURRENT_LEARNING_RATE if recurrent else DEFAULTS[name].learning_rate)


def test_what_is_asked_for_stays() -> None:
    asked = DistillSettings(optimizer="sgd", learning_rate=0.5, weight_decay=0.0, alpha=0.3)
    assert settings_for(asked, Recurrent()) == asked
    rate = settings_for(DistillSettings(learning_rate=0.5), Recurrent())
    assert (rate.optimizer, rate.learning_rate, rate.weight_decay) == ("adamw", 0.5, DEFAULTS["adamw"].weight_decay)
    chosen = settings_for(DistillSettings(optimizer="sgd"), Recurrent())
    assert chosen.learning_rate == DEFAULTS["sgd"].learning_rate, "a rate for AdamW would be no rate for SGD"


def test_an_optimizer_that_there_is_not() -> None:
    with pytest.raises(InputError, match="optimizer in"):
        DistillSettings(optimizer="adam")


def test_adamw_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    settings = settings_for(DistillSettings(learning_rate=0.1, weight_decay=0.2), model)
    weight, bias = (parameter.detach().clone().double() for parameter in (model.weight, model.bias))
    moments = {name: [torch.zeros_like(tensor)] * 2 for name, tensor in (("weight", weight), ("bias", bias))}
    optimizer = make_optimizer(model, settings)
    x = torch.randn(5, 3)
    for step in range(1, 6):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        for name, tensor in (("weight", weight), ("bias", bias)):
            gradient = model.get_parameter(name).grad.double()  # type: ignore[union-attr]
            mean = 0.9 * moments[name][0] + 0.1 * gradient
            square = 0.999 * moments[name][1] + 0.001 * gradient.square()
            moments[name] = [mean, square]
            if name == "weight":
                tensor.mul_(1 - 0.1 * 0.2)
            tensor.sub_(0.1 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8))
        optimizer.step()
    torch.testing.assert_close(model.weight.double(), weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.bias.double(), bias, atol=1e-5, rtol=0)
