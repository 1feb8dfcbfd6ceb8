"""A store gives back what was measured, and refuses what is not of its analysis."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pockmobile.errors import UsageError
from pockmobile.optim import Momentum
from pockmobile.plan import Slice
from pockmobile.sensitivity import Outcome, Schedule
from pockmobile.sensitivity.store import Unit, open_store
from tests.sensitivity.tiny_tasks import SCHEDULE, mlp_task

ONE = Unit("one", {"head.weight": Slice(1, 0, 4), "head.bias": None}, 0)
TWO = Unit("two", {"head.bias": None}, 1)


def filled(path: Path) -> Path:
    with open_store(path, mlp_task(), SCHEDULE) as store:
        store.add(ONE, Outcome(0.5, 0.25))
        store.add(TWO, Outcome(0.75, math.inf))
    return path


def test_what_was_measured_is_read_again(tmp_path: Path) -> None:
    with open_store(filled(tmp_path / "s"), mlp_task(), SCHEDULE) as store:
        assert store[ONE] == Outcome(0.5, 0.25)
        assert store[TWO] == Outcome(0.75, math.inf)
        assert replace(TWO, plan="renamed") in store
        assert replace(TWO, seed=0) not in store
        assert replace(ONE, update={"head.weight": None, "head.bias": None}) not in store
    assert len((tmp_path / "s").read_text().splitlines()) == 3


@pytest.mark.parametrize("num_bytes", [1, 5, 30])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, num_bytes: int) -> None:
    path = filled(tmp_path / "s")
    path.write_bytes(path.read_bytes()[:-num_bytes])
    with open_store(path, mlp_task(), SCHEDULE) as store:
        assert ONE in store
        assert TWO not in store
        store.add(TWO, Outcome(1.0, 0.0))
    with open_store(path, mlp_task(), SCHEDULE) as store:
        assert store[TWO] == Outcome(1.0, 0.0)


def test_a_torn_first_line_starts_anew(tmp_path: Path) -> None:
    path = filled(tmp_path / "s")
    path.write_bytes(path.read_bytes()[:40])
    with open_store(path, mlp_task(), SCHEDULE) as store:
        assert ONE not in store
    assert len(path.read_text().splitlines()) == 1


def test_the_store_of_another_analysis_is_refused(tmp_path: Path) -> None:
    path, task = filled(tmp_path / "s"), mlp_task()
    others = [
        (task, replace(SCHEDULE, lr=0.2)),
        (task, Schedule(6, 0.1, Momentum())),
        (mlp_task(num_eval=11), SCHEDULE),
    ]
    before = path.read_bytes()
    for other_task, other_schedule in others:
        with (
            pytest.raises(UsageError, match="other weights, data, loss or schedule; delete it"),
            open_store(path, other_task, other_schedule),
        ):
            pass
    task.forward.parameters["head.bias"][0] += 1.0
    with pytest.raises(UsageError, match="other weights"), open_store(path, task, SCHEDULE):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"precious", b"precious\n", b"\xff\xfe\n", b"{}\n"])
def test_another_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(content)
    with (
        pytest.raises(UsageError, match="is no record of an analysis; delete it"),
        open_store(path, mlp_task(), SCHEDULE),
    ):
        pass
    assert path.read_bytes() == content


def test_a_damaged_line_and_a_missing_folder_are_told(tmp_path: Path) -> None:
    path = filled(tmp_path / "s")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:20], lines[2], ""]))
    with pytest.raises(UsageError, match="is damaged"), open_store(path, mlp_task(), SCHEDULE):
        pass
    missing = tmp_path / "no" / "s"
    with (
        pytest.raises(UsageError, match="cannot write"),
        open_store(missing, mlp_task(), SCHEDULE),
    ):
        pass


def test_lines_are_for_people_too(tmp_path: Path) -> None:
    line = json.loads(filled(tmp_path / "s").read_text().splitlines()[1])
    assert line["plan"] == "one"
    assert line["update"]["head.weight"] == {"dim": 1, "start": 0, "stop": 4}
    assert (line["seed"], line["metric"]) == (0, 0.5)
