"""Whatever happens to the process, the disk, the files or the numbers, it still predicts."""

import errno
import hashlib
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from pockmobile.keyboard import Personalizer, Settings, Vocabulary
from pockmobile.keyboard.personalizer import STORE_NAME
from pockmobile.session import Session

Messages = Iterator[str]
Open = Callable[..., Personalizer]

KILLED = Settings(
    num_recent=40,
    num_older=20,
    least_held_out=10,
    num_steps=1,
    lr=1e-3,
    least_gain=-100.0,  # every burst is kept
    margin=-100.0,
    save_every=1,
)
FIRST_MESSAGES = 20
LONGEST_LIFE = 0.2
"""Seconds until the kill: some dozens of messages and bursts."""


@dataclass(frozen=True)
class Job:
    """What a child types: messages no other child types, into its parent's folder."""

    program: Path
    folder: Path
    entries: tuple[str, ...]
    number: int
    report: Path


def type_until_killed(job: Job) -> None:
    """Adds, trains and saves in a loop; writes a line after each `add` and each burst."""
    torch.set_num_threads(1)
    keyboard = opened(job)
    with job.report.open("a", encoding="utf-8") as report:
        print(json.dumps({"opened": job.number}), file=report, flush=True)
        for count in range(10**6):
            text = " ".join("bdfgkl"[int(d, 6)] + "ak" for d in _base6(count, job.number))
            keyboard.add(text)
            line: dict[str, Any] = {"typed": keyboard.learned().num_typed}
            print(json.dumps(line), file=report, flush=True)
            if count % 3 == 2:
                burst = keyboard.train()
                line = {"outcome": burst.outcome, "burst": burst.number}
                line["state"] = digest(keyboard.session)
                print(json.dumps(line), file=report, flush=True)


def _base6(count: int, number: int) -> str:
    value, digits = 2**20 + number * 10**4 + count, ""
    while value:
        value, digit = divmod(value, 6)
        digits += str(digit)
    return digits


def opened(job: Job) -> Personalizer:
    vocabulary = Vocabulary(job.entries)
    return Personalizer(job.program, job.folder, vocabulary=vocabulary, settings=KILLED)


def digest(session: Session) -> str:
    found = hashlib.sha256()
    for tensor in session.state.values():
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def lines(path: Path) -> list[dict[str, Any]]:
    """Returns the report; its last line may be unfinished."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def kill_often(job: Job, times: int) -> int:
    """Kills a child at random moments; checks what each leaves; returns the bursts done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "pockmobile.keyboard", "pockmobile.session"])
    rng = random.Random(0)
    num_typed, newest, states, num_bursts = FIRST_MESSAGES, None, {}, 0
    for number in range(times):
        job = replace(job, number=number, report=job.report.with_name(f"report-{number}"))
        child = context.Process(target=type_until_killed, args=(job,))
        child.start()
        try:
            _wait_for_report(child, job.report)
            time.sleep(rng.uniform(0, LONGEST_LIFE))
        finally:
            child.kill()
            child.join()
        for line in lines(job.report):
            num_typed = line.get("typed", num_typed)
            if "burst" in line:
                assert line["outcome"] == "kept"
                newest, num_bursts = line["burst"], num_bursts + 1
                states[newest] = line["state"]
        keyboard = opened(job)
        assert keyboard.notices == ()
        assert len(keyboard.suggest("bak dak")) == 3
        num_typed = _check_messages(keyboard, num_typed)
        newest = _check_state(keyboard, job.folder, newest, states)
    return num_bursts


def _wait_for_report(child: Any, report: Path) -> None:
    deadline = time.monotonic() + 60
    while not lines(report):
        assert child.is_alive(), "the child failed"
        assert time.monotonic() < deadline, "the child does not start"
        time.sleep(0.002)


def _check_messages(keyboard: Personalizer, reported: int) -> int:
    """All messages that were reported are there, and at most the one being added."""
    found = keyboard.learned().num_typed
    assert found in (reported, reported + 1)
    return found


def _check_state(
    keyboard: Personalizer, folder: Path, reported: int | None, states: dict[int, str]
) -> int | None:
    """The state is that of the burst reported last, or of the one that was being saved."""
    numbers = sorted(int(path.stem.split("-")[1]) for path in folder.glob("state-*"))
    if not numbers:
        assert reported is None
        return None
    newest = numbers[-1]
    assert newest in ((reported or 0), (reported or 0) + 1)
    assert states.setdefault(newest, digest(keyboard.session)) == digest(keyboard.session)
    # A kill between writing a state and removing the one too many leaves three.
    assert len(numbers) <= KILLED.num_states + 1
    assert not list(folder.glob(".*"))
    return newest


def kill_test(program: Path, vocabulary: Vocabulary, folder: Path, times: int) -> None:
    job = Job(program, folder / "keyboard", vocabulary.entries, -1, folder / "report")
    keyboard = opened(job)
    for number in range(FIRST_MESSAGES):
        keyboard.add("gak " * (number + 1))
    # Or too few children came as far as to train and save.
    assert kill_often(job, times) > times // 2


class TestKills:
    def test_killed_thirty_times(
        self, program: Path, vocabulary: Vocabulary, tmp_path: Path
    ) -> None:
        kill_test(program, vocabulary, tmp_path, 30)

    @pytest.mark.slow
    def test_killed_three_hundred_times(
        self, program: Path, vocabulary: Vocabulary, tmp_path: Path
    ) -> None:
        kill_test(program, vocabulary, tmp_path, 300)

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
