"""Small CIFAR-10 nets of kinds without published weights: plain, channel shuffle, ReLU6 with "same" padding."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvSame(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding, which is uneven where the stride is 2."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, c, h, w) -> (n, d, ceil(h / stride), ceil(w / stride))."""
        pads = []
        for size, kernel, stride in zip(x.shape[-1:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def unit(n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    layers: list[nn.Module] = [ConvSame(n_in, n_out, kernel, stride, groups=groups, bias=False), nn.BatchNorm2d(n_out)]
    return nn.Sequential(*layers, *([nn.ReLU6()] if act else []))


class Inverted(nn.Module):
    """MobileNetV2's block, without squeeze-excite, as in EfficientNet-Lite."""

    def __init__(self, n_in: int, n_out: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = n_in * expand
        self.expand = unit(n_in, wide, 1) if expand > 1 else nn.Identity()
        self.depthwise = unit(wide, wide, kernel, stride, wide)
        self.project = unit(wide, n_out, 1, act=False)
        self.skips = n_in == n_out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, n_in, h, w) -> (n, n_out, h / stride, w / stride)."""
        y = self.project(self.depthwise(self.expand(x)))
        out: Tensor = x + y if self.skips else y
        return out


class Lite(nn.Module):
    """EfficientNet-Lite0's shape for 32 × 32 images."""

    STAGES = ((1, 16, 1, 3, 1), (4, 24, 2, 3, 1), (4, 40, 2, 5, 2), (4, 80, 2, 3, 2), (4, 112, 1, 5, 1))

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.stem = unit(3, 24, 3)
        n_in, blocks = 24, []
        for expand, n_out, repeats, kernel, stride in self.STAGES:
            for k in range(repeats):
                blocks.append(Inverted(n_in, n_out, expand, kernel, stride if k == 0 else 1))
                n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.head = unit(n_in, 320, 1)
        self.fc = nn.Linear(320, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, 3, 32, 32) -> (n, n_classes)."""
        x = self.head(self.blocks(self.stem(x)))
        out: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


class Plain(nn.Module):
    """The block of MLPerf Tiny's ResNet-8."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=True), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=True), nn.BatchNorm2d(n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, n_in, h, w) -> (n, n_out, h / stride, w / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet8(nn.Module):
    """MLPerf Tiny's image classifier."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16)
        self.block1, self.block2, self.block3 = Plain(16, 16, 1), Plain(16, 32, 2), Plain(32, 64, 2)
        self.fc = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, 3, 32, 32) -> (n, n_classes)."""
        x = self.block3(self.block2(self.block1(F.relu(self.bn(self.conv(x))))))
        out: Tensor = self.fc(F.avg_pool2d(x, 8).flatten(1))
        return out


def _branch(n_in: int, n_out: int, stride: int, depthwise_first: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    if not depthwise_first:
        layers += [nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]
        n_in = n_out
    layers += [nn.Conv2d(n_in, n_in, 3, stride, 1, groups=n_in, bias=False), nn.BatchNorm2d(n_in)]
    return [*layers, nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]


class Shuffle(nn.Module):
    """ShuffleNetV2's block."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        half, self.stride = n_out // 2, stride
        self.left = nn.Sequential(*(_branch(n_in, half, stride, True) if stride > 1 else []))
        self.right = nn.Sequential(*_branch(n_in if stride > 1 else half, half, stride, False))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, n_in, h, w) -> (n, n_out, h / stride, w / stride)."""
        if self.stride == 1:
            left, right = x.chunk(2, dim=1)
            y = torch.cat((left, self.right(right)), dim=1)
        else:
            y = torch.cat((self.left(x), self.right(x)), dim=1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleNet(nn.Module):
    """ShuffleNetV2 x0.5 for 32 × 32 images."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        n_in, blocks = 24, []
        for n_out, repeats in ((48, 4), (96, 8), (192, 4)):
            for k in range(repeats):
                blocks.append(Shuffle(n_in, n_out, 2 if k == 0 else 1))
                n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Conv2d(n_in, 512, 1, bias=False), nn.BatchNorm2d(512), nn.ReLU(inplace=True))
        self.fc = nn.Linear(512, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, 3, 32, 32) -> (n, n_classes)."""
        out: Tensor = self.fc(self.head(self.blocks(self.stem(x))).mean((2, 3)))
        return out


NETS: dict[str, Any] = {"resnet8": ResNet8, "shufflenet": ShuffleNet, "lite": Lite}
