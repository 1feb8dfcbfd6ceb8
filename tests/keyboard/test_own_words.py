"""A word typed often gets a slot, and no slot ever has a second owner."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pockmobile.keyboard import NUM_OWN
from pockmobile.keyboard.own_words import OwnWords, typed_form
from pockmobile.keyboard.settings import Settings


def see(words: OwnWords, word: str, times: int, message: int = 0) -> None:
    for _ in range(times):
        words.see(word, None, message)


def full() -> OwnWords:
    words = OwnWords(Settings(least_uses=1))
    for number in range(NUM_OWN):
        see(words, f"word{number}", 1)
    return words


def test_the_third_use_gives_a_slot() -> None:
    words = OwnWords(Settings())
    see(words, "shan", 2)
    assert (words.slots, words.num_candidates) == ({}, 1)
    see(words, "shan", 1)
    see(words, "lah", 3)
    assert (words.slots, words.num_candidates) == ({"shan": 0, "lah": 1}, 0)
    assert words.shown == {0: "shan", 1: "lah"}


def test_the_form_typed_last_is_shown() -> None:
    words = OwnWords(Settings())
    for form in ("shan", "Shan", None):
        words.see("shan", form, 0)
    assert words.shown == {0: "Shan"}


def test_a_retired_slot_is_not_given_again() -> None:
    words = OwnWords(Settings(least_uses=1))
    see(words, "one", 1)
    see(words, "two", 1)
    assert words.forget("one") == 0
    assert words.slots == {"two": 1}
    see(words, "three", 1)
    see(words, "one", 1)
    assert words.slots == {"two": 1, "three": 2, "one": 3}


def test_slots_that_a_state_has_learnt_are_not_given() -> None:
    words = OwnWords(Settings(least_uses=1))
    words.retire(7)
    words.retire(3)
    see(words, "one", 1)
    assert words.slots == {"one": 7}


def test_when_all_slots_are_given_nothing_is_counted_any_more() -> None:
    words = full()
    assert sorted(words.slots.values()) == list(range(NUM_OWN))
    see(words, "late", 9)
    assert "late" not in words.slots
    assert words.num_candidates == 0
    words.forget("word3")
    see(words, "late", 9)
    assert "late" not in words.slots


def test_candidates_go_when_the_last_slot_does() -> None:
    words = OwnWords(Settings())
    see(words, "rare", 2)
    words.retire(NUM_OWN - 1)
    see(words, "often", 3)
    assert words.slots == {"often": NUM_OWN - 1}
    assert words.num_candidates == 0


def test_the_candidates_used_least_and_longest_ago_go() -> None:
    words = OwnWords(Settings(num_candidates=2))
    see(words, "old", 2, message=0)
    see(words, "rare", 1, message=1)
    see(words, "new", 1, message=2)
    assert [entry.word for entry in words.words.words] == ["old", "new"]
    see(words, "old", 1, message=3)
    see(words, "newer", 1, message=3)
    assert words.slots == {"old": 0}
    assert words.num_candidates == 2


def test_an_unknown_word_is_forgotten_without_complaint() -> None:
    words = OwnWords(Settings())
    see(words, "candidate", 1)
    assert words.forget("candidate") is None
    assert words.forget("never") is None
    assert words.num_candidates == 0


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans())))
def test_no_slot_has_two_owners(events: list[tuple[int, bool]]) -> None:
    words = OwnWords(Settings(least_uses=2, num_candidates=3))
    owners: dict[int, str] = {}
    spans: set[int] = set()
    for message, (number, is_forgotten) in enumerate(events):
        word = f"word{number}"
        if is_forgotten:
            slot = words.forget(word)
            spans |= set() if slot is None else {slot}
        else:
            words.see(word, None, message)
        words = OwnWords(Settings(least_uses=2, num_candidates=3), words.words)
        for owner, slot in words.slots.items():
            assert owners.setdefault(slot, owner) == owner
            assert slot not in spans
        assert words.num_candidates <= 3


@pytest.mark.parametrize(
    ("text", "word", "form"),
    [
        ("hi Shan", "shan", "Shan"),
        ("Shan is here", "shan", None),
        ("  Shan is here", "shan", None),
        ("Shan and SHAN", "shan", "SHAN"),
        ("Banana Ana", "ana", "Ana"),
        ("ask Dr\u2019s", "dr's", "Dr's"),
        ("so coool", "cool", None),
        ("an \u00c9mile", "\u00e9mile", "\u00c9mile"),
        ("x2 X", "x", "X"),
        ("", "x", None),
    ],
)
def test_a_word_is_shown_as_it_was_typed(text: str, word: str, form: str | None) -> None:
    assert typed_form(text, word) == form
