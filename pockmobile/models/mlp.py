"""A small fully connected classifier, for tests."""

from collections.abc import Sequence
from itertools import pairwise
from typing import final

from torch import Tensor, nn


@final
class MLP(nn.Module):
    """Linear layers with ReLU between them: `layers.0`, `layers.1`, ..., then `head`."""

    def __init__(
        self, num_inputs: int = 16, num_classes: int = 4, *, hidden: Sequence[int] = (32, 32)
    ) -> None:
        """Makes random weights.

        Args:
            num_inputs: features of an example.
            num_classes: logits of an example.
            hidden: outputs of each hidden layer.
        """
        super().__init__()
        widths = [num_inputs, *hidden]
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features, float32 [B, num_inputs], to logits [B, num_classes]."""
        x = features
        for layer in self.layers:
            x = layer(x).relu()
        logits: Tensor = self.head(x)
        return logits
