"""A session trains in step with eager PyTorch, and answers every wrong input with one line."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from pockmobile.artifact.manifest import Tensor
from pockmobile.artifact.program import check_program
from pockmobile.errors import (
    CheckpointError,
    InputError,
    NonFiniteError,
    UsageError,
)
from pockmobile.session import EvaluationResult, Session
from tests.tiny_program import (
    BATCH,
    BIAS,
    KIND_TABLE,
    PREDICT_BATCH,
    WEIGHT,
    Rows,
    features,
    random_rows,
    tiny_manifest,
    write_tiny_program,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_program(tmp_path_factory.mktemp("tiny") / "tiny.pte").path


@pytest.fixture
def session(path: Path) -> Session:
    return Session(path)


def _logits(state: Mapping[str, torch.Tensor], rows: Rows) -> torch.Tensor:
    hidden = features(rows[0], rows[1], KIND_TABLE)
    return hidden @ state["head.weight"].t() + state["head.bias"]


def _assert_unchanged(session: Session, before: Mapping[str, torch.Tensor]) -> None:
    assert all(torch.equal(session.state[name], tensor) for name, tensor in before.items())


def test_steps_follow_eager_pytorch(session: Session) -> None:
    weight, bias = WEIGHT.clone().requires_grad_(), BIAS.clone().requires_grad_()
    optimizer = torch.optim.SGD([weight, bias], lr=0.3)
    for seed in range(20):
        rows = random_rows(BATCH - seed % 2, seed)  # every other batch is filled up
        loss = torch.nn.functional.cross_entropy(
            _logits({"head.weight": weight, "head.bias": bias}, rows), rows[2]
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert session.step(rows[:2], rows[2], 0.3) == pytest.approx(loss.item(), abs=1e-5)
    assert session.num_steps == 20
    torch.testing.assert_close(session.state["head.weight"], weight.detach())
    torch.testing.assert_close(session.parameters["head.bias"], bias.detach())


def test_losses_fall_and_state_changes_the_answers(session: Session) -> None:
    rows = random_rows(BATCH)
    before = session.predict(rows[:2])
    losses = [session.step(rows[:2], rows[2], 0.5) for _ in range(20)]
    assert losses[-1] < losses[0] / 2
    after = session.predict(rows[:2])
    assert isinstance(before, torch.Tensor)
    assert isinstance(after, torch.Tensor)
    assert not torch.equal(before, after)


def test_state_is_a_copy(session: Session) -> None:
    session.state["head.weight"].zero_()
    session.parameters["head.weight"].zero_()
    _assert_unchanged(session, {"head.weight": WEIGHT, "head.bias": BIAS})


def test_results_survive_the_next_call(session: Session) -> None:
    rows = random_rows(PREDICT_BATCH)
    first = session.predict(rows[:2])
    assert isinstance(first, torch.Tensor)
    kept = first.clone()
    other = random_rows(PREDICT_BATCH, 5)
    session.predict(other[:2])
    session.step(other[:2], other[2], 0.1)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 8])
def test_predict_gives_one_row_for_each(session: Session, num_rows: int) -> None:
    rows = random_rows(num_rows)
    found = session.predict(rows[:2])
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, _logits(session.state, rows))


@pytest.mark.parametrize("num_rows", [1, 4, 7, 12])
def test_evaluate_is_the_mean_overrandom_rows(session: Session, num_rows: int) -> None:
    rows = random_rows(num_rows)
    labels = rows[2].clone()
    labels[1:3] = -100  # shorter than the data for one row
    logits = _logits(session.state, rows)
    result = session.evaluate(rows[:2], labels)
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert result.loss == pytest.approx(expected.item(), abs=1e-5)
    assert result.metrics["num_counted"] == int((labels != -100).sum())
    assert result.metrics["num_correct"] == int((logits.argmax(1) == labels).sum())
    assert result.accuracy == result.metrics["num_correct"] / result.metrics["num_counted"]
    assert session.num_steps == 0


def test_evaluate_skips_batches_without_labels(session: Session) -> None:
    rows = random_rows(2 * BATCH)
    labels = rows[2].clone()
    labels[:BATCH] = -100
    result = session.evaluate(rows[:2], labels)
    assert result.metrics["num_counted"] == BATCH
    assert math.isfinite(result.loss)


VALUES, KINDS, LABELS = random_rows(BATCH)


def test_too_many_rows_for_a_step(session: Session) -> None:
    rows = random_rows(BATCH + 1)
    with pytest.raises(
        InputError, match="found 5 rows, the program trains on at most 4 a step"
    ):
        session.step(rows[:2], rows[2], 0.1)


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        (-0.1, "lr is -0.1, expected a finite number that is not negative"),
        (math.nan, "lr is nan, expected a finite number"),
        (1e39, "lr is 1e.39, expected a finite number"),  # infinite in float32
        ("0.1", "lr is a str, expected a number"),
        (True, "lr is a bool, expected a number"),
    ],
)
def test_wrong_learning_rates(session: Session, lr: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        session.step((VALUES, KINDS), LABELS, lr)


def test_numpy_learning_rate_is_taken(session: Session) -> None:
    assert math.isfinite(session.step((VALUES, KINDS), LABELS, np.float32(0.1)))  # type: ignore[arg-type]


def test_loss_that_is_not_finite_leaves_the_state(session: Session) -> None:
    session.step((VALUES, KINDS), LABELS, 0.1)
    before = session.state
    with pytest.raises(
        NonFiniteError, match=r"the loss of step 2 is (nan|inf); the state is as"
    ):
        session.step((VALUES.sign() * 3e38, KINDS), LABELS, 0.1)
    _assert_unchanged(session, before)
    assert session.num_steps == 1


def test_state_that_is_not_finite_leaves_the_state(session: Session) -> None:
    with pytest.raises(NonFiniteError, match=r"step 1 makes head\.weight infinite or NaN"):
        session.step((VALUES * 1e20, KINDS), LABELS, 1e30)
    _assert_unchanged(session, {"head.weight": WEIGHT, "head.bias": BIAS})


def test_targets_without_an_ignored_value(tmp_path: Path) -> None:
    file = write_tiny_program(tmp_path / "tiny.pte", {'"ignored":-100': '"ignored":null'})
    session = Session(file.path)
    rows = random_rows(BATCH)
    session.step(rows[:2], rows[2], 0.1)
    with pytest.raises(
        InputError, match="labels has 3 rows of a batch of 4, and no label that"
    ):
        session.step((VALUES[:3], KINDS[:3]), LABELS[:3], 0.1)
    more = random_rows(BATCH + 2)
    with pytest.raises(InputError, match=r"labels has 2 rows .* give a multiple of 4 rows"):
        session.evaluate(more[:2], more[2])


def test_output_without_a_row_for_each(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = session.manifest
    summary = Tensor("summary", "output", (7,), "float32")
    predict = replace(manifest.methods["predict"], outputs=(summary,))
    changed = replace(manifest, methods={**manifest.methods, "predict": predict})
    monkeypatch.setattr(session._program, "manifest", changed)
    rows = random_rows(PREDICT_BATCH + 1)
    with pytest.raises(InputError, match=r"output summary has shape \[7\].* give exactly 2"):
        session.predict(rows[:2])


def test_accuracy_needs_correct_labels() -> None:
    with pytest.raises(InputError, match="measures num_counted: there is no accuracy"):
        _ = EvaluationResult(1.0, {"num_counted": 2.0}).accuracy
    with pytest.raises(InputError, match="measures no metrics"):
        _ = EvaluationResult(1.0, {}).accuracy


def test_save_restore_reset(session: Session, path: Path, tmp_path: Path) -> None:
    initial, file = session.state, tmp_path / "me.safetensors"
    for seed in range(3):
        rows = random_rows(BATCH, seed)
        session.step(rows[:2], rows[2], 0.2)
    trained = session.state
    session.save(file, {"user": "me"})
    session.reset()
    _assert_unchanged(session, initial)
    assert session.num_steps == 0

    other = Session(path)
    assert other.restore(file) == {"user": "me"}
    _assert_unchanged(other, trained)
    assert other.num_steps == 3
    session.restore(file)
    assert session.step(rows[:2], rows[2], 0.2) == other.step(rows[:2], rows[2], 0.2)


def test_failed_restore_leaves_the_state(session: Session, tmp_path: Path) -> None:
    session.step((VALUES, KINDS), LABELS, 0.2)
    before, file = session.state, tmp_path / "me.safetensors"
    session.save(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is cut short"):
        session.restore(file)
    foreign = Session(
        write_tiny_program(tmp_path / "other.pte", {"TinyClassifier": "OtherClassifie"}).path
    )
    foreign.save(file)
    with pytest.raises(CheckpointError, match="belongs to program"):
        session.restore(file)
    _assert_unchanged(session, before)
    assert session.num_steps == 1


def test_failed_save_leaves_the_former_file(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.save(tmp_path / "me.safetensors")
    session.step((VALUES, KINDS), LABELS, 0.2)

    def fail(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        session.save(tmp_path / "me.safetensors")
    session.restore(tmp_path / "me.safetensors")
    assert session.num_steps == 0


def test_manifest_and_digest(session: Session, path: Path) -> None:
    assert session.manifest == tiny_manifest()
    assert session.program_sha256 == check_program(path).sha256
    # The last 65 bytes of the file say it: apps need not hash megabytes.
    assert path.read_bytes()[-65:-1].decode() == session.program_sha256


def test_threads(path: Path) -> None:
    from executorch.extension.pybindings import portable_lib

    Session(path, threads=1)
    assert portable_lib._threadpool_get_thread_count() == 1
    for wrong in (0, 1.5, True):
        with pytest.raises(UsageError, match="expected a whole number from 1"):
            Session(path, threads=wrong)  # type: ignore[arg-type]


_CHANGES_THREADS = """
import sys
import pockmobile
from pockmobile.session import Session
import torch
x, y = torch.randn(8, 16), torch.randint(4, (8,))
model = torch.nn.Sequential(torch.nn.Linear(16, 300), torch.nn.ReLU(), torch.nn.Linear(300, 4))
pockmobile.compile(model, (x,), (y,), optimizer=pockmobile.SGD()).save(sys.argv[1])
sessions = [Session(sys.argv[1], threads=number) for number in (2, 2, 3, 1)]
for threads in (2, 1, 3):
    first = [session.step(x, y, 0.1) for session in sessions]
    Session(sys.argv[1], threads=threads)
    assert len({round(loss, 4) for loss in first}) == 1
