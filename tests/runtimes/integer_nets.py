"""Small nets of the kinds that engines' own tools quantize well, with random weights and ordinary activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

SIDE = 16


class ConvSame(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding, which is uneven where the stride is 2."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[-1:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class StandardisedConv(nn.Conv2d):
    """A convolution whose weight has mean 0 and variance 1 by row."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return self._conv_forward(x, (self.weight - mean) / torch.sqrt(variance + 1e-6), self.bias)


class Inverted(nn.Module):
    """MobileNetV2's block."""

    def __init__(
        self, conv: Callable[..., nn.Module], n_in: int, n_out: int, stride: int, act: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        wide, padding = 2 * n_in, {} if conv is ConvSame else {"padding": 1}
        self.expand, self.norm1 = conv(n_in, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.depthwise = conv(wide, wide, 3, stride=stride, groups=wide, bias=False, **padding)
        self.norm2 = nn.BatchNorm2d(wide)
        self.project, self.norm3 = conv(wide, n_out, 1, bias=False), nn.BatchNorm2d(n_out)
        self.act, self.skips = act, n_in == n_out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm1(self.expand(x)))
        y = self.norm3(self.project(self.act(self.norm2(self.depthwise(y)))))
        return x + y if self.skips else y


class Mobile(nn.Module):
    """A stem, blocks with and without shortcut, a head."""

    def __init__(self, conv: Callable[..., nn.Module], act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        padding = {} if conv is ConvSame else {"padding": 1}
        self.stem, self.norm = conv(3, 8, 3, stride=2, bias=False, **padding), nn.BatchNorm2d(8)
        shapes = [(8, 8, 1), (8, 16, 2), (16, 16, 1), (16, 16, 1)]
        self.blocks = nn.Sequential(*(Inverted(conv, *shape, act) for shape in shapes))
        self.head, self.norm2 = conv(16, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.act, self.fc = act, nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm2(self.head(self.blocks(self.act(self.norm(self.stem(x)))))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Plain(nn.Module):
    """The block of MLPerf Tiny's ResNet-8."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1), nn.BatchNorm2d(n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet8(nn.Module):
    """MLPerf Tiny's image classifier, half as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Plain(8, 8, 1), Plain(8, 16, 2), Plain(16, 32, 2))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.avg_pool2d(self.blocks(F.relu(self.bn(self.conv(x)))), SIDE // 4).flatten(1))


def _branch(n_in: int, n_out: int, stride: int, depthwise_first: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    if not depthwise_first:
        layers += [nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]
        n_in = n_out
    layers += [nn.Conv2d(n_in, n_in, 3, stride, 1, groups=n_in, bias=False), nn.BatchNorm2d(n_in)]
    layers += [nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Shuffle(nn.Module):
    """ShuffleNetV2's block."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        half, self.stride = n_out // 2, stride
        self.left = _branch(n_in, half, stride, True) if stride > 1 else None
        self.right = _branch(n_in if stride > 1 else half, half, stride, False)

    def forward(self, x: Tensor) -> Tensor:
        if self.left is None:
            left, right = x.chunk(2, dim=1)
            y = torch.cat((left, self.right(right)), dim=1)
        else:
            y = torch.cat((self.left(x), self.right(x)), dim=1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleNet(nn.Module):
    """ShuffleNetV2 with three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(Shuffle(8, 16, 2), Shuffle(16, 16, 1), Shuffle(16, 16, 1))
        self.head = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.head(self.blocks(self.stem(x))).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Channels scaled by what their means say, as in torchvision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool, self.fc1, self.fc2 = nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)
        self.act, self.gate = nn.SiLU(), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.act(self.fc1(self.pool(x)))))


class MBConv(nn.Module):
    """EfficientNet's block."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        wide = 2 * n_in
        layers: list[nn.Module] = [nn.Conv2d(n_in, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU()]
        layers += [nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.SiLU()]
        layers += [SqueezeExcite(wide), nn.Conv2d(wide, n_out, 1, bias=False), nn.BatchNorm2d(n_out)]
        self.layers, self.skips = nn.Sequential(*layers), n_in == n_out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.skips else y


def efficient() -> nn.Module:
    stem = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU()]
    head = [nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    blocks = [MBConv(8, 8, 1), MBConv(8, 16, 2), MBConv(16, 16, 1)]
    return nn.Sequential(*stem, *blocks, *head, nn.Linear(32, 10))


def computed_weights() -> nn.Module:
    """Convolutions and a linear layer whose weights are computed."""
    return nn.Sequential(
        StandardisedConv(3, 8, 3, padding=1),
        nn.ReLU(),
        parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1)),
        nn.ReLU(),
        StandardisedConv(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(16, 10)),
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "lite": lambda: Mobile(ConvSame, nn.ReLU6()),
    "mobilenet_v2, relu6 as a function": lambda: Mobile(nn.Conv2d, F.relu6),
    "mobilenet_v2, clamp": lambda: Mobile(nn.Conv2d, lambda x: x.clamp(0, 6)),
    "resnet8": ResNet8,
    "shufflenet": ShuffleNet,
    "efficientnet": efficient,
    "computed weights": computed_weights,
}


def settled(name: str) -> tuple[nn.Module, list[tuple[Tensor, ...]]]:
    """The net in evaluation mode, its norms' statistics those of random images, and eight of them."""
    torch.manual_seed(0)
    model: Any = NETS[name]()
    images = [(torch.rand(1, 3, SIDE, SIDE) * 2 - 1,) for _ in range(8)]
    with torch.no_grad():
        for module in model.modules():  # such that ReLU6 cuts something off
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(1.0, 3.0)
                module.bias.uniform_(0.0, 2.0)
        model.train()
        for _ in range(20):
            model(torch.rand(8, 3, SIDE, SIDE) * 2 - 1)
    return model.eval(), images
