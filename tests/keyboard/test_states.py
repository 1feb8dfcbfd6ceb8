"""The newest state that can be read wins, and a damaged one is said."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pockmobile.errors import CheckpointError
from pockmobile.keyboard import Personalizer
from pockmobile.keyboard.personalizer import STORE_NAME
from pockmobile.keyboard.states import States
from pockmobile.session import Session

Messages = Iterator[str]
Open = Callable[..., Personalizer]


@pytest.fixture
def session(program: Path) -> Session:
    return Session(program)


@pytest.fixture
def states(tmp_path: Path) -> States:
    return States(tmp_path, most=2)


def taught(session: Session, states: States, *numbers: int) -> dict[int, torch.Tensor]:
    """Saves a state after each of some steps; returns a tensor that tells them apart."""
    row = np.full((4, 16), 300, np.int64)
    biases = {}
    for number in numbers:
        session.step(row, row, 0.1)
        states.save(session, number, {"burst": str(number)})
        biases[number] = session.state["head.bias"]
    return biases


def damage(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def digest(session: Session) -> str:
    found = hashlib.sha256()
    for tensor in session.state.values():
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def fill(keyboard: Personalizer, messages: Messages, count: int = 60) -> None:
    while keyboard.learned().num_messages < count:
        keyboard.add(next(messages))


def test_without_files_it_is_the_shipped_model(session: Session, states: States) -> None:
    shipped = session.state["head.bias"]
    row = np.full((4, 16), 300, np.int64)
    session.step(row, row, 0.1)
    found = states.restore(session)
    assert (found.number, found.metadata, found.refused) == (None, {}, ())
    assert torch.equal(session.state["head.bias"], shipped)


def test_the_newest_is_restored_and_two_are_kept(session: Session, states: States) -> None:
    biases = taught(session, states, 8, 9, 10, 12)
    assert states.numbers == [12, 10]
    session.reset()
    found = states.restore(session)
    assert (found.number, found.metadata["burst"], found.refused) == (12, "12", ())
    assert torch.equal(session.state["head.bias"], biases[12])


def test_a_damaged_one_gives_way_to_the_one_before(
    session: Session, states: States, tmp_path: Path
) -> None:
    biases = taught(session, states, 1, 2)
    damage(tmp_path / "state-2.safetensors")
    found = states.restore(session)
    assert found.number == 1
    assert len(found.refused) == 1
    assert "state-2.safetensors is damaged" in found.refused[0]
    assert torch.equal(session.state["head.bias"], biases[1])


def test_a_damaged_one_does_not_push_a_good_one_out(
    session: Session, states: States, tmp_path: Path
) -> None:
    taught(session, states, 1, 2)
    damage(tmp_path / "state-2.safetensors")
    states.restore(session)
    taught(session, states, 3)
    assert states.numbers == [3, 1]


def test_when_all_are_damaged_it_is_the_shipped_model(
    session: Session, states: States, tmp_path: Path
) -> None:
    shipped = session.state["head.bias"]
    taught(session, states, 1, 2)
    damage(tmp_path / "state-2.safetensors")
    (tmp_path / "state-1.safetensors").write_bytes(b"")
    found = states.restore(session)
    assert found.number is None
    assert len(found.refused) == 2
    assert torch.equal(session.state["head.bias"], shipped)


def test_other_files_are_left_alone(session: Session, states: States, tmp_path: Path) -> None:
    names = ("state-x.safetensors", "state-7.safetensors.bak", "state-", "other")
    for name in names:
        (tmp_path / name).touch()
    taught(session, states, 1, 2, 3)
    states.remove_all()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert states.numbers == []


def test_a_folder_that_cannot_be_made_is_said(session: Session, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot make "):
        States(tmp_path / "file", most=2).save(session, 1, {})


class TestKeyboard:
    @pytest.mark.parametrize("place", [0, 9, 3000, -1])
    def test_the_state_before_a_damaged_one_is_used(
        self, open_keyboard: Open, messages: Messages, tmp_path: Path, place: int
    ) -> None:
        keyboard = open_keyboard()
        fill(keyboard, messages)
        first = keyboard.train()
        before = digest(keyboard.session)
        keyboard.train()
        damage(tmp_path / "state-2.safetensors", place)
        again = open_keyboard()
        assert digest(again.session) == before
        [notice] = again.notices
        assert notice.startswith("a state could not be used, the one before it is: ")
        assert "state-2.safetensors" in notice
        assert again.learned().loss == first.after
        assert again.learned().num_messages == 60
        assert again.train().number == 3
        assert open_keyboard().notices == ()

    @pytest.mark.parametrize("size", [0, 7, 1000, 100_000])
    def test_the_state_before_a_cut_one_is_used(
        self, open_keyboard: Open, messages: Messages, tmp_path: Path, size: int
    ) -> None:
        keyboard = open_keyboard()
        fill(keyboard, messages)
        keyboard.train()
        before = digest(keyboard.session)
        keyboard.train()
        path = tmp_path / "state-2.safetensors"
        path.write_bytes(path.read_bytes()[:size])
        again = open_keyboard()
        assert digest(again.session) == before
        assert len(again.notices) == 1

    def test_without_any_good_state_it_is_the_shipped_model(
        self, open_keyboard: Open, messages: Messages, tmp_path: Path
    ) -> None:
        keyboard = open_keyboard()
        shipped = digest(keyboard.session)
        fill(keyboard, messages)
        keyboard.train()
        keyboard.train()
        damage(tmp_path / "state-1.safetensors")
        damage(tmp_path / "state-2.safetensors")
        again = open_keyboard()
        assert digest(again.session) == shipped
        assert len(again.notices) == 2
        assert len(again.suggest("bak")) == 3
        assert again.learned().loss is None

    @pytest.mark.parametrize("place", [0, 30, 200, 1000, -2])
    def test_a_damaged_store_starts_empty(
        self, open_keyboard: Open, messages: Messages, tmp_path: Path, place: int
    ) -> None:
        keyboard = open_keyboard()
        for _ in range(3):
            keyboard.add("hi Shan")
        fill(keyboard, messages)
        keyboard.train()
        damage(tmp_path / STORE_NAME, place)
        again = open_keyboard()
        assert again.learned().num_messages == 0
        assert again.notices[0].startswith("the messages are lost, it starts without any: ")
        assert digest(again.session) == digest(keyboard.session)
        # The state has learnt slots 0 and 1 of owners that are no longer known.
        for _ in range(3):
            again.add("Qux")
        assert again.encode("qux") == [16 + 2]
        fill(again, messages)
        assert again.train().number == 2

    def test_a_store_of_other_contents_starts_empty(
        self, open_keyboard: Open, tmp_path: Path
    ) -> None:
        body = b'{"vocabulary":3}'
        seal = {"pockmobile_store": 1, "sha256": hashlib.sha256(body).hexdigest()}
        (tmp_path / STORE_NAME).write_bytes(json.dumps(seal).encode() + b"\n" + body + b"\n")
        keyboard = open_keyboard()
        assert keyboard.learned().num_messages == 0
        assert len(keyboard.notices) == 1
