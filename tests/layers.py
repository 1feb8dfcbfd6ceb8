"""The layers that people use, small: what every target must train as eager does.

Shared by `tests/test_layers.py` and `scripts/coverage.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as func
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """A layer, and the shape of its input without the batch.

    `num_values` is the number of tokens where it takes whole numbers.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (6,)
    num_values: int = 0


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        """Applies the function."""
        return self._function(x)


class First(nn.Module):
    """The first result of a layer that returns several."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Returns the first result."""
        result: Tensor = self.layer(x)[0]
        return result


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, causal or with padding at the end."""

    def __init__(self, *, causal: bool = False, padded: int = 0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self._causal, self._padded = causal, padded

    def forward(self, x: Tensor) -> Tensor:
        """Attends."""
        length = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self._causal else None
        padding = torch.arange(length) >= length - self._padded if self._padded else None
        hidden = padding.expand(x.shape[0], length) if padding is not None else None
        result: Tensor = self.attention(
            x, x, x, attn_mask=mask, key_padding_mask=hidden, need_weights=False
        )[0]
        return result


class Products(nn.Module):
    """Scaled dot product attention with a trained query, under some mask."""

    def __init__(self, mask: Tensor | None = None, *, is_causal: bool = False) -> None:
        super().__init__()
        self.query = nn.Linear(8, 8)
        self.register_buffer("mask", mask)
        self._is_causal = is_causal

    def forward(self, x: Tensor) -> Tensor:
        """Attends with two heads."""
        query, key = (
            y.reshape(x.shape[0], 6, 2, 4).transpose(1, 2) for y in (self.query(x), x)
        )
        seen: Tensor = func.scaled_dot_product_attention(
            query, key, key, attn_mask=self.mask, is_causal=self._is_causal
        )
        return seen.transpose(1, 2).flatten(2)


class Bag(nn.Module):
    """An embedding bag over rows of tokens, some of which weigh more."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(11, 6, mode=mode)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeds each row."""
        result: Tensor = self.bag(tokens)
        return result


def _apply(function: Callable[[Tensor], Tensor], *shape: int) -> Layer:
    return Layer(lambda: Apply(function), shape or (6,))


_IMAGE: Final = (4, 6, 6)
_ODD: Final = (3, 7, 5)
_SEQUENCE: Final = (6, 8)

_ACTIVATIONS: Final[Mapping[str, Layer]] = {
    "relu": Layer(nn.ReLU),
    "relu6": Layer(nn.ReLU6),
    "leaky_relu": Layer(lambda: nn.LeakyReLU(0.1)),
    "prelu": Layer(nn.PReLU),
    "prelu-channels": Layer(lambda: nn.PReLU(4), _IMAGE),
    "rrelu": Layer(nn.RReLU),
    "elu": Layer(lambda: nn.ELU(0.7)),
    "celu": Layer(lambda: nn.CELU(0.7)),
    "selu": Layer(nn.SELU),
    "gelu": Layer(nn.GELU),
    "gelu-tanh": Layer(lambda: nn.GELU("tanh")),
    "silu": Layer(nn.SiLU),
    "mish": Layer(nn.Mish),
    "hardswish": Layer(nn.Hardswish),
    "hardsigmoid": Layer(nn.Hardsigmoid),
    "hardtanh": Layer(lambda: nn.Hardtanh(-0.5, 0.7)),
    "hardshrink": Layer(nn.Hardshrink),
    "softshrink": Layer(nn.Softshrink),
    "tanhshrink": Layer(nn.Tanhshrink),
    "threshold": Layer(lambda: nn.Threshold(0.1, 0.5)),
    "softplus": Layer(lambda: nn.Softplus(2.0, 1.0)),
    "softsign": Layer(nn.Softsign),
    "sigmoid": Layer(nn.Sigmoid),
    "log_sigmoid": Layer(nn.LogSigmoid),
    "tanh": Layer(nn.Tanh),
    "softmax": Layer(lambda: nn.Softmax(-1)),
    "softmax-channels": Layer(lambda: nn.Softmax(1), _IMAGE),
    "softmin": Layer(lambda: nn.Softmin(-1)),
    "log_softmax": Layer(lambda: nn.LogSoftmax(-1)),
    "log_softmax-channels": Layer(lambda: nn.LogSoftmax(1), _IMAGE),
    "glu": Layer(lambda: nn.GLU(-1)),
    "glu-channels": Layer(lambda: nn.GLU(1), _IMAGE),
    "clamp": _apply(lambda x: x.clamp(-0.4, 0.6)),
    "abs": _apply(torch.abs),
    "square": _apply(torch.square),
    "power": _apply(lambda x: x.abs() ** 1.5),
    "exp": _apply(torch.exp),
    "sqrt": _apply(lambda x: (x * x + 1.0).sqrt()),
    "log": _apply(lambda x: (x * x + 1.0).log()),
    "log1p": _apply(lambda x: (x * x).log1p()),
    "sin": _apply(torch.sin),
    "cos": _apply(torch.cos),
    "erf": _apply(torch.erf),
    "reciprocal": _apply(lambda x: 1.0 / (x * x + 1.0)),
    "maximum": _apply(lambda x: torch.maximum(x, x.flip(-1))),
    "where": _apply(lambda x: torch.where(x > 0, x * 2.0, x * x)),
}

