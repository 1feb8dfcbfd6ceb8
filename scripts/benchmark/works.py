"""What is trained in `scripts/bench.py`: models of the package on random batches.

Importing this module imports no torch: a worker imports no more than what it measures.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from torch import Tensor, nn

SEED: Final = 0
NUM_CLASSES: Final = 10
"""Of the image models: a phone's owner has few."""
_FEW_LABELS: Final = 4
"""Of a row of tokens."""
_BERT_TOKENS: Final = 30_522
_NUM_SETTLING: Final = 8
"""Examples whose statistics BatchNorm takes, whatever the batch measured."""


@final
@dataclass(frozen=True)
class Work:
    """A model, the shape of one example, and how it is trained.

    `shape` is that of an image, (3, H, W), or of a row of tokens, (T,); labels are less than
    `num_labels`, one for an image or for each token; where `num_tokens` says how many tokens
    there are, one for a row. `lr` lets plain SGD fit one batch.
    """

    name: str
    model: "Callable[[], nn.Module]"
    shape: tuple[int, ...]
    num_labels: int
    plan: str
    lr: float
    num_tokens: int | None = None

    @property
    def has_tokens(self) -> bool:
        """Whether the inputs are tokens, int64, and not images, float32."""
        return len(self.shape) == 1

    def random_model(self) -> "nn.Module":
        """Returns the model in evaluation mode, in every process with the same weights."""
        import torch

        torch.manual_seed(SEED)
        return self.model().eval()

    def batch(self, num_examples: int) -> "tuple[Tensor, Tensor]":
        """Returns random inputs [B, *shape] and labels int64, [B] or [B, T]."""
        import torch

        random = torch.Generator().manual_seed(SEED + 1)
        size = (num_examples, *self.shape)
        if self.has_tokens:
            inputs = torch.randint(self.num_tokens or self.num_labels, size, generator=random)
            shape = size if self.num_tokens is None else (num_examples,)
            return inputs, torch.randint(self.num_labels, shape, generator=random)
        labels = torch.randint(self.num_labels, (num_examples,), generator=random)
        return torch.randn(size, generator=random), labels

    def statistics(self) -> "dict[str, Tensor]":
        """Returns running statistics with which the random model's activations are sane.

        BatchNorm is frozen in all that is compared. With the statistics that a fresh one has,
        it does nothing: the activations of a random MobileNet vanish, a ResNet-50's explode.
        """
        import torch
        from torch import nn

        model = self.random_model()
        norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.BatchNorm2d)
        }
        for module in norms.values():
            module.train()
            module.momentum = 1.0
        if norms:
            with torch.no_grad():
                model(self.batch(_NUM_SETTLING)[0])
        return {
            f"{name}.{kind}": getattr(module, kind)
            for name, module in norms.items()
            for kind in ("running_mean", "running_var")
        }


def settled_model(work: Work, statistics: "Mapping[str, Tensor]") -> "nn.Module":
    """Returns the model that all variants train, in evaluation mode.

    Args:
        work: says which.
        statistics: what `Work.statistics` returned.
    """
    model = work.random_model()
    buffers = dict(model.named_buffers())
    for name, value in statistics.items():
        buffers[name].copy_(value)
    return model


def _mobilenet_v2(width: float) -> "Callable[[], nn.Module]":
    def make() -> "nn.Module":
        from pockmobile.models import mobilenet_v2

        return mobilenet_v2(width, NUM_CLASSES)

    return make


def _resnet18() -> "nn.Module":
    from pockmobile.models import resnet18

    return resnet18(NUM_CLASSES)


def _resnet50() -> "nn.Module":
    from pockmobile.models import resnet50

    return resnet50(NUM_CLASSES)


def _keyboard_lm() -> "nn.Module":
    from pockmobile.models.transformer_lm import TransformerLM

    return TransformerLM(
        num_tokens=10_000, context=32, width=128, num_blocks=3, num_heads=4, head_bias=True
    )


def _llama() -> "nn.Module":
    from pockmobile.models.llama import Llama

    return Llama()


def _bert_base() -> "nn.Module":
    from scripts.benchmark.encoder import Encoder

    return Encoder(num_labels=_FEW_LABELS, num_tokens=_BERT_TOKENS)


def _tiny_encoder() -> "nn.Module":
    from scripts.benchmark.encoder import Encoder

    return Encoder(
        num_labels=_FEW_LABELS, num_tokens=64, context=8, width=32, num_blocks=2, num_heads=2
    )


def _tiny_lm() -> "nn.Module":
    from pockmobile.models.transformer_lm import TransformerLM

    return TransformerLM(num_tokens=64, context=8, width=32, num_blocks=2, num_heads=2)


WORKS: Final[Mapping[str, Work]] = {
    work.name: work
    for work in (
        Work(
            "mobilenet_v2-0.35-96",
            _mobilenet_v2(0.35),
            (3, 96, 96),
            NUM_CLASSES,
            "sparse:7:7",
            5e-4,
        ),
        Work(
            "mobilenet_v2-1.0-128",
            _mobilenet_v2(1.0),
            (3, 128, 128),
            NUM_CLASSES,
            "sparse:7:7",
            # At 1e-4 two steps of `full` multiply rounding to 7 % of what the loss fell.
            3e-5,
        ),
        Work(
            "mobilenet_v2-1.0-224",
            _mobilenet_v2(1.0),
            (3, 224, 224),
            NUM_CLASSES,
            "sparse:7:7",
            # At 5e-4 two steps of `full` multiply rounding to 4 % of the loss.
            1e-4,
        ),
        Work("resnet18-96", _resnet18, (3, 96, 96), NUM_CLASSES, "sparse:4:4", 1e-4),
        Work("resnet50-96", _resnet50, (3, 96, 96), NUM_CLASSES, "sparse:8:8", 5e-6),
        Work("keyboard_lm-32", _keyboard_lm, (32,), 10_000, "sparse:2:2", 0.02),
        Work("llama-64", _llama, (64,), 512, "sparse:2:2", 0.04),
        Work(
            "bert_base-128", _bert_base, (128,), _FEW_LABELS, "sparse:6:4", 1e-3, _BERT_TOKENS
        ),
        Work("tiny_encoder-8", _tiny_encoder, (8,), _FEW_LABELS, "sparse:2:1", 0.05, 64),
        Work("tiny_lm-8", _tiny_lm, (8,), 64, "sparse:2:1", 0.05),
    )
}
"""By name, which ends in the pixels of a side, or the tokens of a row."""
FOR_TESTS: Final = frozenset({"tiny_encoder-8", "tiny_lm-8"})
ON_REQUEST: Final = frozenset({"bert_base-128"})
"""Works of which a step takes seconds, and one of stock ExecuTorch minutes."""
