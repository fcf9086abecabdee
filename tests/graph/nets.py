"""Small networks, one for each habit of real models that the channel graph must follow or freeze."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def unit(n_in: int, n_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, in-place ReLU."""
    conv = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and buffer its own value, so that no mistake in a slot hides behind equal ones."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=source) * 0.6 + (0.2 if tensor.dim() == 1 else -0.3))
    return model


class PlainNet(nn.Module):
    """Convolutions, flatten, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(unit(1, 8), nn.MaxPool2d(2), unit(8, 12), nn.MaxPool2d(2))
        self.hidden, self.head = nn.Linear(12 * 4, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.features(x).flatten(1))))


class PadShortcut(nn.Module):
    """Every second pixel, and zeros in the new channels."""

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class Block(nn.Module):
    """A basic residual block with a given shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three blocks in two stages; the second stage begins with the given shortcut."""

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.stem = unit(3, 8)
        self.blocks = nn.Sequential(
            Block(8, 8, 1, nn.Identity()), Block(8, 16, 2, shortcut), Block(16, 16, 1, nn.Identity())
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def pad_resnet() -> ResNet:
    return ResNet(PadShortcut(4))


def conv_resnet() -> ResNet:
    return ResNet(nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16)))


class DenseNet(nn.Module):
    """Every layer reads the concatenation of all before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 6)
        self.layers = nn.ModuleList(unit(6 + 4 * i, 4) for i in range(3))
        self.head = nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(F.adaptive_avg_pool2d(torch.cat(features, 1), 1).flatten(1))


class MobileNet(nn.Module):
    """Inverted residuals with depthwise convolutions, a channel multiplier, ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 8)
        self.expand, self.depthwise, self.project = unit(8, 16, 1), unit(16, 16, groups=16), nn.Conv2d(16, 8, 1)
        self.multiply = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.head(F.relu6(self.multiply(x)).mean((-1, -2)))


class ShuffleNet(nn.Module):
    """Split in two, grouped convolution, channel shuffle through views with a literal number of groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.right = unit(3, 16), unit(8, 8)
        self.grouped, self.head = unit(16, 24, groups=4), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat([left, self.right(right)], dim=1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.grouped(x).mean((2, 3)))


class UNet(nn.Module):
    """Down, up by transposed convolution and interpolation, skip by concatenation, pixel shuffle at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = unit(3, 8), unit(8, 12, stride=2)
        self.up, self.join = nn.ConvTranspose2d(12, 8, 2, 2), nn.Conv2d(16, 12, 3, padding=1)
        self.slope, self.side, self.last = nn.PReLU(12), nn.Conv2d(12, 12, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        middle = self.middle(skip)
        x = self.slope(self.join(torch.cat([self.up(middle), skip], 1)))
        x = x + F.interpolate(self.side(middle), scale_factor=2, mode="nearest")
        return self.last(F.pixel_shuffle(x, 2))


class SqueezeExcite(nn.Module):
    """A gate made from the pooled channels multiplies them; a learnt scale outside modules follows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.after = unit(3, 8), unit(8, 8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head((self.after(x * gate) * self.scale).mean((2, 3)))


CNNS = {
    "plain": (PlainNet, (1, 8, 8)),
    "pad_resnet": (pad_resnet, (3, 8, 8)),
    "conv_resnet": (conv_resnet, (3, 8, 8)),
    "densenet": (DenseNet, (3, 8, 8)),
    "mobilenet": (MobileNet, (3, 8, 8)),
    "shufflenet": (ShuffleNet, (3, 8, 8)),
    "unet": (UNet, (3, 8, 8)),
    "squeeze_excite": (SqueezeExcite, (3, 8, 8)),
}
