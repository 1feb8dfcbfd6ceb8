"""Training steps in float16 on the Hexagon simulator, against eager PyTorch."""

import copy
from pathlib import Path
from typing import Final

import pytest
import torch
from torch.nn.functional import cosine_similarity

import pockmobile
from pockmobile.targets import Qnn
from tests.eager import Eager
from tests.parity_cases import OPTIMIZERS, SUBJECTS, model_of
from tests.targets.qnn import needs_libraries

NUM_STEPS: Final = 3


@needs_libraries
@pytest.mark.parametrize(
    ("subject", "plan", "optimizer", "precision"),
    [
        ("mlp", "full", "adamw", "fp16"),
        ("residual_cnn", "full", "sgd", "fp16"),
        ("tied_lm", "last:1", "sgd", "fp16"),
        ("mlp", "full", "momentum", "int16"),
        pytest.param("residual_cnn", "full", "sgd", "int16", marks=pytest.mark.slow),
    ],
)
def test_training_follows_eager(
    subject: str, plan: str, optimizer: str, precision: str, tmp_path: Path
) -> None:
    case, rule = SUBJECTS[subject], OPTIMIZERS[optimizer]
    generator = torch.Generator().manual_seed(0)
    batches = [case.batch(generator) for _ in range(NUM_STEPS)]
    inputs, labels = batches[0]
    model = copy.deepcopy(model_of(subject))
    program = pockmobile.compile(
        model,
        (inputs,),
        (labels,),
        plan=plan,
        optimizer=rule,
        target=_target(subject, precision),
    )
    assert {method.num_partitions for method in program.manifest.methods.values()} == {1}
    program.save(tmp_path / "model.pte")
    session = pockmobile.Session(tmp_path / "model.pte")
    eager = Eager(model, program, rule)
    start = session.parameters
    for inputs, labels in batches:
        expected = eager.step(inputs, labels, case.lr)
        assert session.step(inputs, labels, lr=case.lr) == pytest.approx(expected, rel=0.02)
    for entry in program.manifest.parameters:
        found = session.parameters[entry.name] - start[entry.name]
        wanted = eager.leaves[entry.parameter].detach() - start[entry.name]
        if wanted.abs().max() > 1e-6:  # The bias of attention's keys has no gradient.
            likeness = cosine_similarity(found.flatten(), wanted.flatten(), dim=0)
            assert likeness >= 0.99, entry.name
    predicted = session.predict(inputs)
    torch.testing.assert_close(predicted, eager.output(inputs), rtol=2e-2, atol=2e-2)


def _target(subject: str, precision: str) -> Qnn:
    """Returns the target; what calibrates it is not what it is trained on."""
    if precision == "fp16":
        return Qnn()
    case, generator = SUBJECTS[subject], torch.Generator().manual_seed(1)
    batches = [case.batch(generator) for _ in range(4)]
    return Qnn(precision=precision, calibration=batches, calibration_lr=case.lr)


def test_what_is_delegated_can_be_told_without_the_libraries() -> None:
    case = SUBJECTS["residual_cnn"]
    batch = case.batch(torch.Generator().manual_seed(0))
    program = pockmobile.compile(
        model_of("residual_cnn"), batch[:1], batch[1:], target=Qnn(compiles=False)
    )
    method = program.manifest.methods["train_step"]
    assert method.num_partitions == 1
    reasons = {operator.reason for operator in method.outside}
    assert "16 bits are too coarse for the optimizer, which stays on the CPU" in reasons
    assert not any("convolution" in operator.operator for operator in method.outside)
