"""The text of the keyboard's language model: who trains it, and who only measures it."""

import random
from collections import defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple

from scripts.realdata import NUS_SMS_EXCLUDED, SELF_DIALOGUE_EXCLUDED, Message, Turn

_LEAST_TURNS: Final = 300
_MOST_COPIES: Final = 0.1
_NUM_TEST, _NUM_VALIDATION = 20, 12
_PLACEHOLDERS: Final = {
    "<#>": "5",
    "<DECIMAL>": "1.5",
    "<EMAIL>": "a@b.com",
    "<TIME>": "10:30",
    "<URL>": "http://a.com",
}


class Writers(NamedTuple):
    """Writers of the Self-dialogue corpus: for training, for choosing, for measuring."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_writers(turns: Iterable[Turn]) -> Writers:
    """Draws 20 writers for the test and 12 for validation among those who wrote much.

    Who repeats more than a tenth of the longer turns is not drawn.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    for turn in turns:
        if turn.writer not in SELF_DIALOGUE_EXCLUDED:
            texts[turn.writer].append(turn.text)
    able = [
        writer
        for writer, own in sorted(texts.items())
        if len(own) >= _LEAST_TURNS and _share_of_copies(own) <= _MOST_COPIES
    ]
    drawn = random.Random(0).sample(able, _NUM_TEST + _NUM_VALIDATION)
    test, validation = sorted(drawn[:_NUM_TEST]), sorted(drawn[_NUM_TEST:])
    return Writers(tuple(sorted(texts.keys() - set(drawn))), tuple(validation), tuple(test))


def sms_writers(messages: Iterable[Message], *, least: int = 300) -> dict[str, list[str]]:
    """Returns the messages of each writer with at least so many, without repeated ones.

    A message stands as its writer typed it: the corpus's placeholders are filled in.
    """
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    for message in messages:
        if message.writer not in NUS_SMS_EXCLUDED:
            texts[message.writer][plain_message(message.text)] = None
    return {writer: list(own) for writer, own in sorted(texts.items()) if len(own) >= least}


def plain_message(text: str) -> str:
    """Puts something of its kind where the SMS corpus has a placeholder."""
    for placeholder, value in _PLACEHOLDERS.items():
        text = text.replace(placeholder, value)
    return text


def _share_of_copies(texts: list[str]) -> float:
    long = [text for text in texts if len(text.split()) > 4]
    return 1 - len(set(long)) / max(1, len(long))
