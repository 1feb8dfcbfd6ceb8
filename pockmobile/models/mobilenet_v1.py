"""MobileNetV1 (Howard et al. 2017) of any width."""

from typing import Final, final

from torch import Tensor, nn

_STAGES: Final = (
    ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    ((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    ((1024, 2), (1024, 1)),
)
"""Output channels at width 1.0, and stride, of the blocks of each stage."""


@final
class MobileNetV1(nn.Module):
    """Depthwise separable convolutions `stage1.1` to `stage3.1`, then the classifier `fc`.

    The names are those of the published weights of width 0.25 (Pytorch_Retinaface).
    """

    def __init__(self, *, width: float = 0.25, num_classes: int = 1000) -> None:
        """Makes random weights.

        Args:
            width: factor of all channel counts.
            num_classes: logits of an image.
        """
        super().__init__()
        channels = int(32 * width)
        stages: list[nn.Sequential] = []
        for index, blocks in enumerate(_STAGES):
            layers = [] if index else [_convolution(3, channels)]
            for num_outputs, stride in blocks:
                outputs = int(num_outputs * width)
                layers.append(_separable(channels, outputs, stride=stride))
                channels = outputs
            stages.append(nn.Sequential(*layers))
        self.stage1, self.stage2, self.stage3 = stages
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images, float32 [B, 3, H, W], to logits [B, num_classes]."""
        x = self.stage3(self.stage2(self.stage1(images)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _convolution(num_inputs: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(num_inputs, num_outputs, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(num_outputs),
        nn.ReLU(),
    )


def _separable(num_inputs: int, num_outputs: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            num_inputs, num_inputs, 3, stride=stride, padding=1, groups=num_inputs, bias=False
        ),
        nn.BatchNorm2d(num_inputs),
        nn.ReLU(),
        nn.Conv2d(num_inputs, num_outputs, 1, bias=False),
        nn.BatchNorm2d(num_outputs),
        nn.ReLU(),
    )
