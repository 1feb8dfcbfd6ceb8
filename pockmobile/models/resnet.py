"""ResNet-18 and ResNet-50 (He et al. 2016), with torchvision's names."""

from collections.abc import Sequence
from typing import Final, final

import torch
from torch import Tensor, nn

_WIDTHS: Final = (64, 128, 256, 512)
_NUM_STEM: Final = 64


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion: Final = 1

    def __init__(self, num_inputs: int, width: int, *, stride: int) -> None:
        """Makes random weights; both convolutions have `width` channels."""
        super().__init__()
        self.conv1 = nn.Conv2d(num_inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(num_inputs, width, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, num_inputs, H, W] to [B, width, H / stride, W / stride]."""
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.downsample(x))


@final
class Bottleneck(nn.Module):
    """A 1x1, a 3x3 (which holds the stride) and a 1x1 convolution, and a shortcut."""

    expansion: Final = 4

    def __init__(self, num_inputs: int, width: int, *, stride: int) -> None:
        """Makes random weights; the 3x3 convolution has `width` channels."""
        super().__init__()
        num_outputs = width * self.expansion
        self.conv1 = nn.Conv2d(num_inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, num_outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(num_outputs)
        self.downsample = _downsample(num_inputs, num_outputs, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, num_inputs, H, W] to [B, 4 width, H / stride, W / stride]."""
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        return torch.relu(y + self.downsample(x))


@final
class ResNet(nn.Module):
    """`conv1`, the blocks `layer1.0` to `layer4.N`, and the classifier `fc`.

    A state dict of torchvision's network of the same depth loads strictly.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        num_blocks: Sequence[int],
        *,
        num_classes: int = 1000,
    ) -> None:
        """Makes random weights.

        Args:
            block: kind of every block.
            num_blocks: in each of the four stages.
            num_classes: logits of an image.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(3, _NUM_STEM, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(_NUM_STEM)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages: list[nn.Sequential] = []
        channels = _NUM_STEM
        for stage, (width, num_repeats) in enumerate(zip(_WIDTHS, num_blocks, strict=True)):
            layers: list[nn.Module] = []
            for index in range(num_repeats):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(block(channels, width, stride=stride))
                channels = width * block.expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, num_classes)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images, float32 [B, 3, H, W], to logits [B, num_classes]."""
        x = self.maxpool(self.bn1(self.conv1(images)).relu())
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _downsample(num_inputs: int, num_outputs: int, *, stride: int) -> nn.Module:
    if stride == 1 and num_inputs == num_outputs:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(num_inputs, num_outputs, 1, stride=stride, bias=False),
        nn.BatchNorm2d(num_outputs),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
