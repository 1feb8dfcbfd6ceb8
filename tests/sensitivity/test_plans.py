"""Plans are measured in one process or in several, and only what is missing."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pockmobile.errors import PlanError, UsageError
from pockmobile.sensitivity import Outcome, fine_tune, measure_plans
from tests.sensitivity.tiny_tasks import SCHEDULE, SLOW_SCHEDULE, all_plans, cnn_task, mlp_task

ROOT = Path(__file__).parents[2]


def test_each_plan_is_fine_tuned_under_each_seed() -> None:
    task = cnn_task()
    plans = {"start": {}, "head": {"head.weight": None, "head.bias": None}}
    found = measure_plans(task, plans, SCHEDULE, num_repeats=3, num_processes=1)
    for name, update in plans.items():
        for seed, outcome in enumerate(found[name]):
            expected = fine_tune(task, update, SCHEDULE, seed)
            assert outcome.loss == pytest.approx(expected.loss, rel=1e-6)
    assert [len(outcomes) for outcomes in found.values()] == [3, 3]


def test_processes_give_the_same_as_one() -> None:
    torch.set_num_threads(1)
    task = mlp_task()
    alone = measure_plans(task, all_plans(task), SCHEDULE, num_processes=1)
    assert measure_plans(task, all_plans(task), SCHEDULE, num_processes=2) == alone


def test_what_is_stored_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, path = mlp_task(), tmp_path / "store"
    plans = all_plans(task)
    first = dict(list(plans.items())[:2])
    before = measure_plans(task, first, SCHEDULE, store=path, num_processes=1)
    measured: list[str] = []

    def counting(*args: object) -> object:
        measured.append("unit")
        return fine_tune(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("pockmobile.sensitivity.workers.fine_tune", counting)
    found = measure_plans(task, plans, SCHEDULE, store=path, num_processes=1)
    assert len(measured) == 2 * (len(plans) - len(first))
    assert {name: found[name] for name in first} == before


def test_a_killed_analysis_measures_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, task = tmp_path / "store", mlp_task()
    plans = all_plans(task)
    process = _start_analysis(path)
    children = _children(process.pid)
    process.kill()
    process.communicate()
    _wait_for_end(children)
    num_done = path.read_bytes().count(b"\n") - 1
    measured: list[object] = []

    def counting(*unit: object) -> Outcome:
        measured.append(unit)
        return Outcome(-1.0, 1.0)

    monkeypatch.setattr("pockmobile.sensitivity.workers.fine_tune", counting)
    found = measure_plans(
        task, plans, SLOW_SCHEDULE, num_repeats=20, store=path, num_processes=1
    )
    metrics = [outcome.metric for outcomes in found.values() for outcome in outcomes]
    assert len(metrics) == 20 * len(plans)
    assert 2 <= num_done < len(metrics)
    assert len(measured) == metrics.count(-1.0) == len(metrics) - num_done


def test_an_interruption_ends_all_processes(tmp_path: Path) -> None:
    path = tmp_path / "store"
    process = _start_analysis(path)
    children = _children(process.pid)
    assert len(children) >= 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.count(b"Traceback") <= 1  # That of the interrupted process, no worker's.
    assert b"leaked" not in errors
    _wait_for_end(children)


def _start_analysis(path: Path) -> "subprocess.Popen[bytes]":
    """Starts an analysis in two processes, and returns when it has measured something."""
    script = ["-m", "tests.sensitivity.killed_analysis", str(path)]
    process = subprocess.Popen([sys.executable, *script], cwd=ROOT, stderr=subprocess.PIPE)
    while not path.exists() or path.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    return process


def _children(parent: int) -> list[int]:
    listed = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def _wait_for_end(processes: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_cannot_be_measured_is_refused() -> None:
    task = mlp_task()
    with pytest.raises(PlanError, match="which the model cannot train"):
        measure_plans(task, {"plan": {"haed.weight": None}}, SCHEDULE)
    with pytest.raises(UsageError, match="num_repeats must be at least 1, found 0"):
        measure_plans(task, {}, SCHEDULE, num_repeats=0)
    with pytest.raises(UsageError, match="num_processes must be at least 1, found 0"):
        measure_plans(task, {}, SCHEDULE, num_processes=0)
