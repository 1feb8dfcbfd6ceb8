"""Twenty steps of a session against eager PyTorch, and that what is trained is trained."""

from pathlib import Path

import pytest
import torch

import pockmobile
from pockmobile.models import keyboard_lm, mobilenet_v2
from pockmobile.session import Session
from tests.eager import Eager
from tests.parity_cases import (
    ALL,
    OPTIMIZERS,
    SUBJECTS,
    Case,
    compile_case,
    model_of,
    worst_excess,
)

# Every model on every target, and each plan, optimizer and pair of them where it is cheap.
_SELECTED = (
    [Case("mlp", plan, optimizer, "xnnpack")
     for plan, optimizer in (("full", "sgd"), ("head", "adamw"), ("bias", "lion"),
                             ("sparse", "momentum"), ("slices", "adamw"))]
    + [Case("residual_cnn", plan, optimizer, target)
       for plan, optimizer, target in (
           ("full", "adamw", "xnnpack"), ("bias", "momentum", "portable"),
           ("slices", "lion", "xnnpack"), ("sparse", "sgd", "portable"),
           ("slices", "sgd", "portable"), ("head", "lion", "xnnpack"))]
    + [Case("tied_lm", plan, optimizer, target)
       for plan, optimizer, target in (
           ("full", "momentum", "xnnpack"), ("head", "sgd", "portable"),
           ("slices", "adamw", "xnnpack"), ("sparse", "lion", "xnnpack"))]
    + [Case("llama", "full", "lion", "xnnpack"), Case("llama", "sparse", "adamw", "portable"),
       Case("llama", "slices", "momentum", "xnnpack")]
    + [Case("mobilenet_v2", "sparse", "sgd", "xnnpack"),
       Case("mobilenet_v2", "slices", "momentum", "xnnpack"),
       Case("mobilenet_v2", "bias", "adamw", "portable")]
    + [Case("resnet18", "sparse", "momentum", "xnnpack"),
       Case("resnet18", "head", "sgd", "portable")]
    + [Case("mlp", "full", "lion", "portable")]
)  # fmt: skip


@pytest.mark.parametrize("case", _SELECTED, ids=str)
def test_state_follows_eager(case: Case, tmp_path: Path) -> None:
    assert worst_excess(case, tmp_path) <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in ALL if case not in _SELECTED], ids=str)
def test_state_follows_eager_everywhere(case: Case, tmp_path: Path) -> None:
    assert worst_excess(case, tmp_path) <= 1.0


@pytest.mark.parametrize("target", ["portable", "xnnpack"])
@pytest.mark.parametrize("subject", ["residual_cnn", "tied_lm"])
def test_two_states_give_two_losses_and_predictions(
    subject: str, target: str, tmp_path: Path
) -> None:
    """A trained weight baked into a delegate would give the same ones."""
    program = compile_case(Case(subject, "sparse", "sgd", target))
    program.save(tmp_path / "model.pte")
    session = Session(tmp_path / "model.pte")
    inputs, labels = SUBJECTS[subject].batch(torch.Generator().manual_seed(3))
    eager = Eager(model_of(subject), program, OPTIMIZERS["sgd"])
    seen = []
    for _ in range(2):
        result = session.evaluate(inputs, labels)
        output = session.predict(inputs)
        torch.testing.assert_close(output, eager.output(inputs).detach(), rtol=1e-4, atol=1e-4)
        assert result.loss == pytest.approx(eager.loss(inputs, labels).item(), rel=1e-4)
        counted = labels != -100
        assert result.metrics["num_counted"] == counted.sum().item()
        correct = (eager.output(inputs).argmax(-1) == labels) & counted
        assert result.metrics["num_correct"] == correct.sum().item()
        seen.append((result.loss, output))
        session.step(inputs, labels, lr=0.5)
        eager.step(inputs, labels, 0.5)
    assert seen[0][0] != seen[1][0]
    assert not torch.equal(seen[0][1], seen[1][1])


def test_an_ignored_label_counts_for_nothing(tmp_path: Path) -> None:
    program = compile_case(Case("mlp", "full", "sgd", "xnnpack"))
    program.save(tmp_path / "model.pte")
    session = Session(tmp_path / "model.pte")
    inputs, labels = SUBJECTS["mlp"].batch(torch.Generator().manual_seed(4))
    session.step(inputs, labels, lr=0.1)
    first = session.state
    session.reset()
    inputs[0] = 100.0  # the row whose label is ignored
    session.step(inputs, labels, lr=0.1)
    for name, value in session.state.items():
        assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("plan", ["full", "head", "bias", "last:2", "sparse:3:3", "lora:2"])
def test_nearly_all_of_a_step_is_delegated(plan: str) -> None:
    """The limits that a step of the keyboard's model and of MobileNetV2 keeps."""
    tokens = torch.zeros((2, 32), dtype=torch.int64)
    programs = [pockmobile.compile(keyboard_lm(), (tokens,), plan=plan)]
    if plan != "lora:2":
        images = torch.zeros(2, 3, 64, 64)
        programs.append(pockmobile.compile(mobilenet_v2(0.35, 10), (images,), plan=plan))
    for program in programs:
        for method in program.manifest.methods.values():
            assert sum(item.count for item in method.outside) < 30
            assert method.num_partitions <= 10
