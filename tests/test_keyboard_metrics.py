"""Next-word figures against counting one token at a time."""

import math

import pytest
import torch
from torch import Tensor

from scripts.keyboard_metrics import CONTEXT, NextWord, next_word, total

VOCABULARY = 40


def _random_model() -> Tensor:
    """Logits for the next token by the present one."""
    return torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))


def _one_by_one(table: Tensor, stream: Tensor, words: Tensor, first: int) -> NextWord:
    num_words = num_first = num_first_three = num_tokens = 0
    loss = 0.0
    for place in range(max(1, first), len(stream)):
        logits, label = table[stream[place - 1]].clone(), int(stream[place])
        num_tokens += 1
        loss -= float(logits.log_softmax(0)[label])
        logits[~words] = -math.inf
        best = logits.topk(3).indices.tolist()
        if words[label]:
            num_words += 1
            num_first += best[0] == label
            num_first_three += label in best
    return NextWord(num_words, num_first, num_first_three, num_tokens, loss)


@pytest.mark.parametrize("length", [2, 5, CONTEXT, CONTEXT + 1, 3 * CONTEXT + 7])
@pytest.mark.parametrize("first", [1, 40])
def test_every_token_counts_once(length: int, first: int) -> None:
    table = _random_model()
    stream = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(1))
    words = torch.arange(VOCABULARY) >= 10
    found = next_word(
        lambda rows: table[rows],
        stream,
        is_suggestable=words,
        is_counted=words,
        first=first,
    )
    expected = _one_by_one(table, stream, words, first)
    assert (found.num_words, found.num_first, found.num_first_three, found.num_tokens) == (
        expected.num_words,
        expected.num_first,
        expected.num_first_three,
        expected.num_tokens,
    )
    assert found.total_loss == pytest.approx(expected.total_loss, rel=1e-5)


def test_a_prediction_sees_at_least_half_a_context_before_it() -> None:
    stream = torch.arange(1, 200) % VOCABULARY
    seen = []

    def predict(rows: Tensor) -> Tensor:
        seen.append(rows)
        return torch.zeros(*rows.shape, VOCABULARY)

    everything = torch.ones(VOCABULARY, dtype=torch.bool)
    found = next_word(
        predict, stream, is_suggestable=everything, is_counted=everything, first=100
    )
    assert found.num_tokens == len(stream) - 100
    rows = torch.cat(seen)
    assert rows[0, 0] == stream[100 - CONTEXT + 1]


def test_parts_add_up() -> None:
    part = NextWord(4, 1, 2, 8, 16.0)
    both = total([part, part])
    assert (both.top1, both.top3, both.loss) == (0.25, 0.5, 2.0)
    assert both.perplexity == pytest.approx(math.exp(2.0))
