"""The whole loop: what is kept, what a burst does, what is suggested, shown and forgotten."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from pockmobile.errors import ArtifactError, InputError, UsageError
from pockmobile.keyboard import FIRST_OWN, Personalizer, Settings, Vocabulary
from pockmobile.keyboard.personalizer import STORE_NAME
from pockmobile.keyboard.settings import Shape
from pockmobile.session import Session
from tests.tiny_program import write_tiny_program

Messages = Iterator[str]
Open = Callable[..., Personalizer]


def fill(keyboard: Personalizer, messages: Messages, count: int = 60) -> None:
    for text in islice(messages, count):
        keyboard.add(text)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


class TestBurst:
    def test_bursts_teach_what_the_owner_types(
        self, open_keyboard: Open, messages: Messages
    ) -> None:
        keyboard = open_keyboard()
        fill(keyboard, messages)
        bursts = [keyboard.train() for _ in range(8)]
        assert [burst.outcome for burst in bursts] == ["kept"] * 8
        assert all(burst.after < burst.before for burst in bursts)
        assert bursts[0].num_steps == 6
        assert bursts[0].seconds > 0
        assert bursts[-1].after < bursts[0].before - 1
        learned = keyboard.learned()
        assert (learned.num_kept, learned.num_rolled_back, learned.num_failed) == (8, 0, 0)
        assert (learned.first_loss, learned.loss) == (bursts[0].before, bursts[-1].after)
        for _ in range(20):
            keyboard.train()
        assert keyboard.suggest("bak")[0] == "bar"
        assert keyboard.suggest("bak bar")[0] == "bas"

    def test_a_burst_that_does_not_help_is_rolled_back(
        self, open_keyboard: Open, messages: Messages, settings: Settings
    ) -> None:
        keyboard = open_keyboard(replace(settings, margin=100.0))
        fill(keyboard, messages)
        before = keyboard.session.state
        burst = keyboard.train()
        assert burst.outcome == "rolled back"
        assert burst.num_steps == 6
        assert burst.after < burst.before
        assert same(keyboard.session.state, before)
        assert keyboard.session.num_steps == 0
        assert keyboard.learned().num_rolled_back == 1
        assert keyboard.learned().loss == burst.before

    def test_a_burst_is_rolled_back_to_the_state_before(
        self, open_keyboard: Open, messages: Messages, settings: Settings
    ) -> None:
        keyboard = open_keyboard()
        fill(keyboard, messages)
        assert keyboard.train().outcome == "kept"
        keyboard.save()
        before = keyboard.session.state
        again = open_keyboard(replace(settings, margin=100.0))
        assert same(again.session.state, before)
        assert again.train().outcome == "rolled back"
        assert same(again.session.state, before)
        assert again.session.num_steps == 6

    def test_nothing_of_the_held_out_part_is_trained(
        self, open_keyboard: Open, messages: Messages, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keyboard = open_keyboard()
        fill(keyboard, messages, 48)
        for number in range(10):
            keyboard.add("kit " * (number + 1))
        seen: set[int] = set()
        step = keyboard.session.step

        def watched(inputs: np.ndarray, targets: np.ndarray, lr: float) -> float:
            seen.update(inputs.flatten().tolist())
            return step(inputs, targets, lr)

        monkeypatch.setattr(keyboard.session, "step", watched)
        [held_out] = keyboard.encode("kit")
        assert keyboard.train().number == 1
        assert len(seen) > 30
        assert held_out not in seen
        fill(keyboard, messages, 12)
        assert keyboard.train().number == 2
        assert held_out in seen

    def test_the_same_text_gives_the_same_state(
        self, open_keyboard: Open, tmp_path: Path
    ) -> None:
        states = []
        for folder in (tmp_path / "one", tmp_path / "two"):
            keyboard = open_keyboard(folder=folder)
            words = (f"bak {'bar ' * number}bas" for number in range(60))
            fill(keyboard, words)
            keyboard.train()
            states.append(keyboard.session.state)
        assert same(*states)

    def test_too_little_text_is_no_burst(self, open_keyboard: Open, messages: Messages) -> None:
        keyboard = open_keyboard()
        fill(keyboard, messages, 10)
        burst = keyboard.train()
        assert burst.outcome == "skipped"
        assert burst.reason == "only 20 tokens are held out, 40 are needed; type more"
        assert burst.number is None
        assert keyboard.session.num_steps == 0
        assert keyboard.learned().num_kept == keyboard.learned().num_rolled_back == 0

    def test_an_interrupted_burst_leaves_no_trace(
        self, open_keyboard: Open, messages: Messages, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keyboard = open_keyboard()
        fill(keyboard, messages)
        before = keyboard.session.state
        step = keyboard.session.step

        def interrupted(inputs: np.ndarray, targets: np.ndarray, lr: float) -> None:
            step(inputs, targets, lr)
            raise KeyboardInterrupt

        monkeypatch.setattr(keyboard.session, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            keyboard.train()
        assert same(keyboard.session.state, before)


class TestText:
    def test_no_text_is_written(
        self, open_keyboard: Open, tmp_path: Path, messages: Messages
    ) -> None:
        keyboard = open_keyboard()
        keyboard.add("dit bak me@mail.com 98765 http://secret.com/x Zanzibar")
        fill(keyboard, messages)
        keyboard.train()
        written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        for text in (b"mail", b"98765", b"secret", b"bak", b"dit"):
            assert text not in written
        assert b"zanzibar" in written  # a candidate: counted, and on the device only

    def test_own_words_are_learnt_and_suggested_as_typed(
        self, open_keyboard: Open, messages: Messages
    ) -> None:
        keyboard = open_keyboard()
        for text in islice(messages, 60):
            keyboard.add(f"{text} my Zanzibar {text.split()[0]}")
        assert keyboard.encode("Zanzibar zanzibar") == [16 + 1, 16 + 1]
        assert keyboard.encode("my") == [16]
        for _ in range(10):
            keyboard.train()
        assert keyboard.suggest("bak bar bas my")[0] == "Zanzibar"
        assert keyboard.learned().own_words == ("my", "Zanzibar")

    def test_slots_without_an_owner_are_not_suggested(self, open_keyboard: Open) -> None:
        keyboard = open_keyboard()
        suggestions = keyboard.suggest("", 400)
        assert len(suggestions) == 128
        assert not any("<" in word for word in suggestions)

    def test_a_slot_not_learnt_yet_is_an_unknown_word(
        self, open_keyboard: Open, messages: Messages
    ) -> None:
        keyboard = open_keyboard()
        unknown = keyboard.suggest("qux", 400)
        for _ in range(3):
            keyboard.add("Qux bak")
        keyboard.forget_word("bak")
        assert keyboard.encode("qux") == [FIRST_OWN]
        assert keyboard.suggest("qux", 400) == unknown
        fill(keyboard, messages)
        assert keyboard.train().outcome == "kept"
        assert keyboard.suggest("qux", 400) != unknown
        assert len(keyboard.suggest("qux", 400)) == 129

    def test_short_texts_see_the_messages_before(
        self, open_keyboard: Open, messages: Messages
    ) -> None:
        keyboard, other = open_keyboard(), open_keyboard()
        keyboard.add("bak bar")
        other.add("nus lek")
        assert keyboard.suggest("", 50) != other.suggest("", 50)
        long = " ".join(islice(messages, 6))
        assert keyboard.suggest(long, 50) == other.suggest(long, 50)

    def test_suggestions_are_the_program_s(
        self, open_keyboard: Open, vocabulary: Vocabulary
    ) -> None:
        keyboard = open_keyboard()
        keyboard.add("bak bar")
        tokens = [0, *vocabulary.encode(["bak", "bar"]), 0, *vocabulary.encode(["bas"])]
        row = torch.zeros(1, 16, dtype=torch.int64)
        row[0, : len(tokens)] = torch.tensor(tokens)
        logits = keyboard.session.predict(row)[0, len(tokens) - 1]
        best = sorted(range(272, 400), key=lambda number: -logits[number].item())
        expected = [vocabulary.shown(number) for number in best[:5]]
        assert keyboard.suggest("bas", 5) == expected

    def test_long_messages_are_cut(self, open_keyboard: Open, settings: Settings) -> None:
        keyboard = open_keyboard(replace(settings, most_tokens=4))
        keyboard.add("bak " * 4 + "qux " * 9)
        assert keyboard.learned().num_candidates == 0
        assert [len(tokens) for tokens in keyboard._store.recent] == [4]

    def test_repeats_are_kept_once(self, open_keyboard: Open) -> None:
        keyboard = open_keyboard()
        for text in ("bak bar", "Bak  BAR", "bak, bar"):
            keyboard.add(text)
        learned = keyboard.learned()
        assert (learned.num_messages, learned.num_typed) == (2, 3)


class TestFiles:
    def test_all_is_there_again(self, open_keyboard: Open, messages: Messages) -> None:
        keyboard = open_keyboard()
        fill(keyboard, messages, 80)
        for _ in range(3):
            keyboard.add("hi Shan")
        keyboard.train()
        keyboard.train()
        again = open_keyboard()
        assert again.learned() == keyboard.learned()
        assert same(again.session.state, keyboard.session.state)
        assert again.suggest("bak", 9) == keyboard.suggest("bak", 9)
        assert again.encode("shan") == keyboard.encode("shan") == [17]
        assert again.notices == ()
        assert again.train().number == 3

    def test_each_message_is_saved_by_default(
        self, open_keyboard: Open, settings: Settings
    ) -> None:
        keyboard = open_keyboard(replace(settings, save_every=Settings().save_every))
        keyboard.add("bak bar")
        assert open_keyboard().learned().num_messages == 1

    def test_forgetting_returns_to_the_shipped_model(
        self, open_keyboard: Open, messages: Messages, tmp_path: Path
    ) -> None:
        keyboard = open_keyboard()
        shipped = keyboard.session.state
        empty = keyboard.learned()
        fill(keyboard, messages, 80)
        for _ in range(3):
            keyboard.add("hi Shan")
        keyboard.train()
        assert keyboard.learned().num_bytes > 1000
        keyboard.forget()
        assert list(tmp_path.iterdir()) == []
        for forgotten in (keyboard, open_keyboard()):
            assert same(forgotten.session.state, shipped)
            assert forgotten.learned() == empty
        fill(keyboard, messages)
        assert keyboard.train().number == 1

    def test_a_forgotten_word_is_nowhere(
        self, open_keyboard: Open, tmp_path: Path, messages: Messages
    ) -> None:
        keyboard = open_keyboard()
        for text in ("hi Shan", "Shan bak", "bar Shan", "bas"):
            keyboard.add(text)
        # The second word to be typed three times: "hi" has not been.
        assert keyboard.learned().own_words == ("Shan",)
        assert keyboard.forget_word("SHAN") == 1
        assert keyboard.learned().own_words == ()
        assert "Shan" not in keyboard.suggest("", 400)
        assert b"shan" not in (tmp_path / STORE_NAME).read_bytes().lower()
        assert keyboard.encode("shan") == [1]
        assert open_keyboard().learned() == keyboard.learned()

    def test_messages_with_a_word_of_the_vocabulary_are_forgotten(
        self, open_keyboard: Open
    ) -> None:
        keyboard = open_keyboard()
        for text in ("bak bar", "bas", "Bar bas"):
            keyboard.add(text)
        assert keyboard.forget_word("bar") == 2
        assert keyboard.learned().num_messages == 1
        assert keyboard.forget_word("qux") == 0

    @pytest.mark.parametrize("word", ["", "two words", "5", "a@b.com", "?"])
    def test_only_a_word_can_be_forgotten(self, open_keyboard: Open, word: str) -> None:
        with pytest.raises(InputError, match="is not one word; give the words one at a time"):
            open_keyboard().forget_word(word)

    def test_messages_of_another_vocabulary_are_not_read(
        self, open_keyboard: Open, program: Path, vocabulary: Vocabulary, tmp_path: Path
    ) -> None:
        keyboard = open_keyboard()
        keyboard.add("bak bar")
        keyboard.save()
        other = Vocabulary((*vocabulary.entries[:-1], "other"))
        again = Personalizer(program, tmp_path, vocabulary=other)
        assert again.learned().num_messages == 0
        assert again.notices == (
            "the messages are of another vocabulary, it starts without any",
        )


class TestProgram:
    def test_another_loss_is_refused(self, vocabulary: Vocabulary, tmp_path: Path) -> None:
        path = write_tiny_program(tmp_path / "tiny.pte").path
        with pytest.raises(UsageError, match="the program's loss is cross_entropy, expected"):
            Personalizer(path, tmp_path, vocabulary=vocabulary)

    def test_another_vocabulary_is_refused(self, program: Path, tmp_path: Path) -> None:
        expected = r"predicts float32 \[1, 16, 400\], expected \[rows, 16, 10000\]; give the"
        with pytest.raises(UsageError, match=expected):
            Personalizer(program, tmp_path)

    def test_other_inputs_are_refused(self, program: Path, vocabulary: Vocabulary) -> None:
        manifest = Session(program).manifest
        train = manifest.methods["train_step"]
        inputs = tuple(
            replace(tensor, dtype="int32") if tensor.role == "input" else tensor
            for tensor in train.inputs
        )
        methods = {**manifest.methods, "train_step": replace(train, inputs=inputs)}
        expected = r"takes int32 \[4, 16\], expected one input int64 \[rows, tokens\]"
        with pytest.raises(UsageError, match=expected):
            Shape.of(replace(manifest, methods=methods), vocabulary)

    def test_no_program_is_refused(self, tmp_path: Path, vocabulary: Vocabulary) -> None:
        with pytest.raises(ArtifactError):
            Personalizer(tmp_path / "none.pte", tmp_path, vocabulary=vocabulary)

    @pytest.mark.parametrize("at", [math.nan, math.inf, 1e300])
    def test_a_time_that_is_none_is_refused(self, open_keyboard: Open, at: float) -> None:
        with pytest.raises(InputError, match="expected seconds since 1970"):
            open_keyboard().add("bak", at)

    def test_a_count_is_positive(self, open_keyboard: Open) -> None:
        with pytest.raises(InputError, match="count is 0, expected at least 1"):
            open_keyboard().suggest("bak", 0)
