"""The owner's own n-grams: what they wrote twice is likely to come again."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final, TypeAlias, final

import numpy as np
import numpy.typing as npt

ORDER: Final = 3
SHARES: Final = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""What the n-grams may have of a mixture."""

Probabilities: TypeAlias = npt.NDArray[np.float32]
_LEAST_LIKELY: Final = 1e-30


@final
class Ngrams:
    """Word triples, pairs and single words of a text, interpolated (Witten and Bell 1991).

    A history of two words that was seen n times, with t different words behind it, leaves
    t / (n + t) to the history of one word, and so on down to the shares of single words.
    """

    def __init__(self, text: Sequence[int], num_tokens: int) -> None:
        """Counts a text of token numbers below `num_tokens`."""
        self._after: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for place, token in enumerate(text):
            for history in _histories(text[max(0, place - ORDER) : place]):
                self._after[history][token] += 1
        counts = np.bincount(np.asarray(text, np.int64), minlength=num_tokens)
        self._words = (counts / max(1, len(text))).astype(np.float32)

    def after(self, context: Sequence[int]) -> Probabilities:
        """Returns the distribution of the token behind a context, float32 [tokens].

        It sums to 1, or to 0 if nothing was counted.
        """
        found = self._words.copy()
        for history in _histories(context):
            seen = self._after.get(history)
            if seen is None:
                break
            numbers = np.fromiter(seen.keys(), np.int64)
            counts = np.fromiter(seen.values(), np.float32)
            whole = counts.sum() + len(seen)
            found *= len(seen) / whole
            found[numbers] += counts / whole
        return found


def mixed(model: Probabilities, ngrams: Probabilities, share: float) -> Probabilities:
    """Returns the mixture in which the n-grams have `share`."""
    found: Probabilities = (1 - share) * model + share * ngrams
    return found


def best_share(model: Sequence[float], ngrams: Sequence[float], least_gain: float) -> float:
    """Returns the share under which a text is likeliest; the least one if several are.

    Args:
        model: what the model gave each token of the text, 0 to 1.
        ngrams: what the n-grams gave it.
        least_gain: by how much the mean loss of a token must fall for a share at all, in nats.
    """
    own, theirs = np.asarray(model, np.float64), np.asarray(ngrams, np.float64)

    def log_likelihood(share: float) -> float:
        likely = np.maximum((1 - share) * own + share * theirs, _LEAST_LIKELY)
        return float(np.log(likely).mean()) if len(likely) else 0.0

    best = max(SHARES, key=log_likelihood)
    return best if log_likelihood(best) - log_likelihood(0.0) >= least_gain else 0.0


def _histories(context: Sequence[int]) -> list[tuple[int, ...]]:
    """Returns the last word of a context, its last two, and so on, shortest first."""
    longest = min(ORDER - 1, len(context))
    return [tuple(context[len(context) - length :]) for length in range(1, longest + 1)]
