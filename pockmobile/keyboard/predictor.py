"""What comes next: the model's guess, mixed with the owner's own n-grams."""

from collections.abc import Mapping, Sequence
from typing import Final, final

import numpy as np
import torch

from pockmobile.keyboard.ngrams import Ngrams, Probabilities, best_share, mixed
from pockmobile.keyboard.settings import Array, Shape, cut
from pockmobile.keyboard.tokenizer import UNKNOWN
from pockmobile.keyboard.vocabulary import FIRST_OWN, NUM_OWN, Vocabulary
from pockmobile.session import Session


@final
class Predictor:
    """Predicts the token behind a text of tokens, with the session's present state.

    Attributes:
        share: what the n-grams have of the mixture, 0 to 1.
        num_taught: slots that had an owner when the present state was learnt. The model reads
            the others as unknown words, and does not predict them; the n-grams do.
    """

    def __init__(self, session: Session, shape: Shape, vocabulary: Vocabulary) -> None:
        """Predicts with a program of that shape and vocabulary."""
        self.share = 0.0
        self.num_taught = 0
        self._session: Final = session
        self._shape: Final = shape
        self._vocabulary: Final = vocabulary
        numbers = range(vocabulary.num_tokens)
        self._is_word = np.array([vocabulary.is_word(number) for number in numbers])

    def model(self, rows: Array) -> Probabilities:
        """Returns what the model predicts behind each place.

        Args:
            rows: tokens, int64 [rows, length].

        Returns:
            float32 [rows, length, tokens].
        """
        untaught = range(FIRST_OWN + self.num_taught, FIRST_OWN + NUM_OWN)
        known = np.where(np.isin(rows, untaught), self._vocabulary.id(UNKNOWN), rows)
        output = self._session.predict(known)
        assert isinstance(output, torch.Tensor)
        # In place: a vocabulary's numbers for each place are much, and come once a row.
        found: Probabilities = torch.softmax(output, -1, out=output).numpy()
        found[..., untaught.start : untaught.stop] = 0.0
        return found

    def after(self, context: Sequence[int], ngrams: Ngrams) -> Probabilities:
        """Returns the distribution of the token behind a context, float32 [tokens].

        The model reads as many of the last tokens as it can.
        """
        seen = context[-(self._shape.length - 1) :]
        row = np.full((1, self._shape.length), self._shape.start, np.int64)
        row[0, : len(seen)] = seen
        return mixed(self.model(row)[0, len(seen) - 1], ngrams.after(context), self.share)

    def best(
        self, context: Sequence[int], ngrams: Ngrams, count: int, shown: Mapping[int, str]
    ) -> list[str]:
        """Returns the likeliest words behind a context, best first.

        Args:
            context: tokens, at least one.
            ngrams: of the owner's text.
            count: how many words at most.
            shown: how the owner's own words are shown, by their slots.
        """
        own = {FIRST_OWN + slot: word for slot, word in shown.items()}
        likely = self.after(context, ngrams)
        can_be = self._is_word.copy()
        can_be[list(own)] = True
        numbers = np.flatnonzero(can_be & (likely > 0))
        numbers = numbers[np.argsort(-likely[numbers], kind="stable")][:count]
        return [own.get(int(n)) or self._vocabulary.shown(int(n)) for n in numbers]

    def fit(self, text: Sequence[int], ngrams: Ngrams, least_gain: float) -> None:
        """Takes the share under which a text is likeliest.

        Args:
            text: tokens that neither the model nor the n-grams have learnt. Its rows are read
                one by one: what the model says of all would take much memory.
            ngrams: of the owner's other text.
            least_gain: as of `best_share`.
        """
        rows = cut(text, self._shape)
        model, theirs = [], []
        for first, row in enumerate(rows.inputs):
            likely = self.model(row[None])[0]
            begin = first * (self._shape.length - 1)
            for place in range(1, min(len(row), len(text) - begin)):
                token = text[begin + place]
                model.append(float(likely[place - 1, token]))
                theirs.append(float(ngrams.after(text[: begin + place])[token]))
        self.share = best_share(model, theirs, least_gain)