losses = [session.step(x, y, 0.1) for session in sessions]
assert max(losses) < first[0]
"""


def test_torch_keeps_out_of_the_way_of_a_step(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    borrow = session._program.borrow

    def watched(name: str, tensors: Any) -> Any:
        found.append(torch.get_num_threads())
        return borrow(name, tensors)

    monkeypatch.setattr(session._program, "borrow", watched)
    before, rows = torch.get_num_threads(), random_rows(BATCH, 0)
    torch.set_num_threads(2)
    try:
        session.step(rows[:2], rows[2], 0.1)
        with pytest.raises(InputError):
            session.step(rows[:2], rows[2], -1.0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert found == [1]


def test_sessions_that_are_open_survive_a_change_of_threads(tmp_path: Path) -> None:
    # In a process of its own: one that waits for the threads of a pool that is gone hangs.
    path = tmp_path / "model.pte"
    command = [sys.executable, "-c", _CHANGES_THREADS, str(path)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)


_USES_A_SESSION = """
import json, sys
import executorch.runtime, numpy, safetensors.torch, torch
before = set(sys.modules)
from pockmobile.session import EvaluationResult, Session
session = Session(sys.argv[1])
inputs = (torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64))
session.step(inputs, inputs[1], 0.1)
session.predict(inputs)
session.evaluate(inputs, inputs[1])
session.save(sys.argv[2])
session.restore(sys.argv[2])
session.reset()
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_imports_no_compiler(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _USES_A_SESSION, str(path), str(tmp_path / "me.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    # What the ExecuTorch runtime itself drags in (parts of its exporter) is not ours to choose.
    imported = json.loads(done.stdout.splitlines()[-1])
    assert "pockmobile.session.session" in imported
    own = {name.split(".")[1] for name in imported if name.startswith("pockmobile.")}
    # `qualcomm` finds libraries that the runtime needs where a program is for QNN.
    assert own == {"artifact", "errors", "plan", "qualcomm", "session"}
    assert not [
        name for name in imported if name.startswith(("executorch.exir", "torch.export"))
    ]
