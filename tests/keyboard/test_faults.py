"""Whatever happens to the process, the disk, the files or the numbers, it still predicts."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pockmobile.keyboard import Personalizer, Settings, Vocabulary
from pockmobile.keyboard.personalizer import STORE_NAME
from tests.keyboard.conftest import digest

Messages = Iterator[str]
Open = Callable[..., Personalizer]


class TestPower:
    @pytest.mark.parametrize("name", ["fsync", "replace"])
    def test_power_lost_at_each_step_of_saving(
        self,
        open_keyboard: Open,
        messages: Messages,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        settings: Settings,
        name: str,
    ) -> None:
        """Stops before each sync and rename of some bursts in turn, and opens again."""
        keyboard = open_keyboard(
            replace(settings, least_gain=-100.0, margin=-100.0, num_steps=1)
        )
        fill(keyboard, messages)
        keyboard.train()
        owner = os if name == "fsync" else Path
        original = getattr(owner, name)
        for place in range(6):
            calls = iter(range(100))

            def stopped(*args: Any, place: int = place, calls: Any = calls) -> Any:
                if next(calls) == place:
                    raise PowerLoss
                return original(*args)

            before = digest(keyboard.session)
            monkeypatch.setattr(owner, name, stopped)
            with suppress(PowerLoss):
                keyboard.train()
            after = digest(keyboard.session)
            monkeypatch.setattr(owner, name, original)
            keyboard = open_keyboard(
                replace(settings, least_gain=-100.0, margin=-100.0, num_steps=1)
            )
            assert digest(keyboard.session) in (before, after)
            assert keyboard.notices == ()
            assert len(keyboard._store) == 60


class PowerLoss(BaseException):
    """The machine stops."""


def fill(keyboard: Personalizer, messages: Messages, count: int = 60) -> None:
    while len(keyboard._store) < count:
        for text in islice(messages, count - len(keyboard._store)):
            keyboard.add(text)


def full_disk(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestFullDisk:
    @pytest.fixture(params=["fsync", "open"])
    def fill_disk(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[], None]:
        def full() -> None:
            if request.param == "fsync":
                monkeypatch.setattr(os, "fsync", full_disk)
                return
            opened = Path.open

            def refused(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
                return full_disk() if "x" in mode else opened(path, mode, *rest, **named)

            monkeypatch.setattr(Path, "open", refused)

        return full

    def test_a_burst_is_kept_in_memory(
        self,
        open_keyboard: Open,
        messages: Messages,
        monkeypatch: pytest.MonkeyPatch,
        fill_disk: Callable[[], None],
    ) -> None:
        keyboard = open_keyboard()
        fill(keyboard, messages)
        assert keyboard.train().outcome == "kept"
        first = digest(keyboard.session)
        fill_disk()
        keyboard.add("bak")
        assert keyboard.train().outcome == "kept"
        second = digest(keyboard.session)
        assert second != first
        state, store = keyboard.notices
        assert "what was learnt is kept in memory only: cannot write" in state
        assert "No space left on device" in state
        assert store.startswith("the messages could not be saved (No space left")
        assert len(keyboard.suggest("bak")) == 3
        # What could not be rolled back is not begun.
        skipped = keyboard.train()
        assert skipped.outcome == "skipped"
        assert "is not on the disk; free some space" in skipped.reason
        assert digest(keyboard.session) == second
        assert digest(open_keyboard().session) == first
        monkeypatch.undo()
        third = keyboard.train()
        assert (third.outcome, third.number) == ("kept", 3)
        again = open_keyboard()
        assert digest(again.session) == digest(keyboard.session)
        assert again.learned() == keyboard.learned()

    def test_messages_are_kept_in_memory(
        self,
        open_keyboard: Open,
        settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
        fill_disk: Callable[[], None],
    ) -> None:
        keyboard = open_keyboard(replace(settings, save_every=1))
        fill_disk()
        for text in ("bak", "bar", "bas"):
            keyboard.add(text)
        assert len(keyboard.notices) == 1
        assert len(keyboard.suggest("bak")) == 3
        monkeypatch.undo()
        keyboard.add("bat")
        assert open_keyboard().learned().num_messages == 4

    def test_a_word_is_forgotten_all_the_same(
        self,
        open_keyboard: Open,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        fill_disk: Callable[[], None],
    ) -> None:
        keyboard = open_keyboard()
        for text in ("bak Shan", "bar Shan", "bas Shan", "bat"):
            keyboard.add(text)
        keyboard.save()
        fill_disk()
        assert keyboard.forget_word("Shan") == 1
        assert not (tmp_path / STORE_NAME).exists()
        monkeypatch.undo()
        keyboard.save()
        assert open_keyboard().learned() == keyboard.learned()
        assert keyboard.learned().num_messages == 3

    def test_all_is_forgotten_all_the_same(
        self,
        open_keyboard: Open,
        messages: Messages,
        tmp_path: Path,
        fill_disk: Callable[[], None],
    ) -> None:
        keyboard = open_keyboard()
        fill(keyboard, messages)
        keyboard.train()
        fill_disk()
        keyboard.forget()
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_made(
        self, open_keyboard: Open, tmp_path: Path, messages: Messages
    ) -> None:
        (tmp_path / "file").touch()
        keyboard = open_keyboard(folder=tmp_path / "file" / "folder")
        fill(keyboard, messages)
        assert keyboard.train().outcome == "kept"
        assert len(keyboard.notices) == 2
        assert len(keyboard.suggest("bak")) == 3


class TestNumbers:
    def test_a_burst_that_diverges_is_rolled_back(
        self, open_keyboard: Open, messages: Messages, settings: Settings
    ) -> None:
        good = open_keyboard()
        fill(good, messages)
        good.train()
        before = digest(good.session)
        keyboard = open_keyboard(replace(settings, lr=1e30))
        burst = keyboard.train()
        assert burst.outcome == "failed"
        assert burst.number == 2
        assert digest(keyboard.session) == before
        assert keyboard.learned().num_failed == 1
        assert keyboard.learned().num_kept == 1
        assert keyboard.learned().loss == burst.before
        assert len(keyboard.suggest("bak")) == 3
        again = open_keyboard()
        assert digest(again.session) == before
        assert again.train().outcome == "kept"

    def test_a_rate_that_is_much_too_high_is_rolled_back(
        self, open_keyboard: Open, messages: Messages, settings: Settings
    ) -> None:
        keyboard = open_keyboard(replace(settings, lr=5.0))
        shipped = digest(keyboard.session)
        fill(keyboard, messages)
        burst = keyboard.train()
        assert burst.outcome == "rolled back"
        assert burst.after > burst.before
        assert digest(keyboard.session) == shipped

    def test_the_clock_goes_back(
        self, program: Path, vocabulary: Vocabulary, settings: Settings, tmp_path: Path
    ) -> None:
        times = iter((1000.0, 2000.0, 500.0, -7.0, 2001.0))
        keyboard = Personalizer(
            program,
            tmp_path,
            vocabulary=vocabulary,
            settings=settings,
            clock=lambda: next(times),
        )
        for text in ("bak", "bar", "bas", "bat", "bek"):
            keyboard.add(text)
        keyboard.add("ber", at=3.0)
        found = [example.at for example in keyboard._store.examples.recent]
        assert found == [1000, 2000, 2000, 2000, 2001, 2001]
