"""Plain PyTorch models of our own, as factories without required arguments.

Use them on the command line (`--model pockmobile.models:mobilenet_v2`), in tests and in
demonstrations. Weights are random until a state dict is loaded; `keyboard_lm` has some of its
own (`keyboard.md` beside it says of what they were made). The compiler takes what BatchNorm
and dropout do in evaluation: call `.eval()` where eager PyTorch is compared.
"""

from pockmobile.models.keyboard import keyboard_lm
from pockmobile.models.llama import Llama
from pockmobile.models.mlp import MLP
from pockmobile.models.mobilenet_v1 import MobileNetV1
from pockmobile.models.mobilenet_v2 import MobileNetV2
from pockmobile.models.residual_cnn import ResidualCNN
from pockmobile.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "keyboard_lm",
    "mlp",
    "mobilenet_v1",
    "mobilenet_v2",
    "residual_cnn",
    "resnet18",
    "resnet50",
    "tiny_llama",
]


def tiny_llama() -> Llama:
    """Returns a Llama of stories260K's size: width 64, 5 blocks, 512 tokens, context 512."""
    return Llama()


def mobilenet_v1(width: float = 0.25, num_classes: int = 1000) -> MobileNetV1:
    """Returns a MobileNetV1 for images [B, 3, H, W], by default of the published width."""
    return MobileNetV1(width=width, num_classes=num_classes)


def mobilenet_v2(width: float = 1.0, num_classes: int = 1000) -> MobileNetV2:
    """Returns a MobileNetV2 for images [B, 3, H, W], with torchvision's names."""
    return MobileNetV2(width=width, num_classes=num_classes)


def resnet18(num_classes: int = 1000) -> ResNet:
    """Returns a ResNet-18 for images [B, 3, H, W], with torchvision's names."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes=num_classes)


def resnet50(num_classes: int = 1000) -> ResNet:
    """Returns a ResNet-50 for images [B, 3, H, W], with torchvision's names."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes=num_classes)


def mlp(num_inputs: int = 16, num_classes: int = 4) -> MLP:
    """Returns a small classifier of features [B, num_inputs]."""
    return MLP(num_inputs, num_classes)


def residual_cnn(num_classes: int = 4) -> ResidualCNN:
    """Returns a small classifier of images [B, 3, H, W]."""
    return ResidualCNN(num_classes)
