"""A process killed at any moment loses nothing but the message or burst in progress."""

import json
import multiprocessing
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pockmobile.keyboard import Personalizer, Settings, Vocabulary
from tests.keyboard.conftest import digest

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
LEAST_LIFE = 0.2
"""Seconds until the kill, at most; more where some rounds of typing and training take more."""


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


def lines(path: Path) -> list[dict[str, Any]]:
    """Returns the report; its last line may be unfinished."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def kill_often(job: Job, times: int, longest_life: float) -> int:
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
            time.sleep(rng.uniform(0, longest_life))
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
    life = max(LEAST_LIFE, 5 * _seconds_of_a_round(replace(job, folder=folder / "timed")))
    # Or too few children came as far as to train and save.
    assert kill_often(job, times, life) > times // 2


def _seconds_of_a_round(job: Job) -> float:
    """Returns how long the first round takes, in which the program's methods are loaded."""
    keyboard = opened(job)
    for number in range(FIRST_MESSAGES):
        keyboard.add("gak " * (number + 1))
    start = time.perf_counter()
    for count in range(3):
        keyboard.add("bak " * (count + 1))
    assert keyboard.train().number is not None
    return time.perf_counter() - start


def test_killed_thirty_times(program: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    kill_test(program, vocabulary, tmp_path, 30)


@pytest.mark.slow
def test_killed_three_hundred_times(
    program: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    kill_test(program, vocabulary, tmp_path, 300)