_NORMS: Final[Mapping[str, Layer]] = {
    "layer_norm": Layer(lambda: nn.LayerNorm(8), _SEQUENCE),
    "layer_norm-image": Layer(lambda: nn.LayerNorm([6, 6]), _IMAGE),
    "layer_norm-plain": Layer(lambda: nn.LayerNorm(8, elementwise_affine=False), _SEQUENCE),
    "rms_norm": Layer(lambda: nn.RMSNorm(8), _SEQUENCE),
    "group_norm": Layer(lambda: nn.GroupNorm(2, 4), _IMAGE),
    "group_norm-sequence": Layer(lambda: nn.GroupNorm(3, 6), _SEQUENCE),
    "instance_norm-1d": Layer(lambda: nn.InstanceNorm1d(6, affine=True), _SEQUENCE),
    "instance_norm-2d": Layer(lambda: nn.InstanceNorm2d(4, affine=True), _IMAGE),
    "batch_norm-1d": Layer(lambda: nn.BatchNorm1d(6), (6,)),
    "batch_norm-2d": Layer(lambda: nn.BatchNorm2d(4), _IMAGE),
    "normalize": _apply(lambda x: func.normalize(x, dim=-1)),
    "weight_norm": Layer(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))),
}

_CONVOLUTIONS: Final[Mapping[str, Layer]] = {
    "linear": Layer(lambda: nn.Linear(6, 5)),
    "bilinear": Layer(lambda: _Bilinear()),
    "conv1d": Layer(lambda: nn.Conv1d(6, 5, 3, padding=1), _SEQUENCE),
    "conv1d-strided": Layer(lambda: nn.Conv1d(6, 4, 3, stride=2, dilation=2), _SEQUENCE),
    "conv1d-depthwise": Layer(lambda: nn.Conv1d(6, 6, 3, padding=1, groups=6), _SEQUENCE),
    "conv1d-causal": Layer(
        lambda: nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(6, 5, 3)), _SEQUENCE
    ),
    "conv2d": Layer(lambda: nn.Conv2d(4, 5, 3, padding=1), _IMAGE),
    "conv2d-pointwise": Layer(lambda: nn.Conv2d(4, 5, 1), _IMAGE),
    "conv2d-strided": Layer(lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), _ODD),
    "conv2d-groups": Layer(lambda: nn.Conv2d(4, 6, 3, groups=2), _IMAGE),
    "conv2d-depthwise": Layer(lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), _IMAGE),
    "conv2d-depthwise-wide": Layer(lambda: nn.Conv2d(4, 8, 3, groups=4), _IMAGE),
    "conv2d-dilated": Layer(lambda: nn.Conv2d(3, 4, 2, dilation=2, padding=2), _ODD),
    "conv2d-uneven": Layer(
        lambda: nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(2, 1)), _ODD
    ),
    "conv2d-same": Layer(lambda: nn.Conv2d(3, 4, (4, 2), padding="same"), _ODD),
    "conv2d-reflect": Layer(
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), _ODD
    ),
    "conv2d-circular": Layer(
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), _ODD
    ),
    "conv2d-asymmetric": Layer(
        lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(3, 4, 3, stride=2)), _ODD
    ),
    "conv3d": Layer(lambda: nn.Conv3d(2, 4, 2, stride=(2, 1, 1), padding=1), (2, 3, 4, 3)),
    "conv3d-groups": Layer(lambda: nn.Conv3d(2, 4, (3, 1, 2), groups=2), (2, 3, 4, 3)),
    "conv_transpose1d": Layer(lambda: nn.ConvTranspose1d(6, 4, 3, stride=2), _SEQUENCE),
    "conv_transpose2d": Layer(
        lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), _ODD
    ),
    "conv_transpose2d-groups": Layer(
        lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), _IMAGE
    ),
    "conv_transpose2d-dense": Layer(
        lambda: nn.ConvTranspose2d(3, 4, 3, dilation=2, bias=False), _ODD
    ),
}

