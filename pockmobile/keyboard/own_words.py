"""The owner's own words: unknown ones that are typed often are given slots of the model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

from pockmobile.keyboard.characters import is_digit, is_letter, lower
from pockmobile.keyboard.settings import Settings
from pockmobile.keyboard.vocabulary import NUM_OWN


@final
@dataclass(frozen=True)
class OwnWord:
    """An unknown word: how it is shown, its uses, the number of the message of the last one.

    Without a slot it is a candidate, which is only counted.
    """

    word: str
    shown: str
    count: int
    last: int
    slot: int | None


@final
@dataclass(frozen=True)
class Words:
    """What is written of the owner's words; `num_given` slots have had an owner."""

    num_given: int
    words: tuple[OwnWord, ...] = ()


@final
class OwnWords:
    """Counts unknown words, and gives a slot to each that was typed often enough.

    Slots are given in order and each only once: what the model has learnt of a slot cannot be
    taken out of a state (a plan that leaves the slots' rows frozen has it in other weights),
    so a second owner would be suggested where the first was typed. A slot whose word is
    forgotten is retired; when all are given, unknown words are no longer counted. Only a
    return to the shipped model frees the slots.
    """

    def __init__(self, settings: Settings, words: Words | None = None) -> None:
        """Starts from what was stored."""
        found = words or Words(num_given=0)
        self._settings = settings
        self._num_given = found.num_given
        self._words = {entry.word: entry for entry in found.words}

    @property
    def slots(self) -> Mapping[str, int]:
        """The slot of each word that has one."""
        return {e.word: e.slot for e in self._words.values() if e.slot is not None}

    @property
    def shown(self) -> Mapping[int, str]:
        """How the word of each slot in use is shown."""
        return {e.slot: e.shown for e in self._words.values() if e.slot is not None}

    @property
    def num_given(self) -> int:
        """Slots that have, or had, an owner."""
        return self._num_given

    @property
    def num_candidates(self) -> int:
        """Words that are counted and have no slot."""
        return len(self._words) - len(self.slots)

    @property
    def words(self) -> Words:
        """All that is held, to be written."""
        return Words(self._num_given, tuple(self._words.values()))

    def retire(self, num_given: int) -> None:
        """Gives away none of the first slots any more: a state has learnt other owners."""
        self._num_given = max(self._num_given, num_given)

    def see(self, word: str, form: str | None, message: int) -> None:
        """Counts one use of an unknown word in a message, typed in this form if that is known.

        The form typed last is shown.
        """
        found = self._words.get(word)
        if found is None:
            if self._num_given >= NUM_OWN:
                return
            found = OwnWord(word, form or word, 0, message, None)
        self._words[word] = replace(
            found, shown=form or found.shown, count=found.count + 1, last=message
        )
        self._give(word)
        self._drop_candidates()

    def forget(self, word: str) -> int | None:
        """Forgets a word; returns the slot that it had."""
        found = self._words.pop(word, None)
        return None if found is None else found.slot

    def _give(self, word: str) -> None:
        found = self._words[word]
        is_due = found.slot is None and found.count >= self._settings.least_uses
        if is_due and self._num_given < NUM_OWN:
            self._words[word] = replace(found, slot=self._num_given)
            self._num_given += 1

    def _drop_candidates(self) -> None:
        """Lets those go that were used least, of these the one that was last used first."""
        most = self._settings.num_candidates if self._num_given < NUM_OWN else 0
        candidates = [entry for entry in self._words.values() if entry.slot is None]
        candidates.sort(key=lambda entry: (entry.count, entry.last))
        for entry in candidates[: max(0, len(candidates) - most)]:
            del self._words[entry.word]


def typed_form(text: str, word: str) -> str | None:
    """Returns a word of `tokenize(text)` as it stands in the text, with its capitals.

    None where it does not stand alone there (letters were dropped), or first in the text,
    where keyboards write a capital by themselves.
    """
    plain = lower(text).replace("\u2019", "'")
    place = plain.find(word, 1)
    while place > 0:
        stop = place + len(word)
        alone = not _is_inside_word(plain, place - 1) and not _is_inside_word(plain, stop)
        if alone and plain[:place].strip():
            return text[place:stop].replace("\u2019", "'")
        place = plain.find(word, place + 1)
    return None


def _is_inside_word(text: str, place: int) -> bool:
    char = text[place : place + 1]
    return bool(char) and (is_letter(char) or is_digit(char) or char == "'")
