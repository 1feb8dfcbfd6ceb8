"""The shipped vocabulary, and what is said of a file that is none."""

import hashlib
from importlib.resources import files
from pathlib import Path

import pytest

from pockmobile.errors import ArtifactError
from pockmobile.keyboard import FIRST_OWN, NUM_OWN, Vocabulary, tokenize
from pockmobile.keyboard.characters import lower
from pockmobile.keyboard.vocabulary import CLASSES
from scripts.keyboard_text import plain_message, sms_writers, split_writers
from scripts.realdata import Message, Turn

SHIPPED = Vocabulary.load()
SLOTS = tuple(f"<own:{number}>" for number in range(NUM_OWN))
RESERVED = tuple(f"<reserved:{number}>" for number in range(len(CLASSES), FIRST_OWN))


def write(folder: Path, entries: tuple[str, ...]) -> Path:
    path = folder / "vocabulary.txt"
    path.write_bytes(("\n".join(entries) + "\n").encode())
    return path


class TestShipped:
    def test_its_lines(self) -> None:
        data = (files("pockmobile.keyboard") / "vocabulary.txt").read_bytes()
        assert b"\r" not in data
        assert data.endswith(b"\n")
        assert tuple(data.decode().split("\n")[:-1]) == SHIPPED.entries
        assert SHIPPED.num_tokens == 10_000
        assert SHIPPED.sha256 == hashlib.sha256(data).hexdigest()

    def test_its_order(self) -> None:
        assert SHIPPED.entries[:FIRST_OWN] == (*CLASSES, *RESERVED)
        assert SHIPPED.entries[FIRST_OWN : FIRST_OWN + NUM_OWN] == SLOTS
        assert SHIPPED.entries[FIRST_OWN + NUM_OWN :][:4] == ("the", "I", "a", "to")

    def test_the_tokeniser_reaches_every_word(self) -> None:
        words = SHIPPED.entries[FIRST_OWN + NUM_OWN :]
        assert not [word for word in words if tokenize(word) != [lower(word)]]

    def test_words_are_shown_as_they_are_written(self) -> None:
        for word in ("I", "I'm", "London", "Monday", "the", "may", "lol"):
            assert SHIPPED.shown(SHIPPED.id(lower(word))) == word

    def test_gross_words_are_not_suggested(self) -> None:
        for word in ("fuck", "shit", "bitch", "sex"):
            assert SHIPPED.id(word) == SHIPPED.id("<unk>")


class TestNumbers:
    def test_unknown_words(self) -> None:
        assert SHIPPED.id("zzqxv") == 1
        assert SHIPPED.id("<nothing>") == 1

    def test_every_entry_has_its_own_number(self) -> None:
        numbers = [SHIPPED.id(lower(entry)) for entry in SHIPPED.entries]
        assert numbers == list(range(SHIPPED.num_tokens))

    def test_own_words_take_their_slots(self) -> None:
        tokens = tokenize("the zzqxv 5!")
        the, mark = SHIPPED.id("the"), SHIPPED.id("!")
        assert SHIPPED.encode(tokens) == [the, 1, 2, mark]
        assert SHIPPED.encode(tokens, {"zzqxv": 255}) == [the, FIRST_OWN + 255, 2, mark]

    def test_only_words_are_suggested(self) -> None:
        suggested = [number for number in range(10_000) if SHIPPED.is_word(number)]
        assert suggested == list(range(FIRST_OWN + NUM_OWN, 10_000))
        assert not SHIPPED.is_word(10_000)
        assert not SHIPPED.is_word(-1)


class TestFiles:
    def test_a_file_is_read(self, tmp_path: Path) -> None:
        entries = (*CLASSES, *RESERVED, *SLOTS, "the", "Caf\u00e9")
        found = Vocabulary.load(write(tmp_path, entries))
        assert found.entries == entries
        assert found.id("caf\u00e9") == found.num_tokens - 1

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"vocabulary .*none.txt cannot be read: "):
            Vocabulary.load(tmp_path / "none.txt")

    def test_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "bytes.txt"
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(
            ArtifactError, match=r"vocabulary .*bytes.txt cannot be read: 'utf-8'"
        ):
            Vocabulary.load(path)

    @pytest.mark.parametrize("entries", [("",), ("the", "a"), ("<s>", "<unk>")])
    def test_other_classes(self, tmp_path: Path, entries: tuple[str, ...]) -> None:
        with pytest.raises(
            ArtifactError, match="is no vocabulary: it must begin with <s> <unk>"
        ):
            Vocabulary.load(write(tmp_path, entries))

    def test_missing_slots(self, tmp_path: Path) -> None:
        path = write(tmp_path, (*CLASSES, *RESERVED, *SLOTS[:-1], "the"))
        with pytest.raises(
            ArtifactError, match="from line 17 on it must hold the slots <own:0>"
        ):
            Vocabulary.load(path)

    def test_a_word_twice(self, tmp_path: Path) -> None:
        path = write(tmp_path, (*CLASSES, *RESERVED, *SLOTS, "may", "to", "May"))
        with pytest.raises(ArtifactError, match="holds May twice"):
            Vocabulary.load(path)


class TestWriters:
    def turns(self) -> list[Turn]:
        turns = [
            Turn(f"w{writer:04}", "film", "c", turn, f"w{writer} says that turn {turn} is good")
            for writer in range(40)
            for turn in range(300)
        ]
        copied = [
            Turn("w9001", "film", "c", n, "the same five words again") for n in range(300)
        ]
        few = [Turn("w9002", "film", "c", n, f"{n}") for n in range(299)]
        excluded = [Turn("w2052", "film", "c", n, f"{n}") for n in range(300)]
        return turns + copied + few + excluded

    def test_the_three_parts_are_apart(self) -> None:
        writers = split_writers(self.turns())
        assert (len(writers.test), len(writers.validation)) == (20, 12)
        everyone = [*writers.train, *writers.validation, *writers.test]
        assert len(set(everyone)) == len(everyone) == 42
        assert "w2052" not in everyone

    def test_who_copies_or_writes_little_only_trains(self) -> None:
        assert {"w9001", "w9002"} <= set(split_writers(self.turns()).train)

    def test_the_draw_is_always_the_same(self) -> None:
        turns = self.turns()
        assert split_writers(turns) == split_writers(reversed(turns))

    def test_placeholders_become_what_they_stand_for(self) -> None:
        text = "<#> <DECIMAL> <EMAIL> <TIME> <URL>"
        tokens = tokenize(plain_message(text))
        assert tokens == ["<num>", "<num>", "<mail>", "<num>", "<url>"]

    def test_repeated_messages_count_once(self) -> None:
        messages = [Message("7", "unknown", f"at <#>{n % 2}") for n in range(4)]
        stranger = [Message("0", "unknown", f"{n}") for n in range(4)]
        assert sms_writers(messages + stranger, least=2) == {"7": ["at 50", "at 51"]}
