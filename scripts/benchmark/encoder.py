"""A classifier of rows of tokens, of BERT's layout and by default of BERT-base's size."""

from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional

_INITIAL_STD: Final = 0.02


@final
class EncoderBlock(nn.Module):
    """Attention of every token to all, and a GELU network; a LayerNorm behind each shortcut."""

    def __init__(self, width: int, *, num_heads: int) -> None:
        """Makes random weights; the network between is `4 * width` wide."""
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.mlp_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, T, width] to the same shape."""
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(query, key, value)
        x = self.attention_norm(x + self.output(y.transpose(1, 2).flatten(2)))
        output: Tensor = self.mlp_norm(x + self.mlp(x))
        return output


@final
class Encoder(nn.Module):
    """`embedding`, `positions`, `norm`, `blocks.0`, `blocks.1`, ..., `pooler`, `head`."""

    def __init__(
        self,
        *,
        num_labels: int,
        num_tokens: int = 30_522,
        context: int = 128,
        width: int = 768,
        num_blocks: int = 12,
        num_heads: int = 12,
    ) -> None:
        """Makes random weights.

        Args:
            num_labels: logits of a row.
            num_tokens: size of the vocabulary.
            context: tokens of a row.
            width: of the residual stream.
            num_blocks: how many blocks.
            num_heads: of the attention; a divisor of the width.
        """
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        self.positions = nn.Parameter(torch.zeros(context, width))
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            EncoderBlock(width, num_heads=num_heads) for _ in range(num_blocks)
        )
        self.pooler = nn.Linear(width, width)
        self.head = nn.Linear(width, num_labels)
        nn.init.normal_(self.positions, std=_INITIAL_STD)
        self.apply(_initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens, int64 [B, context], to logits [B, num_labels]."""
        x = self.norm(self.embedding(tokens) + self.positions)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.pooler(x[:, 0]).tanh())
        return logits


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INITIAL_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
