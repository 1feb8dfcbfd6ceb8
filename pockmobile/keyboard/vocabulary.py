"""The closed vocabulary of the keyboard's language model."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Final, final

from pockmobile.errors import ArtifactError
from pockmobile.keyboard.characters import lower
from pockmobile.keyboard.tokenizer import (
    EMOJI,
    MAIL,
    NAME,
    NUMBER,
    PUNCTUATION,
    START,
    UNKNOWN,
    URL,
)

CLASSES: Final = (START, UNKNOWN, NUMBER, URL, MAIL, NAME, EMOJI, *PUNCTUATION)
FIRST_OWN: Final = 16
NUM_OWN: Final = 256


@final
@dataclass(frozen=True)
class Vocabulary:
    """Tokens by number: classes and punctuation, slots for the owner's own words, words.

    An entry is what is shown (`London`); it is found by its lower case. An unknown word that
    the owner types often is given one of the slots, `<own:0>` to `<own:255>`, on the device.
    """

    entries: tuple[str, ...]

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> "Vocabulary":
        """Reads a vocabulary, one entry a line; by default the one of the shipped model.

        Raises:
            ArtifactError: the file cannot be read or is no vocabulary.
        """
        source = files("pockmobile.keyboard") / "vocabulary.txt" if path is None else Path(path)
        try:
            text = source.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"the vocabulary {source} cannot be read: {error}") from error
        vocabulary = cls(tuple(text.removesuffix("\n").split("\n")))
        vocabulary._check(str(source))
        return vocabulary

    def _check(self, source: str) -> None:
        if self.entries[: len(CLASSES)] != CLASSES:
            raise ArtifactError(
                f"{source} is no vocabulary: it must begin with {' '.join(CLASSES)}, "
                f"found {' '.join(self.entries[: len(CLASSES)])[:80]}"
            )
        slots = tuple(f"<own:{number}>" for number in range(NUM_OWN))
        if self.entries[FIRST_OWN : FIRST_OWN + NUM_OWN] != slots:
            raise ArtifactError(
                f"{source} is no vocabulary: from line {FIRST_OWN + 1} on it must hold the "
                f"slots <own:0> to <own:{NUM_OWN - 1}>"
            )
        if len(self._numbers) != len(self.entries):
            last = self._numbers
            twice = [e for n, e in enumerate(self.entries) if last[lower(e)] != n]
            shown = self.entries[last[lower(twice[0])]]
            raise ArtifactError(
                f"{source} holds {shown} twice (capital letters do not tell entries apart); "
                "remove one of the two"
            )

    @property
    def num_tokens(self) -> int:
        """Number of entries."""
        return len(self.entries)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file's bytes, by which a program knows its vocabulary."""
        return hashlib.sha256(("\n".join(self.entries) + "\n").encode()).hexdigest()

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {lower(entry): number for number, entry in enumerate(self.entries)}

    def id(self, token: str) -> int:
        """Returns the number of a token as `tokenize` yields it, or that of `<unk>`."""
        return self._numbers.get(token, self._numbers[UNKNOWN])

    def encode(self, tokens: Iterable[str], own: Mapping[str, int] | None = None) -> list[int]:
        """Returns the numbers of tokens; `own` are the owner's words with their slots."""
        slots = own or {}
        return [
            FIRST_OWN + slots[token] if token in slots else self.id(token) for token in tokens
        ]

    def shown(self, number: int) -> str:
        """Returns what is shown for a token."""
        return self.entries[number]

    def is_word(self, number: int) -> bool:
        """Whether a token can be suggested: no class, no punctuation, no slot."""
        return FIRST_OWN + NUM_OWN <= number < self.num_tokens
