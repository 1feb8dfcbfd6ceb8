"""MobileNetV2 (Sandler et al. 2018) of any width, with torchvision's names and rounding."""

from typing import Final, final

from torch import Tensor, nn

_SETTINGS: Final = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, output channels at width 1.0, number of blocks, stride of the first one."""


@final
class InvertedResidual(nn.Module):
    """Expands by a 1x1 convolution, filters depthwise, projects back by a 1x1 convolution."""

    def __init__(
        self, num_inputs: int, num_outputs: int, *, stride: int, expansion: int
    ) -> None:
        """Makes random weights; `expansion` is hidden channels by input channels."""
        super().__init__()
        self.has_shortcut = stride == 1 and num_inputs == num_outputs
        hidden = num_inputs * expansion
        expand = [] if expansion == 1 else [_conv_norm(num_inputs, hidden, kernel=1)]
        self.conv = nn.Sequential(
            *expand,
            _conv_norm(hidden, hidden, stride=stride, groups=hidden),
            nn.Conv2d(hidden, num_outputs, 1, bias=False),
            nn.BatchNorm2d(num_outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, num_inputs, H, W] to [B, num_outputs, H / stride, W / stride]."""
        y: Tensor = self.conv(x)
        return x + y if self.has_shortcut else y


@final
class MobileNetV2(nn.Module):
    """Blocks `features.0` (first convolution) to `features.18` (last one), `classifier.1`.

    A state dict of torchvision's `mobilenet_v2` loads strictly.
    """

    def __init__(self, *, width: float = 1.0, num_classes: int = 1000) -> None:
        """Makes random weights.

        Args:
            width: factor of all channel counts, which are then rounded to eights.
            num_classes: logits of an image.
        """
        super().__init__()
        channels = round_channels(32 * width)
        layers: list[nn.Module] = [_conv_norm(3, channels, stride=2)]
        for expansion, num_outputs, num_blocks, first_stride in _SETTINGS:
            outputs = round_channels(num_outputs * width)
            for index in range(num_blocks):
                stride = first_stride if index == 0 else 1
                layers.append(
                    InvertedResidual(channels, outputs, stride=stride, expansion=expansion)
                )
                channels = outputs
        last = round_channels(1280 * max(1.0, width))
        layers.append(_conv_norm(channels, last, kernel=1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images, float32 [B, 3, H, W], to logits [B, num_classes]."""
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


def round_channels(num_channels: float) -> int:
    """Rounds to a multiple of 8, at least 8, and never down by more than a tenth."""
    rounded = max(8, int(num_channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * num_channels else rounded


def _conv_norm(
    num_inputs: int, num_outputs: int, *, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            num_inputs,
            num_outputs,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(num_outputs),
        nn.ReLU6(),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
