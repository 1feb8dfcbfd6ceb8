"""A small convolutional classifier with every kind of layer of the large ones, for tests."""

from typing import final

import torch
from torch import Tensor, nn


@final
class ResidualBlock(nn.Module):
    """A 1x1, a depthwise 3x3 and a 1x1 convolution, each with BatchNorm, and a shortcut."""

    def __init__(self, width: int) -> None:
        """Makes random weights for `width` channels."""
        super().__init__()
        self.conv1 = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, width, H, W] to the same shape."""
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return torch.relu(x + self.bn3(self.conv3(y)))


@final
class ResidualCNN(nn.Module):
    """A strided 3x3 `stem`, `blocks.0`, `blocks.1`, ..., the mean over the image, `head`."""

    def __init__(self, num_classes: int = 4, *, width: int = 8, num_blocks: int = 2) -> None:
        """Makes random weights.

        Args:
            num_classes: logits of an image.
            width: channels of every block's input.
            num_blocks: how many blocks.
        """
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(num_blocks)))
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images, float32 [B, 3, H, W], to logits [B, num_classes]."""
        x = self.stem_bn(self.stem(images)).relu()
        logits: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return logits