_POOLS: Final[Mapping[str, Layer]] = {
    "max_pool1d": Layer(lambda: nn.MaxPool1d(2), _SEQUENCE),
    "max_pool2d": Layer(lambda: nn.MaxPool2d(2), _IMAGE),
    "max_pool2d-overlapping": Layer(lambda: nn.MaxPool2d(3, 2, 1), _ODD),
    "max_pool2d-ceil": Layer(lambda: nn.MaxPool2d(2, ceil_mode=True), _ODD),
    "avg_pool1d": Layer(lambda: nn.AvgPool1d(3, 2, 1), _SEQUENCE),
    "avg_pool2d": Layer(lambda: nn.AvgPool2d(2), _IMAGE),
    "avg_pool2d-overlapping": Layer(lambda: nn.AvgPool2d(3, 2, 1), _ODD),
    "avg_pool2d-inside": Layer(
        lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), _ODD
    ),
    "lp_pool2d": Layer(lambda: nn.LPPool2d(2, 2), _IMAGE),
    "adaptive_avg_pool1d": Layer(lambda: nn.AdaptiveAvgPool1d(3), _SEQUENCE),
    "adaptive_avg_pool2d-one": Layer(lambda: nn.AdaptiveAvgPool2d(1), _IMAGE),
    "adaptive_avg_pool2d": Layer(lambda: nn.AdaptiveAvgPool2d(3), _IMAGE),
    "adaptive_avg_pool2d-uneven": Layer(lambda: nn.AdaptiveAvgPool2d((3, 2)), _ODD),
    "adaptive_max_pool2d": Layer(lambda: nn.AdaptiveMaxPool2d(1), _IMAGE),
    "adaptive_max_pool2d-uneven": Layer(lambda: nn.AdaptiveMaxPool2d((3, 2)), _ODD),
    "max-over": _apply(lambda x: x.amax(-1), *_SEQUENCE),
    "max-along": _apply(lambda x: x.max(1).values, *_SEQUENCE),
    "upsample-nearest": Layer(lambda: nn.Upsample(scale_factor=2), _IMAGE),
    "upsample-nearest-size": Layer(lambda: nn.Upsample(size=(9, 8)), _ODD),
    "upsample-nearest-1d": Layer(lambda: nn.Upsample(scale_factor=2), _SEQUENCE),
    "upsample-bilinear": Layer(lambda: nn.Upsample(scale_factor=2, mode="bilinear"), _IMAGE),
    "upsample-bilinear-corners": Layer(
        lambda: nn.Upsample(size=(9, 8), mode="bilinear", align_corners=True), _ODD
    ),
    "upsample-nearest-exact": Layer(
        lambda: nn.Upsample(size=(9, 8), mode="nearest-exact"), _ODD
    ),
    "upsample-bicubic": Layer(lambda: nn.Upsample(scale_factor=2, mode="bicubic"), _IMAGE),
    "upsample-bicubic-corners": Layer(
        lambda: nn.Upsample(size=(9, 8), mode="bicubic", align_corners=True), _ODD
    ),
    "downsample-smooth": _apply(
        lambda x: func.interpolate(x, (3, 2), mode="bilinear", antialias=True), *_ODD
    ),
    "upsample-linear": Layer(lambda: nn.Upsample(scale_factor=2, mode="linear"), _SEQUENCE),
    "pixel_shuffle": Layer(lambda: nn.PixelShuffle(2), _IMAGE),
    "pixel_unshuffle": Layer(lambda: nn.PixelUnshuffle(2), _IMAGE),
    "unfold": Layer(lambda: nn.Unfold(2), _IMAGE),
}

