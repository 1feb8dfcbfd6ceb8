"""How well a language model predicts the next word of a writer."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

CONTEXT: Final = 32
_STRIDE: Final = CONTEXT // 2
_ROWS: Final = 64


@dataclass(frozen=True)
class NextWord:
    """What was counted over a text.

    Accuracies are over the words of the text, unknown words included (never right), and over
    suggestions that are words; `loss` is the mean over all tokens, in nats.
    """

    num_words: int
    num_first: int
    num_first_three: int
    num_tokens: int
    total_loss: float

    @property
    def top1(self) -> float:
        """Share of words that were the first suggestion, 0 to 1."""
        return self.num_first / max(1, self.num_words)

    @property
    def top3(self) -> float:
        """Share of words that were among three suggestions, 0 to 1."""
        return self.num_first_three / max(1, self.num_words)

    @property
    def loss(self) -> float:
        """Mean cross entropy of a token, in nats."""
        return self.total_loss / max(1, self.num_tokens)

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(self.loss)


def total(parts: Iterable[NextWord]) -> NextWord:
    """Adds up what was counted over several texts."""
    found = list(parts)
    return NextWord(
        sum(part.num_words for part in found),
        sum(part.num_first for part in found),
        sum(part.num_first_three for part in found),
        sum(part.num_tokens for part in found),
        sum(part.total_loss for part in found),
    )


@torch.no_grad()
def next_word(
    predict: Callable[[Tensor], Tensor],
    stream: Tensor,
    *,
    is_suggestable: Tensor,
    is_counted: Tensor,
    first: int = 1,
) -> NextWord:
    """Measures a model on a text; each prediction sees 16 to 31 tokens before it.

    Args:
        predict: maps tokens, int64 [rows, 32], to logits [rows, 32, vocabulary].
        stream: the text, int64 [length].
        is_suggestable: which tokens may be suggested, bool [vocabulary].
        is_counted: which tokens count as words of the text, bool [vocabulary].
        first: the place of the first token that counts; those before it are context.
    """
    parts = []
    for rows, places in _windows(stream, first):
        inside = places >= 0
        logits = predict(rows)[:, :-1][inside].float()
        labels = rows[:, 1:][inside]
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        logits[:, ~is_suggestable] = -math.inf
        words = is_counted[labels]
        best = logits[words].topk(3).indices == labels[words].unsqueeze(1)
        parts.append(
            NextWord(
                int(words.sum()),
                int(best[:, 0].sum()),
                int(best.any(1).sum()),
                len(labels),
                float(losses),
            )
        )
    return total(parts)


def _windows(stream: Tensor, first: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Yields rows of tokens and, for all but the first of a row, its place or -1."""
    if first >= len(stream):
        return
    begin = max(0, first - CONTEXT + 1)
    starts = list(range(begin, max(begin + 1, len(stream) - CONTEXT + _STRIDE), _STRIDE))
    padded = torch.cat([stream, stream.new_zeros(CONTEXT)])
    for chunk in (starts[at : at + _ROWS] for at in range(0, len(starts), _ROWS)):
        rows = torch.stack([padded[start : start + CONTEXT] for start in chunk])
        places = torch.tensor(chunk).unsqueeze(1) + torch.arange(1, CONTEXT)
        seen = torch.arange(1, CONTEXT) < CONTEXT - _STRIDE
        again = seen & (torch.tensor(chunk).unsqueeze(1) > begin)
        outside = again | (places < first) | (places >= len(stream))
        yield rows, places.masked_fill(outside, -1)
