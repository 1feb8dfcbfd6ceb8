"""A program fits into a memory budget by computing values again, and trains the same."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pockmobile
from pockmobile.artifact.manifest import Manifest
from pockmobile.errors import UsageError
from pockmobile.models import residual_cnn

TARGETS = ("portable", "xnnpack")


def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 24, 24, generator=generator)
    return images, torch.randint(4, (8,), generator=generator)


@cache
def compiled(target: str, memory_budget: int | None = None) -> pockmobile.Program:
    torch.manual_seed(0)
    model = residual_cnn().eval()
    images, labels = examples()
    return pockmobile.compile(
        model, (images,), (labels,), target=target, memory_budget=memory_budget
    )


def needed(manifest: Manifest) -> int:
    step = manifest.methods["train_step"]
    return step.planned_bytes + step.workspace_bytes


@pytest.mark.parametrize("target", TARGETS)
def test_a_budget_is_kept_and_the_numbers_are_the_same(target: str, tmp_path: Path) -> None:
    plain = compiled(target)
    budget = int(0.8 * needed(plain.manifest))
    fitted = compiled(target, budget)
    assert needed(fitted.manifest) <= budget
    record = next(item for item in fitted.manifest.passes if item.name == "recompute")
    assert 0 < record.options["limit_bytes"] < needed(plain.manifest)
    sessions = []
    for name, program in {"plain": plain, "fitted": fitted}.items():
        program.save(tmp_path / f"{name}.pte")
        sessions.append(pockmobile.Session(tmp_path / f"{name}.pte"))
    images, labels = examples()
    for _ in range(3):
        first, second = (session.step(images, labels, lr=0.1) for session in sessions)
        assert first == pytest.approx(second, rel=1e-6)
    for name, value in sessions[0].state.items():
        torch.testing.assert_close(sessions[1].state[name], value, rtol=1e-5, atol=1e-7)


def test_a_budget_that_nothing_fits_says_what_is_needed() -> None:
    with pytest.raises(UsageError, match=r"needs [0-9.]+ MB .*, the budget is 0\.01 MB; train"):
        compiled("portable", 10_000)


def test_a_budget_that_is_large_enough_changes_nothing() -> None:
    plain = compiled("portable")
    fitted = compiled("portable", needed(plain.manifest))
    assert [item.name for item in fitted.manifest.passes] == [
        item.name for item in plain.manifest.passes
    ]
