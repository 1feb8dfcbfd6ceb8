"""What suggestions spare somebody who types: right words, and keystrokes."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

NUM_SHOWN: Final = 3


@dataclass(frozen=True)
class Typed:
    """A text from some place on: numbers of tokens, and how words are typed.

    `words` is None where a token is no word (a class, punctuation, a start).
    """

    labels: npt.NDArray[np.int64]
    words: tuple[str | None, ...]


@dataclass(frozen=True)
class Figures:
    """Shares of a writer's words and keystrokes, 0 to 1; perplexity of the known tokens."""

    top1: float
    top3: float
    saved: float
    perplexity: float


class Keyboard:
    """Shows the likeliest words that begin as typed; the rest of one costs a tap."""

    def __init__(self, suggestable: Mapping[int, str]) -> None:
        """Knows the words that can be suggested, in lower case, by their numbers."""
        pairs = sorted((word, number) for number, word in suggestable.items())
        self._words = [word for word, _ in pairs]
        self._numbers = np.array([number for _, number in pairs])
        self._known = set(suggestable)
        self._ranges: dict[str, tuple[int, int]] = {}

    def figures(
        self,
        probabilities: npt.NDArray[np.float32],
        typed: Typed,
        is_known: npt.NDArray[np.bool_],
    ) -> Figures:
        """Counts over a text.

        Args:
            probabilities: of each place's token, float32 [places, tokens].
            typed: the text.
            is_known: the tokens of the vocabulary, by which perplexity is taken, bool [tokens].
        """
        num_words = num_first = num_shown = num_keys = num_pressed = 0
        for row, label, word in zip(probabilities, typed.labels, typed.words, strict=True):
            if word is None:
                continue
            ranks = self._ranks(row[self._numbers], float(row[label]), int(label), word)
            num_words += 1
            num_first += ranks[0] == 0
            num_shown += ranks[0] < NUM_SHOWN
            num_keys += len(word) + 1
            num_pressed += next(
                (keys + 1 for keys, rank in enumerate(ranks) if rank < NUM_SHOWN), len(word) + 1
            )
        known = is_known[typed.labels]
        likely = probabilities[np.arange(len(known)), typed.labels][known]
        return Figures(
            top1=num_first / max(1, num_words),
            top3=num_shown / max(1, num_words),
            saved=1 - num_pressed / max(1, num_keys),
            perplexity=float(np.exp(-np.log(np.maximum(likely, 1e-30)).mean())),
        )

    def _ranks(
        self, scores: npt.NDArray[np.float32], score: float, label: int, word: str
    ) -> Sequence[int]:
        """Returns a word's rank (0 is the first) after 0, 1, 2... of its letters are typed."""
        if label not in self._known:
            return [NUM_SHOWN]
        ranks = []
        for length in range(len(word)):
            start, stop = self._range(word[:length])
            ranks.append(int((scores[start:stop] > score).sum()))
            if ranks[-1] < NUM_SHOWN:
                break
        return ranks

    def _range(self, prefix: str) -> tuple[int, int]:
        """Returns where the words with a prefix stand."""
        if prefix not in self._ranges:
            stop = (
                bisect_left(self._words, prefix + "\U0010ffff") if prefix else len(self._words)
            )
            self._ranges[prefix] = bisect_left(self._words, prefix), stop
        return self._ranges[prefix]