_SEQUENCES: Final[Mapping[str, Layer]] = {
    "embedding": Layer(lambda: nn.Embedding(11, 6), (5,), 11),
    "embedding-padding": Layer(lambda: nn.Embedding(11, 6, padding_idx=3), (5,), 11),
    "embedding_bag-mean": Layer(lambda: Bag("mean"), (5,), 11),
    "embedding_bag-sum": Layer(lambda: Bag("sum"), (5,), 11),
    "embedding_bag-max": Layer(lambda: Bag("max"), (5,), 11),
    "attention": Layer(SelfAttention, _SEQUENCE),
    "attention-causal": Layer(lambda: SelfAttention(causal=True), _SEQUENCE),
    "attention-padded": Layer(lambda: SelfAttention(padded=2), _SEQUENCE),
    "products": Layer(Products, _SEQUENCE),
    "products-causal": Layer(lambda: Products(is_causal=True), _SEQUENCE),
    "products-mask": Layer(
        lambda: Products(torch.ones(6, 6, dtype=torch.bool).tril()), _SEQUENCE
    ),
    "products-bias": Layer(lambda: Products(torch.linspace(-1, 1, 36).view(6, 6)), _SEQUENCE),
    "encoder_layer": Layer(
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), _SEQUENCE
    ),
    "lstm": Layer(lambda: First(nn.LSTM(8, 5, batch_first=True)), _SEQUENCE),
    "lstm-two-ways": Layer(
        lambda: First(nn.LSTM(8, 4, bidirectional=True, batch_first=True)), (3, 8)
    ),
    "gru": Layer(lambda: First(nn.GRU(8, 5, batch_first=True)), _SEQUENCE),
    "rnn": Layer(lambda: First(nn.RNN(8, 5, batch_first=True)), _SEQUENCE),
}

