"""The guards against what ExecuTorch's QNN backend gets wrong without a word."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pockmobile
from pockmobile.errors import UnsupportedOperatorError, UsageError
from pockmobile.targets import Qnn
from pockmobile.targets.qnn.guards import (
    Signature,
    check_rounded,
    check_signature,
    order_outputs,
)
from tests.parity_cases import SUBJECTS, model_of
from tests.passes.graphs import trace
from tests.targets.qnn import check_on_simulator, needs_libraries
from tests.targets.running import rewritten


class _Outputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        early = x + y
        return early * 2.0, early - y


def _program() -> torch.export.ExportedProgram:
    return torch.export.export(_Outputs(), (torch.zeros(2, 3), torch.zeros(2, 3)))


def _names(program: torch.export.ExportedProgram) -> list[str]:
    return [node.name for node in program.graph.nodes]


def test_outputs_are_computed_in_the_order_in_which_they_are_returned() -> None:
    program = _program()
    add, mul, sub = (node for node in program.graph.nodes if node.op == "call_function")
    add.append(sub)  # As a pass does that joins transpositions.
    assert _names(program).index(sub.name) < _names(program).index(mul.name)
    order_outputs(program)
    assert _names(program) == ["x", "y", add.name, mul.name, sub.name, "output"]
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(program.module()(x, y), _Outputs()(x, y))


def _signature(outputs: list[str]) -> Signature:
    inputs = [("input_1_y@0", (2, 3)), ("input_0_x@0", (2, 3))]
    return Signature(inputs, [(f"output_{name}@0", (2, 3)) for name in outputs])


def test_a_blob_must_return_what_its_program_does() -> None:
    program = _program()
    check_signature(program, _signature(["mul", "sub"]))
    with pytest.raises(AssertionError, match=r"output_sub@0.* in the place of .*output_mul@0"):
        check_signature(program, _signature(["sub", "mul"]))
    with pytest.raises(AssertionError, match=r"None in the place of .*output_sub@0"):
        check_signature(program, _signature(["mul"]))


def test_a_value_that_stays_a_float_among_whole_numbers_is_refused() -> None:
    message = (
        r"QNN has no int16 for add\.Tensor, mul\.Tensor, sub\.Tensor; choose precision fp16"
    )
    with pytest.raises(UnsupportedOperatorError, match=message):
        check_rounded(_program())


@needs_libraries
def test_outputs_behind_transpositions_keep_their_places() -> None:
    """Of one shape all: only the numbers tell them apart."""

    def function(x: Tensor) -> list[Tensor]:
        turned = x.permute(0, 2, 3, 1)
        convolved = nn.functional.conv2d(x, torch.eye(4).reshape(4, 4, 1, 1) * 3.0)
        return [
            x * 2.0,
            convolved.permute(0, 2, 3, 1),
            turned + 1.0,
            turned.permute(0, 3, 1, 2),
        ]

    check_on_simulator(function, torch.randn(4, 4, 4, 4))


def test_several_delegates_are_refused_with_the_operators_between_them() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        first = (x @ w).relu() * 2.0 + 1.0
        return (first.sort(-1)[0] @ w).relu() * 2.0 + 1.0

    inputs = {"x": torch.randn(3, 4), "w": torch.randn(4, 4)}
    graph = rewritten(trace(function, inputs), Qnn())
    with pytest.raises(UnsupportedOperatorError) as caught:
        Qnn(compiles=False).lower(graph)
    assert str(caught.value) == (
        "QNN would need 2 delegates and takes one, because of aten.sort.default (from the "
        "loss: QNN has no such operator for a training step); replace the layers that need "
        "them, train only what comes after them (plan head or last:N), or choose target xnnpack"
    )


@pytest.mark.parametrize(
    ("soc", "message"),
    [
        ("SM8651", "unknown SoC 'SM8651': did you mean SM8650, SM8850, SM8845?"),
        ("SM8350", r"SoC SM8350 has a Hexagon v68; float16 needs v69: choose one of .*SM8650"),
    ],
)
def test_processors_without_float16_are_refused(soc: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        Qnn(soc=soc)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> pockmobile.Session:
    case = SUBJECTS["residual_cnn"]
    inputs, labels = case.batch(torch.Generator().manual_seed(0))
    program = pockmobile.compile(
        model_of("residual_cnn"), (inputs,), (labels,), plan="head", target=Qnn()
    )
    path = tmp_path_factory.mktemp("qnn") / "model.pte"
    program.save(path)
    return pockmobile.Session(path)


@needs_libraries
def test_no_trainable_weight_is_baked_in(session: pockmobile.Session) -> None:
    """Two states give two losses and two predictions; the file has each weight once."""
    case = SUBJECTS["residual_cnn"]
    inputs, labels = case.batch(torch.Generator().manual_seed(1))
    before = session.evaluate(inputs, labels).loss, session.predict(inputs)
    start = session.state
    session.step(inputs, labels, lr=50.0)
    after = session.evaluate(inputs, labels).loss, session.predict(inputs)
    assert abs(before[0] - after[0]) > 0.01
    assert (before[1] - after[1]).abs().max() > 0.01
    file = Path(session._program.path).read_bytes()
    for value in start.values():
        if value.count_nonzero() and value.numel() > 4:
            assert file.count(value.numpy().tobytes()) == 1
            assert value.half().numpy().tobytes() not in file


@needs_libraries
def test_the_report_names_what_is_inside(session: pockmobile.Session) -> None:
    (delegate,) = session.manifest.methods["train_step"].delegates
    assert delegate.backend == "QnnBackend"
    assert delegate.num_bytes > 10_000
    assert delegate.operators["aten.convolution.default"] >= 5
    assert session.manifest.target_options == {
        "soc": "SM8650", "precision": "fp16", "loss_scale": 256.0
    }  # fmt: skip
