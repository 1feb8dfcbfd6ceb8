"""Splits what is typed into the tokens of the keyboard's language model.

The rules are those of docs/keyboard_tokenizer.md; apps in other languages follow them token
for token, and `tests/fixtures/keyboard/tokens.json` tells whether they do.
"""

from typing import Final

from pockmobile.keyboard.characters import (
    is_digit,
    is_emoji,
    is_joiner,
    is_keycap,
    is_letter,
    lower,
    split,
)

START: Final = "<s>"
UNKNOWN: Final = "<unk>"
NUMBER: Final = "<num>"
URL: Final = "<url>"
MAIL: Final = "<mail>"
NAME: Final = "<name>"
EMOJI: Final = "<emoji>"
PUNCTUATION: Final = (".", ",", "?", "!", "...")

_MOST_LETTERS: Final = 24
_MOST_REPEATS: Final = 2
_MOST_DIGITS: Final = 2
_APOSTROPHES: Final = "'\u2019"
_MARKS: Final = ".,?!\u2026"
_AROUND: Final = "()[]{}<>\"'.,?!;:\u2018\u2019\u201c\u201d\u2026"
_INSIDE_NUMBER: Final = ".,:/-"
_UNITS: Final = frozenset(
    ("st", "nd", "rd", "th", "am", "pm", "a", "p", "h", "hr", "hrs", "min", "mins", "s", "m")
) | frozenset(("k", "x", "mm", "cm", "km", "g", "kg", "mb", "gb"))
_DOMAINS: Final = frozenset(("com", "net", "org", "edu", "gov", "io", "co", "uk", "sg"))
_EMOTICONS: Final = (
    ":'-(", ":'(", ":-)", ":-(", ":-D", ":-P", ":-p", ":-/", ";-)", "^_^", "-_-", ">_<", "T_T",
    "</3", ":)", ":(", ":]", ":D", ":P", ":p", ":o", ":O", ":*", ":/", ";)", ";D", ";P", ";p",
    "=)", "=(", "=D", "=P", "=p", "<3", "^^", "XD", "xD",
)  # fmt: skip
"""None begins with another."""
_EMOTICON_STARTS: Final = frozenset(emoticon[0] for emoticon in _EMOTICONS)


def tokenize(text: str) -> list[str]:
    """Returns words in lower case, punctuation, and classes such as `<num>`, in order.

    What stands for a class (a number, an address, an emoji) is not in the result. A class is
    never mistaken for a word: no word has a `<`.
    """
    tokens: list[str] = []
    for chunk in split(text):
        core = chunk.strip(_AROUND)
        kind = _address(core)
        if kind is None:
            _scan(chunk, tokens)
        else:
            before, _, after = chunk.partition(core)
            _scan(before, tokens)
            tokens.append(kind)
            _scan(after, tokens)
    return tokens


def _address(text: str) -> str | None:
    if text[:1] == "@" and len(text) > 1 and is_letter(text[1]):
        return NAME
    user, at, domain = lower(text).partition("@")
    if at and user and "@" not in domain and "." in domain.strip("."):
        return MAIL
    return URL if _is_url(lower(text)) else None


def _is_url(text: str) -> bool:
    if text.startswith(("http://", "https://", "www.")):
        return True
    labels = text.partition("/")[0].split(".")
    return (
        len(labels) > 1
        and labels[-1] in _DOMAINS
        and all(_is_label(label) for label in labels)
        and any(not is_digit(char) for char in labels[-2])
    )


def _is_label(text: str) -> bool:
    return bool(text) and all("a" <= c <= "z" or is_digit(c) or c == "-" for c in text)


def _scan(text: str, tokens: list[str]) -> None:
    """Appends the tokens of a text without spaces and addresses."""
    place = 0
    while place < len(text):
        char = text[place]
        if is_emoji(char) or is_keycap(text, place):
            place = _emoji(text, place, tokens)
        elif emoticon := _emoticon(text, place):
            tokens.append(EMOJI)
            place += len(emoticon)
        elif is_digit(char):
            place = _number(text, place, tokens)
        elif is_letter(char):
            place = _word(text, place, tokens)
        elif char in _MARKS:
            place = _marks(text, place, tokens)
        else:
            place += 1


def _emoji(text: str, place: int, tokens: list[str]) -> int:
    """Takes all pictures that follow each other as one."""
    while place < len(text) and (
        is_emoji(text[place]) or is_joiner(text[place]) or is_keycap(text, place)
    ):
        place += 1
    tokens.append(EMOJI)
    return place


def _emoticon(text: str, place: int) -> str | None:
    """Returns the emoticon that starts here, unless it is part of a word."""
    if text[place] not in _EMOTICON_STARTS:
        return None
    if place > 0 and is_letter(text[place]) and _is_wordlike(text[place - 1]):
        return None
    for emoticon in _EMOTICONS:
        if text.startswith(emoticon, place):
            stop = place + len(emoticon)
            is_cut = (
                _is_wordlike(emoticon[-1]) and stop < len(text) and _is_wordlike(text[stop])
            )
            return None if is_cut else emoticon
    return None


def _is_wordlike(char: str) -> bool:
    return is_letter(char) or is_digit(char)


def _number(text: str, start: int, tokens: list[str]) -> int:
    """Takes a number with its unit; one or two digits before other letters begin a word."""
    place = start
    while place < len(text) and (is_digit(text[place]) or _joins_digits(text, place)):
        place += 1
    unit = place + 1 if place < len(text) and _joins_letters(text, place) else place
    stop = unit
    while stop < len(text) and _is_wordlike(text[stop]):
        stop += 1
    if stop > unit and _shortened(lower(text[unit:stop])) in _UNITS:
        tokens.append(NUMBER)
        return stop
    is_word = unit == place < stop and place - start <= _MOST_DIGITS
    if is_word and all(map(is_digit, text[start:place])):
        return _word(text, start, tokens)
    tokens.append(NUMBER)
    return place


def _joins_digits(text: str, place: int) -> bool:
    return text[place] in _INSIDE_NUMBER and is_digit(text[place + 1 : place + 2] or " ")


def _word(text: str, start: int, tokens: list[str]) -> int:
    """Takes letters, digits, and apostrophes before letters; many digits hide something."""
    place = start
    while place < len(text) and (_is_wordlike(text[place]) or _joins_letters(text, place)):
        place += 1
    word = lower(text[start:place].replace("\u2019", "'"))
    if sum(map(is_digit, word)) > _MOST_DIGITS:
        tokens.append(NUMBER)
        return place
    word = _shortened(word)
    tokens.append(word if len(word) <= _MOST_LETTERS else UNKNOWN)
    return place


def _joins_letters(text: str, place: int) -> bool:
    return text[place] in _APOSTROPHES and is_letter(text[place + 1 : place + 2] or " ")


def _shortened(word: str) -> str:
    """Cuts a letter that is repeated more than twice down to two."""
    kept = ""
    for char in word:
        if kept[-_MOST_REPEATS:] != char * _MOST_REPEATS:
            kept += char
    return kept


def _marks(text: str, start: int, tokens: list[str]) -> int:
    """Takes a run of punctuation as the one mark that says most."""
    place = start
    while place < len(text) and text[place] in _MARKS:
        place += 1
    run = text[start:place]
    if "?" in run:
        tokens.append("?")
    elif "!" in run:
        tokens.append("!")
    elif "\u2026" in run or run.count(".") > 1:
        tokens.append("...")
    else:
        tokens.append("." if "." in run else ",")
    return place