_MOVES: Final[Mapping[str, Layer]] = {
    "cat": _apply(lambda x: torch.cat([x, x * x], 1), *_IMAGE),
    "stack": _apply(lambda x: torch.stack([x, x * x], 1), *_IMAGE),
    "split": _apply(lambda x: torch.mul(*x.split(3, -1))),
    "chunk": _apply(lambda x: torch.mul(*x.chunk(2, 1)), *_IMAGE),
    "unbind": _apply(lambda x: torch.mul(*x.unbind(1)), 2, 6),
    "pad": _apply(lambda x: func.pad(x, (1, 2, 0, 1)) * 2.0, *_IMAGE),
    "pad-crop": _apply(lambda x: func.pad(x, (-1, 2)) * 2.0, *_IMAGE),
    "pad-value": _apply(lambda x: func.pad(x, (1, 2), value=0.5) * 2.0, *_IMAGE),
    "pad-reflect": _apply(lambda x: func.pad(x, (1, 2), mode="reflect") * 2.0, *_SEQUENCE),
    "pad-replicate": _apply(
        lambda x: func.pad(x, (1, 2, 0, 1), mode="replicate") * 2.0, *_IMAGE
    ),
    "pad-circular": _apply(lambda x: func.pad(x, (1, 2), mode="circular"), *_SEQUENCE),
    "roll": _apply(lambda x: torch.roll(x, (1, -2), (1, 2)) * x, *_IMAGE),
    "flip": _apply(lambda x: x.flip(1) * x, *_IMAGE),
    "slice": _apply(lambda x: x[:, 1:3] * x[:, 2:4], *_IMAGE),
    "slice-step": _apply(lambda x: x[:, :, ::2] * x[:, :, 1::2], *_IMAGE),
    "select": _apply(lambda x: x[:, 0] * x[:, -1], *_IMAGE),
    "index": _apply(lambda x: x[:, torch.tensor([2, 0, 0])] * 2.0, *_IMAGE),
    "index_select": _apply(lambda x: x.index_select(1, torch.tensor([2, 0, 0])), *_IMAGE),
    "gather": _apply(
        lambda x: x.gather(1, torch.tensor([[2, 0, 0]]).expand(x.shape[0], 3)) * x[:, :3]
    ),
    "expand": _apply(lambda x: x.unsqueeze(1).expand(-1, 3, -1) * 2.0),
    "repeat": _apply(lambda x: x.repeat(1, 2) * 2.0),
    "repeat_interleave": _apply(lambda x: x.repeat_interleave(2, -1) * 2.0),
    "permute": _apply(lambda x: x.permute(0, 2, 3, 1) * 2.0, *_IMAGE),
    "tril": _apply(torch.tril, 6, 6),
    "masked_fill": _apply(
        lambda x: x.masked_fill(torch.ones(6, 6).triu(1).bool(), 0.5) * 2.0, 6, 6
    ),
    "einsum": _apply(lambda x: torch.einsum("bij,bkj->bik", x, x), *_SEQUENCE),
    "matmul": _apply(lambda x: x @ x.transpose(-1, -2), *_IMAGE),
    "cumsum": _apply(lambda x: x.cumsum(1), *_SEQUENCE),
    "sum": _apply(lambda x: x.sum(1), *_SEQUENCE),
    "mean": _apply(lambda x: x.mean((2, 3)), *_IMAGE),
    "var": _apply(lambda x: x.var(-1), *_SEQUENCE),
    "std": _apply(lambda x: x.std(-1), *_SEQUENCE),
    "norm": _apply(lambda x: x.norm(dim=-1), *_SEQUENCE),
    "cdist": _apply(lambda x: torch.cdist(x, x * 2.0 + 1.0) * 0.2, *_SEQUENCE),
    "prod": _apply(lambda x: x.tanh().prod(1), 5, 6),
    "sort": _apply(lambda x: x.sort(-1).values * torch.arange(6)),
    "logsumexp": _apply(lambda x: x.logsumexp(-1), *_SEQUENCE),
    "dropout": Layer(nn.Dropout),
    "flatten": Layer(nn.Flatten, _IMAGE),
    "cosine_similarity": _apply(lambda x: func.cosine_similarity(x, x.flip(1), -1), 2, 6),
}


class _Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bilinear = nn.Bilinear(6, 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.bilinear(x, x.flip(-1))
        return result


FAMILIES: Final[Mapping[str, Mapping[str, Layer]]] = {
    "activations": _ACTIVATIONS,
    "normalisations": _NORMS,
    "linear layers and convolutions": _CONVOLUTIONS,
    "pooling and upsampling": _POOLS,
    "embeddings, attention and recurrence": _SEQUENCES,
    "moving and reducing": _MOVES,
}
LAYERS: Final[Mapping[str, Layer]] = {
    name: layer for family in FAMILIES.values() for name, layer in family.items()
}


REFUSED: Final[Mapping[str, Layer]] = {
    "fft": _apply(lambda x: torch.fft.fft(x).real),
    "inverse": _apply(lambda x: torch.linalg.inv(x + 4.0 * torch.eye(6)), 6, 6),
    "random": _apply(lambda x: x + torch.rand_like(x)),
}
"""Layers that no target trains yet: they are refused by name."""
