"""How well a language model predicts the next word of a writer."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

CONTEXT: Final = 32
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
    context: int = CONTEXT,
) -> NextWord:
    """Measures a model on a text; each prediction sees at least half a context before it.

    Args:
        predict: maps tokens, int64 [rows, context], to logits [rows, context, vocabulary].
        stream: the text, int64 [length].
        is_suggestable: which tokens may be suggested, bool [vocabulary].
        is_counted: which tokens count as words of the text, bool [vocabulary].
        first: the place of the first token that counts; those before it are context.
        context: tokens that the model sees at most.
    """
    parts = []
    for logits, labels in predictions(predict, stream, first, context, context // 2):
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


@torch.no_grad()
def predictions(
    predict: Callable[[Tensor], Tensor], stream: Tensor, first: int, context: int, stride: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields logits and labels of some tokens of a text after the others, each token once.

    A row is `context` tokens and gives its last `stride` predictions, so each of them sees
    `context - stride` tokens or more; the first row gives all it has.
    """
    for rows, places in _windows(stream, first, context, stride):
        inside = places >= 0
        yield predict(rows)[:, :-1][inside].float(), rows[:, 1:][inside]


def _windows(
    stream: Tensor, first: int, context: int, stride: int
) -> Iterable[tuple[Tensor, Tensor]]:
    """Yields rows of tokens and, for all but the first of a row, its place or -1."""
    if first >= len(stream):
        return
    begin = max(0, first - context + 1)
    starts = list(range(begin, max(begin + 1, len(stream) - context + stride), stride))
    padded = torch.cat([stream, stream.new_zeros(context)])
    for chunk in (starts[at : at + _ROWS] for at in range(0, len(starts), _ROWS)):
        rows = torch.stack([padded[start : start + context] for start in chunk])
        places = torch.tensor(chunk).unsqueeze(1) + torch.arange(1, context)
        seen = torch.arange(1, context) < context - stride
        again = seen & (torch.tensor(chunk).unsqueeze(1) > begin)
        outside = again | (places < first) | (places >= len(stream))
        yield rows, places.masked_fill(outside, -1)
