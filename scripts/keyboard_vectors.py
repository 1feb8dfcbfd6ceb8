"""Writes the test vectors by which the tokenisers in Kotlin and Swift are held to Python's.

python scripts/keyboard_vectors.py -o tests/fixtures/keyboard/tokens.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pockmobile.keyboard.tokenizer import tokenize
from pockmobile.keyboard.vocabulary import Vocabulary

_SPACES: Final = (
    "",
    " ",
    " \t\r\n\x0b\x0c ",
    "a\x85b\xa0c\u1680d\u2000e\u200af\u2028g\u2029h\u202fi\u205fj\u3000k",
    "zero\u200bwidth\u2060space",
    "soft\xadhyphen",
    "unit\x1fseparator",
    "\ufeffbyte order mark",
    "NUL\x00in a word",
    "\x7fdelete\x1bescape",
)
_WORDS: Final = (
    "hello",
    "Hello World",
    "HELLO",
    "the quick brown fox jumps over the lazy dog",
    "I don't know",
    "I DON'T KNOW",
    "I don\u2019t know",
    "don`t don\u00b4t don\u2018t",
    "don''t",
    "rock'n'roll",
    "rock 'n' roll",
    "'em 'cause 'tis",
    "dogs' toys",
    "the dogs'",
    "'quoted'",
    "\u2018quoted\u2019 \u201cand so\u201d",
    '"quoted" (and so) [on] {and} <on>',
    "o'clock O\u2019Brien",
    "well-known e-mail",
    "and/or w/o",
    "snake_case *bold* ~about",
    "a&b AT&T R+B",
    "C# C++ #tag ##",
    "London Monday english",
    "soooooo loooong nooo!!!",
    "AAAaaa Aaaa",
    "book aa bb",
    "hahahahaha hmmmmm",
    "1 word " + "x" * 25,
    "abcdefghijklmnopqrstuvwx",
    "abcdefghijklmnopqrstuvwxy",
    "ab" * 500,
    "a" * 1000,
    "don't" * 6,
    "zzqxv unknownword",
    "<s> <unk> <num> <own:0> <reserved:12>",
    "i'm I'M I\u2019m im",
    "u.s.a. e.g. a.m.",
)
_SCRIPTS: Final = (
    "caf\u00e9 CAF\u00c9 na\u00efve \u00dcber",
    "\u00c0\u00d6\u00d8\u00de \u00e0\u00f6\u00f8\u00fe",
    "cafe\u0301 e\u0301\u0301\u0301",
    "\u0301alone",
    "stra\u00dfe \u1e9e \u00ff \u0178",
    "\u0100 \u0141\u00f3d\u017a \u0130stanbul I\u0307",
    "\u0394\u03b5\u03bb\u03c4\u03b1 \u039f\u03a3",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002",
    "\u54c8\u54c8\u54c8\u54c8",
    "\u3053\u3093\u306b\u3061\u306f \u30c6\u30b9\u30c8",
    "\uc548\ub155\ud558\uc138\uc694?",
    "\u0645\u0631\u062d\u0628\u0627 \u061f",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "\u0661\u0662\u0663 \u0967\u0968",
    "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u05e9\u05dc\u05d5\u05dd",
    "2\u00d73 6\u00f72 x\u00d7y",
    "\u00b5 \u00aa \u00ba \u00b2 \u00bd",
    "\u20ac5 \u00a35 \u20b95",
    "\uff21\uff22\uff23 \uff11\uff12\uff13 \uff01\uff1f",
    "\ufb01ne \ufb02y",
    "\U0001d400\U0001d401 \U00020000\U00020000",
    "\ue000private\uf8ff \U000f0000",
    "\u02bcturned don\u02bct",
    "\ufffd\ufffc",
)
_NUMBERS: Final = (
    "0",
    "5 42 1234567890",
    "3.14 3,14 1,000,000.50",
    "10:30 10:30pm 10.30am",
    "24/12/2025 2025-12-24",
    "$5 \u00a35.99 5$ 50% #1",
    "+65 9123 4567 (555) 123-4567",
    "1st 2nd 3rd 4th 21ST",
    "10pm 10PM 9a 9p 5k 2x 3m 10hrs 5mins 30s",
    "5mm 5cm 10km 2g 3kg 16gb 5mb",
    "80's 1990s 1990's 2nd's",
    "80\u2019s",
    "5'10 6'2\"",
    "5. 5, 5! 5? 5... 5-",
    "5..6 5,,6 5.-6",
    ".5 -5 -.5",
    "1/2 3-4 3-day 24-hour",
    "gr8 b4 2nite 4u 2day l8r",
    "4ever 12monkeys 123monkeys",
    "100abc 3.5abc 1.2.3abc",
    "abc123 abc12 a1b2 a1b2c3",
    "mp3 3d r2d2 c3po",
    "b4444 a11111 w00t",
    "1mmm 1stt 5kkk",
    "4'u u'4 b4's",
    "A1B2C3D4 password1234",
    "007 0 00 000",
    "10am-12pm 5pm.",
    "12\u0661 a\u0661",
    "1e10 0x1F",
)
_ADDRESSES: Final = (
    "http://example.com",
    "https://example.com/a?b=c#d",
    "HTTP://EXAMPLE.COM",
    "see http://example.com.",
    "(http://example.com)",
    "<http://example.com>,",
    "http:// https:// http:",
    "www.example.org www. www",
    "example.com example.com. example.com/path/to?x=1",
    "bbc.co.uk sg.yahoo.com a-b.io",
    "example.com:80",
    "Example.COM!",
    "me.in it.us so.is",
    "hello.world end.Start",
    "1.com 123.co 3.5.uk a1.com",
    ".com com .com.com a..com",
    "foo.com, bar.net; baz.org?",
    "ftp://example.xyz",
    "a@b.com",
    "First.Last+tag@mail.example.co.uk",
    "(a@b.com) <a@b.com>, a@b.com.",
    "mail:a@b.com",
    "a@b a@b. a@ @",
    "a@b@c.com",
    "a@.com a@com.",
    "5@6.7",
    "@name hi @name! (@name)",
    "@5 @_x @@x @ name",
    "@caf\u00e9 @\u4f60",
    "hey@ you",
    "http://a.com:)",
    "\u201chttp://a.com\u201d \u2018a@b.com\u2019",
    "**www.a.com**",
)
_EMOJI: Final = (
    "\U0001f600",
    "hi\U0001f600there",
    "\U0001f600\U0001f600\U0001f602",
    "\U0001f600 \U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f44d\U0001f3fd ok",
    "\U0001f1f8\U0001f1ec\U0001f1ec\U0001f1e7",
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "\u2764 \u2764\ufe0f love",
    "5\ufe0f\u20e3 #\ufe0f\u20e3 *\u20e3 7\u20e3",
    "105\ufe0f\u20e3",
    "5\ufe0f 5\ufe0fx",
    "\u263a\ufe0f\u2600\u2b50\u231a",
    "\u200d \ufe0f \u20e3",
    "\u00a9 \u00ae \u2122 \u2192 \u203c",
    "\U0001f9d1\u200d\U0001f4bb\U0001f680!",
    "\U0001fae0\U0001fbff\U0001f000",
    "gr8\U0001f389 10pm\U0001f389",
    "\U0001f600http://a.com",
)
_EMOTICONS: Final = (
    ":) :( :D :P :p ;) ;D =) =( =D <3 </3 ^^ ^_^ -_- >_< T_T xD XD :'( :'-( :* :/ :] :o",
    "ok:) thanks :)hi :):)",
    "(:) :))) ((: ):",
    "<3<3<3 <30 i<3u <3u",
    ":Dog :Pat xDay axD xd Xd",
    "10:D 10:30:)",
    "3:) :3 8)",
    "T_Tx aT_T T_T!",
    ":-) :-( :-D :-/ ;-) : ) :",
    "and:/or",
    "note:(see below)",
    "^^^^ ^ <33",
)
_MARKS: Final = (
    ".",
    "Hi. How are you? Fine!",
    "... .. . .... \u2026",
    "wait...what",
    "wait\u2026what\u2026?",
    "?! !? ?!?! !!! ???",
    ",,, ,. ., .,. ;;; ::",
    "no..! yes.,!",
    "a,b.c?d!e",
    ". . .",
    "--- \u2013 \u2014 / \\ | ~ ^ = + * & % $ # @",
    "\u00bf qu\u00e9? \u00a1 hola!",
    "(what?) 'no.' \"yes!\"",
    "hello,world",
    "\u3002\uff0c\uff1f",
)
_MESSAGES: Final = (
    "ok c u at 5pm, call me on 91234567 or mail bob@example.com :)",
    "Happy b'day!!! \U0001f382\U0001f382",
    "I've seen Star Wars 7 times... it's GREAT!",
    "omg lol gonna b l8 2nite, sry \U0001f62d",
    "What's the time? 10:30? No way.",
    "The film's budget was $3.5m, wasn't it?",
)
TEXTS: Final = (
    *_SPACES,
    *_WORDS,
    *_SCRIPTS,
    *_NUMBERS,
    *_ADDRESSES,
    *_EMOJI,
    *_EMOTICONS,
    *_MARKS,
    *_MESSAGES,
)


def vectors() -> list[dict[str, str | list[str] | list[int]]]:
    """Returns each text with its tokens and, without `<s>`, their numbers."""
    vocabulary = Vocabulary.load()
    return [
        {"text": text, "tokens": tokens, "ids": vocabulary.encode(tokens)}
        for text in TEXTS
        for tokens in [tokenize(text)]
    ]


def main() -> int:
    """Writes the vectors, one a line, in ASCII."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    output: Path = parser.parse_args().output
    lines = ",\n".join(json.dumps(vector) for vector in vectors())
    output.write_bytes(f"[\n{lines}\n]\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
