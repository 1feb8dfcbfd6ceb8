"""A writer's own n-grams: the cheap rival of a model that learns, and a companion for it."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

ORDER: Final = 3
SHARES: Final = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""What the n-grams may have of a mixture."""

Probabilities = npt.NDArray[np.float32]


class NgramCache:
    """Word triples, pairs and single words of a text, interpolated (Witten and Bell 1991).

    A history of two words that was seen n times, with t different words behind it, leaves
    t / (n + t) to the history of one word, and so on down to the shares of single words.
    """

    def __init__(self, text: Sequence[int], num_tokens: int) -> None:
        """Counts a text of token numbers below `num_tokens`."""
        self._after: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for place, token in enumerate(text):
            for length in range(1, min(ORDER, place + 1)):
                self._after[tuple(text[place - length : place])][token] += 1
        counts = np.bincount(np.asarray(text, np.int64), minlength=num_tokens)
        self._words = (counts / max(1, len(text))).astype(np.float32)

    def probabilities(self, text: Sequence[int], places: Sequence[int]) -> Probabilities:
        """Returns the distribution of the token at each place, given those before it.

        Args:
            text: token numbers.
            places: indices in the text.

        Returns:
            float32 [places, tokens]; each row sums to 1, or to 0 if nothing was counted.
        """
        rows = np.tile(self._words, (len(places), 1))
        for row, place in zip(rows, places, strict=True):
            for length in range(1, min(ORDER, place + 1)):
                seen = self._after.get(tuple(text[place - length : place]))
                if seen is None:
                    break
                numbers = np.fromiter(seen.keys(), np.int64)
                counts = np.fromiter(seen.values(), np.float32)
                row *= len(seen) / (counts.sum() + len(seen))
                row[numbers] += counts / (counts.sum() + len(seen))
        return rows


def mixed(model: Probabilities, cache: Probabilities, share: float) -> Probabilities:
    """Returns the mixture in which the n-grams have `share`."""
    found: Probabilities = (1 - share) * model + share * cache
    return found


def best_share(
    model: Probabilities, cache: Probabilities, labels: npt.NDArray[np.int64]
) -> float:
    """Returns the share under which a text is likeliest; 0 if there is no text."""
    rows = np.arange(len(labels))
    own, theirs = model[rows, labels], cache[rows, labels]

    def log_likelihood(share: float) -> float:
        return float(np.log(np.maximum((1 - share) * own + share * theirs, 1e-30)).sum())

    return max(SHARES, key=log_likelihood)
