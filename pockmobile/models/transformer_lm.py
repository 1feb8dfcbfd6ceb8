"""A causal language model of keyboard size: GPT-2's layout with tied embeddings."""

from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional

_INITIAL_STD: Final = 0.02


@final
class CausalAttention(nn.Module):
    """Multi-head attention in which each token sees itself and those before it."""

    def __init__(self, width: int, *, num_heads: int) -> None:
        """Makes random weights; each head is `width / num_heads` wide."""
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, T, width] to the same shape."""
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        output: Tensor = self.output(y.transpose(1, 2).flatten(2))
        return output


@final
class TransformerBlock(nn.Module):
    """Attention and a GELU network, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, *, num_heads: int) -> None:
        """Makes random weights; the network between is `4 * width` wide."""
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width, num_heads=num_heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, T, width] to the same shape."""
        x = x + self.attention(self.attention_norm(x))
        output: Tensor = x + self.mlp(self.mlp_norm(x))
        return output


@final
class TransformerLM(nn.Module):
    """`embedding`, `positions`, `blocks.0`, `blocks.1`, ..., `norm`, `head`.

    `head.weight` is `embedding.weight`: one parameter with two uses.
    """

    def __init__(
        self,
        *,
        num_tokens: int = 8192,
        context: int = 32,
        width: int = 256,
        num_blocks: int = 4,
        num_heads: int = 4,
        head_bias: bool = False,
    ) -> None:
        """Makes random weights.

        Args:
            num_tokens: size of the vocabulary.
            context: most tokens that a sequence can have.
            width: of the residual stream.
            num_blocks: how many blocks.
            num_heads: of the attention; a divisor of the width.
            head_bias: whether each token has a bias of its own, whatever came before.
        """
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        self.positions = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.ModuleList(
            TransformerBlock(width, num_heads=num_heads) for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_tokens, bias=head_bias)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.positions, std=_INITIAL_STD)
        self.apply(_initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens, int64 [B, T], to logits for the next one, [B, T, num_tokens].

        T is at most the context.
        """
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INITIAL_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
