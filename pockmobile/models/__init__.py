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
    "llama_1b",
    "llama_7b",
    "llama_100m",
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


def llama_100m() -> Llama:
    """Returns a Llama of 100 million parameters: width 768, 12 blocks, 32,000 tokens, tied."""
    return Llama(
        num_tokens=32_000,
        width=768,
        hidden=2048,
        num_blocks=12,
        num_heads=12,
        num_key_heads=4,
    )


def llama_1b() -> Llama:
    """Returns a Llama of the shapes of Llama 3.2 1B; its rotary positions are not scaled."""
    return Llama(
        num_tokens=128_256,
        context=2048,
        width=2048,
        hidden=8192,
        num_blocks=16,
        num_heads=32,
        num_key_heads=8,
        rotary_base=500_000.0,
    )


def llama_7b() -> Llama:
    """Returns a Llama of the shapes of Llama 2 7B, whose head is not tied."""
    return Llama(
        num_tokens=32_000,
        context=2048,
        width=4096,
        hidden=11_008,
        num_blocks=32,
        num_heads=32,
        num_key_heads=32,
        is_tied=False,
    )


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
