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


class Attention(nn.Module):
    """Self-attention with separate projections; heads split by a literal number, their size follows."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            layer(x).view(batch, length, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


class FusedAttention(nn.Module):
    """As in GPT-2: one projection split in three by a size the module keeps, scores made by hand, causal."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.split_size, self.head_size, self.scale = width, width // heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.view(*part.shape[:-1], -1, self.head_size).transpose(1, 2)
            for part in self.qkv(x).split(self.split_size, dim=2)
        )
        scores = q @ k.transpose(-1, -2) * self.scale
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        y = torch.softmax(scores.masked_fill(~causal, -1e9), -1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class PackedAttention(nn.Module):
    """As in vision transformers: qkv reshaped to (3, heads, size) at once, by literal numbers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim))


class GroupedQueryAttention(nn.Module):
    """As in Llama: two queries to a key, repeated by expand and reshape, with a rotary embedding."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.head_dim, self.repeats = width // heads, heads // groups
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, groups * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, groups * self.head_dim, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        angles = torch.arange(x.shape[1])[:, None] * torch.arange(1, self.head_dim + 1)[None]
        q, k = (part * angles.cos() + self.turned(part) * angles.sin() for part in (q, k))
        k, v = (self.repeated(part) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(*x.shape[:-1], -1))

    def turned(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return torch.cat((-x[..., half:], x[..., :half]), -1)

    def repeated(self, x: Tensor) -> Tensor:
        batch, groups, length, size = x.shape
        wide = x[:, :, None].expand(batch, groups, self.repeats, length, size)
        return wide.reshape(batch, groups * self.repeats, length, size)


class GatedMlp(nn.Module):
    """Two projections, one through SiLU, multiplied."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class PreNormBlock(nn.Module):
    """Norms before attention and a gated MLP; the stream is only added to."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), attention
        self.norm2, self.mlp = nn.RMSNorm(width), GatedMlp(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PostNormBlock(nn.Module):
    """Norms after the sums, as in BERT; called with a mask."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.norm1 = attention, nn.LayerNorm(width)
        self.inner, self.outer, self.norm2 = nn.Linear(width, 12), nn.Linear(12, width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(self.attention(x, mask) + x)
        return self.norm2(self.outer(F.gelu(self.inner(x))) + x)


class Transformer(nn.Module):
    """Token and position embeddings, two blocks, a classifier on the mean token."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        width, heads = 16, 4
        self.masked = kind == "bert"
        make = {
            "bert": lambda: PostNormBlock(width, Attention(width, heads)),
            "gpt": lambda: PreNormBlock(width, FusedAttention(width, heads)),
            "vit": lambda: PreNormBlock(width, PackedAttention(width, heads)),
            "llama": lambda: PreNormBlock(width, GroupedQueryAttention(width, heads, 2)),
        }[kind]
        self.tokens, self.positions = nn.Embedding(20, width), nn.Parameter(torch.rand(1, 9, width))
        self.blocks = nn.ModuleList(make() for _ in range(2))
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions[:, : ids.shape[1]]
        mask = (ids > 3)[:, None, None]
        for block in self.blocks:
            x = block(x, mask) if self.masked else block(x)
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    """A stacked bidirectional LSTM, a GRU, the state at a given step."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(5, 6)
        self.lstm = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True)
        self.gru, self.head = nn.GRU(16, 10, batch_first=True), nn.Linear(10, 3)

    def forward(self, x: Tensor, last: Tensor) -> Tensor:
        x, _ = self.lstm(torch.tanh(self.inward(x)))
        x, _ = self.gru(x)
        return self.head(x[torch.arange(len(x)), last])
