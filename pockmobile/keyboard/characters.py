"""The code points that the tokeniser tells apart, as tables that any language can copy.

Unicode's own properties differ between the versions that Python, Kotlin and Swift carry, so
none is used: what stands here is all there is.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

SPACES: Final = (
    (0x09, 0x0D),
    (0x20, 0x20),
    (0x85, 0x85),
    (0xA0, 0xA0),
    (0x1680, 0x1680),
    (0x2000, 0x200A),
    (0x2028, 0x2029),
    (0x202F, 0x202F),
    (0x205F, 0x205F),
    (0x3000, 0x3000),
)
EMOJI: Final = (
    (0x2300, 0x23FF),
    (0x2600, 0x27BF),
    (0x2B00, 0x2BFF),
    (0x1F000, 0x1FBFF),
)
JOINERS: Final = ((0x200D, 0x200D), (0x20E3, 0x20E3), (0xFE00, 0xFE0F), (0xE0020, 0xE007F))
"""What belongs to the emoji before it."""
SYMBOLS: Final = (
    (0x00, 0xBF),
    (0xD7, 0xD7),
    (0xF7, 0xF7),
    (0x2000, 0x2BFF),
    (0x2E00, 0x2E7F),
    (0x3000, 0x303F),
    (0xD800, 0xF8FF),
    (0xFE00, 0xFE6F),
    (0xFEFF, 0xFEFF),
    (0xFF00, 0xFF20),
    (0xFF3B, 0xFF40),
    (0xFF5B, 0xFF65),
    (0xFFE0, 0xFFFF),
    (0x1F000, 0x1FBFF),
    (0xE0000, 0x10FFFF),
)
"""What is no letter, beside the letters of ASCII; any code point outside is one."""

_KEYCAP: Final = 0x20E3
_CAPITALS: Final = (*range(0x41, 0x5B), *range(0xC0, 0xD7), *range(0xD8, 0xDF))
_LOWER: Final = {code: code + 32 for code in _CAPITALS}


def _is_in(code: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    place = bisect_right(ranges, (code, 0x10FFFF)) - 1
    return place >= 0 and code <= ranges[place][1]


def is_space(char: str) -> bool:
    """Whether a code point separates words."""
    return _is_in(ord(char), SPACES)


def is_emoji(char: str) -> bool:
    """Whether a code point is a picture."""
    return _is_in(ord(char), EMOJI)


def is_joiner(char: str) -> bool:
    """Whether a code point only changes or joins the emoji beside it."""
    return _is_in(ord(char), JOINERS)


def is_digit(char: str) -> bool:
    """Whether a code point is a digit of ASCII."""
    return "0" <= char <= "9"


def is_letter(char: str) -> bool:
    """Whether a code point is part of a word wherever it stands; combining marks are."""
    return "a" <= char <= "z" or "A" <= char <= "Z" or not _is_in(ord(char), SYMBOLS)


def lower(text: str) -> str:
    """Lower-cases A to Z and À to Þ, and nothing else."""
    return text.translate(_LOWER)


def split(text: str) -> Iterable[str]:
    """Yields the parts between spaces, none of them empty."""
    start = 0
    for place, char in enumerate(text):
        if is_space(char):
            if place > start:
                yield text[start:place]
            start = place + 1
    if start < len(text):
        yield text[start:]


def is_keycap(text: str, place: int) -> bool:
    """Whether a digit, `#` or `*` at a place is drawn as a key."""
    after = text[place + 1 : place + 3].removeprefix("\ufe0f")
    return text[place] in "0123456789#*" and after[:1] == chr(_KEYCAP)
