"""What the tokeniser makes of what people type; apps in other languages replay the vectors."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pockmobile.keyboard.characters import (
    EMOJI,
    JOINERS,
    SPACES,
    SYMBOLS,
    is_letter,
    is_space,
    lower,
)
from pockmobile.keyboard.tokenizer import PUNCTUATION, tokenize
from pockmobile.keyboard.vocabulary import CLASSES, Vocabulary
from scripts.keyboard_vectors import TEXTS, vectors

VECTORS = Path(__file__).parents[1] / "fixtures" / "keyboard" / "tokens.json"

pieces = st.one_of(
    st.sampled_from(TEXTS),
    st.text(alphabet=st.characters(codec=None), max_size=20),
    st.text(
        alphabet="aAbsmkxDT4580'\u2019.,:/-?!@<3()=^_ \ufe0f\u20e3\u2764\u00c9", max_size=20
    ),
)
texts = st.lists(pieces, max_size=4).map("".join)


def is_word(token: str) -> bool:
    return token not in CLASSES


class TestVectors:
    def test_there_are_many(self) -> None:
        assert len(json.loads(VECTORS.read_bytes())) >= 150

    def test_the_file_is_what_the_tokeniser_and_the_vocabulary_make(self) -> None:
        assert json.loads(VECTORS.read_bytes()) == vectors(), (
            "run scripts/keyboard_vectors.py, and let the apps follow"
        )

    def test_the_file_can_be_read_in_any_encoding(self) -> None:
        assert VECTORS.read_bytes().isascii()

    def test_every_class_and_mark_occurs(self) -> None:
        found = {token for vector in vectors() for token in vector["tokens"]}
        assert found >= set(CLASSES) - {"<s>"}


class TestWords:
    @pytest.mark.parametrize(
        ("text", "tokens"),
        [
            ("", []),
            (" \t\u3000\u2028", []),
            ("Hello WORLD", ["hello", "world"]),
            ("I don\u2019t", ["i", "don't"]),
            ("rock'n'roll 'em dogs'", ["rock'n'roll", "em", "dogs"]),
            ("don''t", ["don", "t"]),
            ("well-known", ["well", "known"]),
            ("#tag", ["tag"]),
            ("\u00c9T\u00c9 \u00d7 \u00df", ["\u00e9t\u00e9", "\u00df"]),
            ("\u0141\u00d3D\u0179", ["\u0141\u00f3d\u0179"]),
            ("e\u0301", ["e\u0301"]),
            ("\u4f60\u597d\uff0c\u4e16\u754c\u3002", ["\u4f60\u597d", "\u4e16\u754c"]),
            ("\u0645\u0631\u062d\u0628\u0627", ["\u0645\u0631\u062d\u0628\u0627"]),
            ("a\x00b", ["a", "b"]),
            ("a\ud800b", ["a", "b"]),
        ],
    )
    def test_words(self, text: str, tokens: list[str]) -> None:
        assert tokenize(text) == tokens

    def test_a_letter_is_repeated_at_most_once(self) -> None:
        assert tokenize("soooo Aaah book " + "a" * 1000) == ["soo", "aah", "book", "aa"]

    def test_the_length_counts_code_points_after_shortening(self) -> None:
        longest = "\U00020000a" * 12
        assert tokenize(longest) == [longest]
        assert tokenize(longest + "b") == ["<unk>"]
        assert tokenize("ab" * 500) == ["<unk>"]
        assert tokenize("abcdefghijklmnopqrstuv" + "w" * 50) != ["<unk>"]


class TestNumbers:
    @pytest.mark.parametrize(
        "text",
        [
            "5",
            "1,000.50",
            "10:30pm",
            "24/12/2025",
            "2025-12-24",
            "$5",
            "50%",
            "21ST",
            "5k",
            "80's",
            "80\u2019s",
            "1990s",
            "1mmm",
            "abc123",
            "a1b2c3",
            "password1234",
        ],
    )
    def test_numbers(self, text: str) -> None:
        assert tokenize(text) == ["<num>"]

    @pytest.mark.parametrize("text", ["gr8", "b4", "2nite", "4u", "12monkeys", "mp3", "r2d2"])
    def test_words_with_digits(self, text: str) -> None:
        assert tokenize(text) == [text]

    @pytest.mark.parametrize(
        ("text", "tokens"),
        [
            ("100abc", ["<num>", "abc"]),
            ("3.5abc", ["<num>", "abc"]),
            ("24-hour", ["<num>", "hour"]),
            ("5.", ["<num>", "."]),
            ("5..6", ["<num>", "...", "<num>"]),
            ("4'u", ["<num>", "u"]),
            ("u'4", ["u", "<num>"]),
        ],
    )
    def test_where_numbers_end(self, text: str, tokens: list[str]) -> None:
        assert tokenize(text) == tokens


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "tokens"),
        [
            ("(http://a.com/x?y=1).", ["<url>", "."]),
            ("HTTPS://A", ["<url>"]),
            ("www.a", ["<url>"]),
            ("bbc.co.uk/news, a1.com", ["<url>", ",", "<url>"]),
            ("it.us 3.5.uk a..com", ["it", ".", "us", "<num>", ".", "uk", "a", "...", "com"]),
            ("<A.b+c@d.org>,", ["<mail>", ","]),
            ("a@b a@b@c.d a@.b.", ["a", "b", "a", "b", "c", ".", "d", "a", ".", "b", "."]),
            ("@bob, hi", ["<name>", ",", "hi"]),
            ("@ @5 me@", ["<num>", "me"]),
            ("http://a.com:)", ["<url>", "<emoji>"]),
        ],
    )
    def test_addresses(self, text: str, tokens: list[str]) -> None:
        assert tokenize(text) == tokens


class TestEmoji:
    @pytest.mark.parametrize(
        "text",
        [
            "\U0001f600\U0001f602",
            "\U0001f468\u200d\U0001f469\u200d\U0001f467",
            "\U0001f44d\U0001f3fd",
            "\U0001f1f8\U0001f1ec",
            "\U0001f3f4\U000e0067\U000e007f",
            "\u2764\ufe0f",
            "5\ufe0f\u20e3#\u20e3",
            ":)",
            ":'-(",
            "<3",
            "^^",
            "xD",
            ":P",
            "T_T",
        ],
    )
    def test_pictures(self, text: str) -> None:
        assert tokenize(text) == ["<emoji>"]

    @pytest.mark.parametrize(
        ("text", "tokens"),
        [
            ("hi\U0001f600u", ["hi", "<emoji>", "u"]),
            ("ok:)bye", ["ok", "<emoji>", "bye"]),
            (":):)", ["<emoji>", "<emoji>"]),
            (":Dog <30 axD xDa", ["dog", "<num>", "axd", "xda"]),
            ("\u200d\ufe0f\u20e3", []),
        ],
    )
    def test_where_pictures_end(self, text: str, tokens: list[str]) -> None:
        assert tokenize(text) == tokens


class TestPunctuation:
    @pytest.mark.parametrize(
        ("text", "tokens"),
        [
            ("a,b.c?d!e", ["a", ",", "b", ".", "c", "?", "d", "!", "e"]),
            ("?! !? !!! .. \u2026", ["?", "?", "!", "...", "..."]),
            (",,, ,. no..!", [",", ".", "no", "!"]),
            ("; : - \u2014 * & ~ \u00bf", []),
        ],
    )
    def test_marks(self, text: str, tokens: list[str]) -> None:
        assert tokenize(text) == tokens


class TestProperties:
    @given(texts)
    def test_tokens_are_words_in_lower_case_or_classes(self, text: str) -> None:
        for token in tokenize(text):
            if is_word(token):
                assert token == lower(token)
                assert 0 < len(token) <= 24
                assert "<" not in token
                assert not any(map(is_space, token))

    @given(texts)
    def test_tokenising_words_and_marks_again_changes_nothing(self, text: str) -> None:
        kept = [token for token in tokenize(text) if is_word(token) or token in PUNCTUATION]
        assert tokenize(" ".join(kept)) == kept

    @given(texts)
    def test_no_token_holds_more_than_two_digits(self, text: str) -> None:
        for token in tokenize(text):
            assert sum("0" <= char <= "9" for char in token) <= 2

    @given(texts, texts)
    def test_messages_stay_apart_at_a_space(self, first: str, second: str) -> None:
        assert tokenize(f"{first} {second}") == tokenize(first) + tokenize(second)

    @given(texts)
    def test_every_token_has_a_number(self, text: str) -> None:
        vocabulary = Vocabulary.load()
        tokens = tokenize(text)
        numbers = vocabulary.encode(tokens)
        assert [vocabulary.id(token) for token in tokens] == numbers
        assert all(0 <= number < vocabulary.num_tokens for number in numbers)


class TestTables:
    @pytest.mark.parametrize("ranges", [SPACES, EMOJI, JOINERS, SYMBOLS])
    def test_ranges_rise(self, ranges: tuple[tuple[int, int], ...]) -> None:
        ends = [end for pair in ranges for end in pair]
        assert ends == sorted(ends)
        assert all(low[1] < high[0] for low, high in pairwise(ranges))

    def test_no_emoji_or_joiner_is_a_letter(self) -> None:
        codes = [code for table in (EMOJI, JOINERS) for a, b in table for code in (a, b)]
        assert not [hex(code) for code in codes if is_letter(chr(code))]

    def test_lower_case_is_ascii_and_latin_1_alone(self) -> None:
        changed = {code for code in range(0x3000) if lower(chr(code)) != chr(code)}
        assert changed == {*range(0x41, 0x5B), *range(0xC0, 0xDF)} - {0xD7}
        assert all(lower(chr(code)) == chr(code + 32) for code in changed)
