"""An analysis tells which options gain over the base, and how sure that is."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pockmobile.errors import UsageError
from pockmobile.optim import SGD
from pockmobile.sensitivity import (
    FirstLook,
    Outcome,
    Schedule,
    Sensitivity,
    fine_tune,
    first_look,
    measure_sensitivity,
)
from pockmobile.sensitivity import sensitivity as module
from tests.sensitivity.tiny_tasks import SCHEDULE, mlp_task, space_of

TASK = mlp_task()
SPACE = space_of(TASK.forward)


def even_look() -> FirstLook:
    names = TASK.forward.parameters.items()
    return FirstLook({name: torch.ones_like(value) / value.numel() for name, value in names})


def analysed(
    monkeypatch: pytest.MonkeyPatch, gains: dict[str, float], skipped: str | None = None
) -> Sensitivity:
    """The analysis where each option gains what is told, in accuracy and in loss.

    Base and seeds differ a little.
    """

    def measure(task: object, plans: dict[str, object], *_: object, **__: object) -> object:
        return {
            name: tuple(
                Outcome(0.5 + gains.get(name, 0.0) + noise, 1.0 - gains.get(name, 0.0) + noise)
                for noise in (0.0, 0.1)
            )
            for name in plans
        }

    monkeypatch.setattr(module, "measure_plans", measure)
    names = frozenset([skipped] if skipped else [])
    return measure_sensitivity(TASK, SPACE, SCHEDULE, look=even_look(), skipped=names)


def test_gains_are_over_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    found = analysed(monkeypatch, {"layers.0 whole": 0.25, "layers.1 bias": -0.125})
    gains = {c.option: c for c in found.contributions}
    assert list(gains) == [option.name for option in SPACE.options]
    assert gains["layers.0 whole"].gain == pytest.approx(0.25)
    assert gains["layers.1 bias"].gain == pytest.approx(-0.125)
    assert found.metric == "accuracy"
    assert found.head == pytest.approx(0.55)
    assert found.start == fine_tune(TASK, {}, SCHEDULE, 0).metric
    # Noise is the same for base and option, so that nothing of it is left in the difference.
    assert all(c.half_width == pytest.approx(0.0, abs=1e-9) for c in found.contributions)
    assert gains["layers.0 bias"].num_repeats == 2


def test_shares_are_measured_where_the_whole_weight_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = analysed(monkeypatch, {"layers.0 whole": 0.25, "layers.0 1/4": 0.125})
    gains = {c.option: c for c in found.contributions}
    assert gains["layers.0 1/4"].gain == pytest.approx(0.125)
    assert not gains["layers.0 1/2"].is_screened
    skipped = gains["layers.1 1/4"]
    assert (skipped.is_screened, skipped.gain, skipped.num_repeats) == (True, 0.0, 0)


def test_shares_of_a_weight_that_is_too_dear_whole_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gains = {"layers.0 1/2": 0.25, "layers.0 1/4": 0.125}
    found = analysed(monkeypatch, gains, "layers.0 whole")
    measured = {c.option: c.gain for c in found.contributions if not c.is_screened}
    assert "layers.0 whole" not in measured
    assert measured["layers.0 1/2"] == pytest.approx(0.25)
    assert measured["layers.0 1/4"] == pytest.approx(0.125)


def test_a_run_that_diverged_is_back_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    found = analysed(monkeypatch, {"layers.0 whole": -math.inf})
    gains = {c.option: c.gain for c in found.contributions}
    assert gains["layers.0 whole"] == pytest.approx(
        1.05 - fine_tune(TASK, {}, SCHEDULE, 0).loss
    )


def test_what_promises_nothing_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    squares = dict(even_look().squares)
    squares["layers.1.bias"] = torch.zeros(32)
    monkeypatch.setattr(module, "first_look", lambda *_: FirstLook(squares))
    found = measure_sensitivity(TASK, SPACE, SCHEDULE, num_processes=1)
    screened = {c.option for c in found.contributions if c.is_screened}
    assert "layers.1 bias" in screened
    assert "layers.0 bias" not in screened


def test_a_layer_that_the_task_needs_gains(tmp_path: Path) -> None:
    task = mlp_task(num_train=80, num_eval=60)
    schedule = Schedule(num_steps=40, lr=0.5, optimizer=SGD())
    store = tmp_path / "store"
    found = measure_sensitivity(task, SPACE, schedule, store=store, num_processes=1)
    best = max(found.contributions, key=lambda c: c.gain)
    assert best.gain > best.half_width > 0.0
    assert found.head >= found.start
    again = measure_sensitivity(
        task, SPACE, schedule, look=first_look(task, SPACE), store=store, num_processes=1
    )
    assert replace(again, seconds=0.0) == replace(found, seconds=0.0)


def test_an_interval_needs_repeats() -> None:
    with pytest.raises(UsageError, match="an interval needs at least 2 repeats, found 1"):
        measure_sensitivity(TASK, SPACE, SCHEDULE, num_repeats=1)
