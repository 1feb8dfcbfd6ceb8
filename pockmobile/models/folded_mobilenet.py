"""Inverted-residual networks whose BatchNorm is folded already: MCUNet, converted TFLite nets.

Convolutions have biases; activations are clamps, which stand for ReLU6 or int8's range.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.nn import functional


@final
@dataclass(frozen=True)
class ConvSpec:
    """A convolution and the bounds of its output (None: unbounded).

    `is_same_stride` pads as TensorFlow's SAME does for stride 2 on an even size: after the
    image only.
    """

    num_inputs: int
    num_outputs: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    low: float | None = None
    high: float | None = None
    is_same_stride: bool = False


@final
@dataclass(frozen=True)
class BlockSpec:
    """An inverted residual block; `expand` is None where the expansion is 1."""

    expand: ConvSpec | None
    depthwise: ConvSpec
    project: ConvSpec
    has_shortcut: bool


@final
class ClampedConv(nn.Module):
    """A convolution `conv` with bias, then a clamp."""

    def __init__(self, spec: ConvSpec) -> None:
        """Makes random weights."""
        super().__init__()
        self.bounds = (spec.low, spec.high)
        self.num_after = spec.kernel // 2 if spec.is_same_stride else 0
        self.conv = nn.Conv2d(
            spec.num_inputs,
            spec.num_outputs,
            spec.kernel,
            stride=spec.stride,
            padding=0 if spec.is_same_stride else spec.kernel // 2,
            groups=spec.groups,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, num_inputs, H, W] to [B, num_outputs, H / stride, W / stride]."""
        if self.num_after:
            x = functional.pad(x, (0, self.num_after, 0, self.num_after))
        y: Tensor = self.conv(x)
        low, high = self.bounds
        return y if low is None or high is None else functional.hardtanh(y, low, high)


@final
class FoldedBlock(nn.Module):
    """Expands by a 1x1 convolution, filters depthwise, projects back by a 1x1 convolution."""

    def __init__(self, spec: BlockSpec) -> None:
        """Makes random weights."""
        super().__init__()
        self.has_shortcut = spec.has_shortcut
        self.expand = ClampedConv(spec.expand) if spec.expand else nn.Identity()
        self.depthwise = ClampedConv(spec.depthwise)
        self.project = ClampedConv(spec.project)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, num_inputs, H, W] to [B, num_outputs, H / stride, W / stride]."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_shortcut else y


@final
class FoldedMobileNet(nn.Module):
    """`first`, `blocks.0`, `blocks.1`, ..., `last` (or none), and the classifier `head`."""

    def __init__(
        self,
        first: ConvSpec,
        blocks: Sequence[BlockSpec],
        *,
        last: ConvSpec | None,
        num_classes: int,
    ) -> None:
        """Makes random weights.

        Args:
            first: the convolution before the blocks.
            blocks: at least one.
            last: the convolution after the blocks, if there is one.
            num_classes: logits of an image.
        """
        super().__init__()
        self.first = ClampedConv(first)
        self.blocks = nn.Sequential(*(FoldedBlock(spec) for spec in blocks))
        self.last = ClampedConv(last) if last else nn.Identity()
        channels = (last or blocks[-1].project).num_outputs
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images, float32 [B, 3, H, W], to logits [B, num_classes]."""
        x = self.last(self.blocks(self.first(images)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
