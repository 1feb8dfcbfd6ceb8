"""The rivals of personalisation and its figures, against counting by hand."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch

from pockmobile.keyboard import Vocabulary, tokenize
from pockmobile.models import keyboard_lm
from scripts.keyboard_typing import Keyboard, Typed

WORDS = {0: "the", 1: "they", 2: "then", 3: "tea", 4: "cat", 5: "car", 6: "dog"}


class TestTyping:
    def test_figures_are_those_counted_by_hand(self) -> None:
        rows = np.array(
            [
                [0.3, 0.25, 0.2, 0.1, 0.05, 0.05, 0.05],
                [0.3, 0.25, 0.2, 0.1, 0.05, 0.08, 0.02],
                [0.3, 0.25, 0.2, 0.1, 0.05, 0.08, 0.02],
                [0.3, 0.25, 0.2, 0.1, 0.05, 0.08, 0.02],
            ],
            np.float32,
        )
        typed = Typed(np.array([0, 4, 3, 6]), ("the", "cat", "tea", None))
        found = Keyboard(WORDS).figures(rows, typed, np.arange(7) != 6)
        # "the" is tapped at once, "cat" behind its c; "tea" is typed till "te": t shows three
        # others. Each word's own keys are its letters and a space.
        assert found.top1 == found.top3 == pytest.approx(1 / 3)
        assert found.saved == pytest.approx(1 - (1 + 2 + 3) / 12)
        assert found.perplexity == pytest.approx((0.3 * 0.05 * 0.1) ** (-1 / 3), rel=1e-5)

    def test_a_word_that_cannot_be_suggested_is_typed(self) -> None:
        typed = Typed(np.array([6]), ("dogma",))
        words = {number: word for number, word in WORDS.items() if number != 6}
        found = Keyboard(words).figures(
            np.eye(7, dtype=np.float32)[6:], typed, np.full(7, True)
        )
        assert (found.top1, found.top3, found.saved) == (0.0, 0.0, 0.0)

    @pytest.mark.parametrize("seed", range(5))
    def test_suggestions_are_those_of_sorting(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.rand(30, 7, generator=generator).softmax(1).numpy()
        labels = torch.randint(7, (30,), generator=generator).numpy()
        typed = Typed(labels, tuple(WORDS[label] for label in labels.tolist()))
        found = Keyboard(WORDS).figures(rows, typed, np.full(7, True))
        assert found.saved == pytest.approx(_saved(rows, typed))
        assert found.top3 == pytest.approx(_top3(rows, typed))


def _suggestions(row: np.ndarray, typed: str) -> list[str]:
    fitting = [(-row[number], word) for number, word in WORDS.items() if word.startswith(typed)]
    return [word for _, word in sorted(fitting)[:3]]


def _saved(rows: np.ndarray, typed: Typed) -> float:
    def pressed(row: np.ndarray, word: str) -> int:
        for length in range(len(word)):
            if word in _suggestions(row, word[:length]):
                return length + 1
        return len(word) + 1

    words = [word for word in typed.words if word]
    total = sum(pressed(row, word) for row, word in zip(rows, words, strict=True))
    return 1 - total / sum(len(word) + 1 for word in words)


def _top3(rows: np.ndarray, typed: Typed) -> float:
    found = [w in _suggestions(row, "") for row, w in zip(rows, typed.words, strict=True)]
    return sum(found) / len(found)


class TestShippedModel:
    def test_it_expects_what_people_write(self) -> None:
        losses = dict(_losses("how are you doing today? i am going to see a movie tonight"))
        assert sum(losses.values()) / len(losses) < 4.0
        assert losses["movie"] < 2.5
        shuffled = dict(_losses("movie a doing to are i how you? see am tonight going today"))
        assert sum(shuffled.values()) > 1.5 * sum(losses.values())

    def test_random_weights_know_nothing(self) -> None:
        torch.manual_seed(0)
        losses = dict(_losses("how are you doing today?", pretrained=False))
        assert sum(losses.values()) / len(losses) > 8.0


def _losses(text: str, *, pretrained: bool = True) -> Iterator[tuple[str, float]]:
    vocabulary = Vocabulary.load()
    tokens = ["<s>", *tokenize(text)]
    numbers = vocabulary.encode(tokens)
    with torch.no_grad():
        logits = keyboard_lm(pretrained=pretrained)(torch.tensor([numbers]))
    rows = logits[0].log_softmax(1)
    for place, (_, number) in enumerate(pairwise(numbers)):
        yield tokens[place + 1], -float(rows[place, number])
