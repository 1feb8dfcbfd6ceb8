"""Llama (Touvron et al. 2023): RMSNorm, rotary positions, SwiGLU, grouped-query attention."""

from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional

_INITIAL_STD: Final = 0.02
_NORM_EPSILON: Final = 1e-5
_ROTARY_BASE: Final = 10000.0


@final
class GroupedQueryAttention(nn.Module):
    """Causal attention whose keys and values are each shared by several query heads."""

    def __init__(self, width: int, *, num_heads: int, num_key_heads: int) -> None:
        """Makes random weights; `num_key_heads` divides `num_heads`, and that `width`."""
        super().__init__()
        self.head_width = width // num_heads
        self.is_grouped = num_key_heads != num_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, num_key_heads * self.head_width, bias=False)
        self.value = nn.Linear(width, num_key_heads * self.head_width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Maps [B, T, width] to the same shape; the tables are [T, head width / 2]."""
        query, key, value = (
            layer(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(
            rotate(query, cosine, sine),
            rotate(key, cosine, sine),
            value,
            is_causal=True,
            enable_gqa=self.is_grouped,
        )
        output: Tensor = self.output(y.transpose(1, 2).flatten(2))
        return output


@final
class SwiGLU(nn.Module):
    """The gated feed-forward network: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, width: int, *, hidden: int) -> None:
        """Makes random weights; `hidden` is the width between."""
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, T, width] to the same shape."""
        output: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return output


@final
class LlamaBlock(nn.Module):
    """Attention and SwiGLU, each behind an RMSNorm and beside a shortcut."""

    def __init__(self, width: int, *, hidden: int, num_heads: int, num_key_heads: int) -> None:
        """Makes random weights; see `Llama` for the arguments."""
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=_NORM_EPSILON)
        self.attention = GroupedQueryAttention(
            width, num_heads=num_heads, num_key_heads=num_key_heads
        )
        self.mlp_norm = nn.RMSNorm(width, eps=_NORM_EPSILON)
        self.mlp = SwiGLU(width, hidden=hidden)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Maps [B, T, width] to the same shape; the tables are [T, head width / 2]."""
        x = x + self.attention(self.attention_norm(x), cosine, sine)
        output: Tensor = x + self.mlp(self.mlp_norm(x))
        return output


@final
class Llama(nn.Module):
    """`embedding`, `blocks.0`, `blocks.1`, ..., `norm`, `head` (tied to `embedding` or not)."""

    cosine: Tensor
    sine: Tensor

    def __init__(
        self,
        *,
        num_tokens: int = 512,
        context: int = 512,
        width: int = 64,
        hidden: int = 172,
        num_blocks: int = 5,
        num_heads: int = 8,
        num_key_heads: int = 4,
        is_tied: bool = True,
        rotary_base: float = _ROTARY_BASE,
    ) -> None:
        """Makes random weights; by default those of stories260K's shapes.

        Args:
            num_tokens: size of the vocabulary.
            context: most tokens that a sequence can have.
            width: of the residual stream.
            hidden: width inside the feed-forward networks.
            num_blocks: how many blocks.
            num_heads: of the queries; a divisor of the width, with an even quotient.
            num_key_heads: of the keys and values; a divisor of `num_heads`.
            is_tied: whether the head's weight is the embedding's.
            rotary_base: of the angles by which queries and keys are turned.
        """
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        self.blocks = nn.ModuleList(
            LlamaBlock(width, hidden=hidden, num_heads=num_heads, num_key_heads=num_key_heads)
            for _ in range(num_blocks)
        )
        self.norm = nn.RMSNorm(width, eps=_NORM_EPSILON)
        self.head = nn.Linear(width, num_tokens, bias=False)
        if is_tied:
            self.head.weight = self.embedding.weight
        self.apply(_initialise)
        angles = _rotary_angles(context, width // num_heads, rotary_base)
        # Computed, not learnt: they are no part of the state dict.
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens, int64 [B, T], to logits for the next one, [B, T, num_tokens].

        T is at most the context.
        """
        cosine, sine = self.cosine[: tokens.shape[1]], self.sine[: tokens.shape[1]]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cosine, sine)
        logits: Tensor = self.head(self.norm(x))
        return logits


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns the pair (i, i + width / 2) of each head by the angle of its position.

    Halves, not neighbours as in Llama's own code: slices, no interleaving. Weights of the
    other convention need their query and key rows reordered: see `interleaved_to_halves`.

    Args:
        x: queries or keys, [B, heads, T, width].
        cosine: of the angles, [T, width / 2].
        sine: of the angles, [T, width / 2].

    Returns:
        A tensor of the shape of x.
    """
    left, right = x.chunk(2, -1)
    return torch.cat((left * cosine - right * sine, right * cosine + left * sine), -1)


def interleaved_to_halves(weight: Tensor, *, head_width: int) -> Tensor:
    """Reorders the rows of a query or key weight, [heads * head_width, inputs].

    From pairs of neighbours (2i, 2i + 1), as in Llama's own checkpoints and in llama2.c, to
    pairs of halves (i, i + head_width / 2). The attention's result is the same.
    """
    pairs = weight.reshape(-1, head_width // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _rotary_angles(context: int, head_width: int, base: float) -> Tensor:
    exponents = torch.arange(0, head_width, 2, dtype=torch.float64) / head_width
    positions = torch.arange(context, dtype=torch.float64)
    return torch.outer(positions, base**-exponents).float()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INITIAL_STD)
