"""Interpreted Core ML programs train as eager PyTorch does, and faults are caught."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import pockmobile
from pockmobile.errors import UsageError
from pockmobile.session import Session
from pockmobile.targets.coreml import support
from pockmobile.targets.coreml.target import Precision
from pockmobile.testing.coreml import CoreMLDelegate
from tests.coreml_cases import (
    ALL_COREML,
    LIMITS,
    CoreMLCase,
    baked,
    check,
    compile_coreml,
    coreml_model,
    difference,
)
from tests.interpreted import InterpretedSession
from tests.parity_cases import OPTIMIZERS

_SELECTED = (
    CoreMLCase("mlp", "full", "fp32"),
    CoreMLCase("mlp", "slices", "fp32", "adamw"),
    CoreMLCase("mlp", "sparse", "fp16"),
    CoreMLCase("llama", "sparse", "fp32", "lion"),
    CoreMLCase("encoder", "slices", "fp16"),
    CoreMLCase("mobilenet_v2", "sparse", "fp32"),
)
_MLP = CoreMLCase("mlp", "full", "fp32")
_NUM_STEPS = 3


def _check(case: CoreMLCase, num_steps: int) -> None:
    outcome = check(case, num_steps)
    assert outcome.difference <= LIMITS[case.precision]
    assert outcome.num_partitions == 1
    assert outcome.num_outside == 0
    assert outcome.num_baked == 0


@pytest.mark.parametrize("case", _SELECTED, ids=str)
def test_training_follows_eager(case: CoreMLCase) -> None:
    _check(case, 20 if case.subject == "mlp" else 3)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL_COREML, ids=str)
def test_training_follows_eager_everywhere(case: CoreMLCase) -> None:
    _check(case, 20)


@pytest.fixture(scope="module")
def program() -> pockmobile.Program:
    return compile_coreml(_MLP)


def _difference(session: InterpretedSession) -> float:
    return difference(_MLP, session, _NUM_STEPS)


def _train_with(session: InterpretedSession, delegate: object) -> None:
    session.program.replace_delegate("train_step", delegate)  # type: ignore[arg-type]


def test_the_right_program_is_near_eager(program: pockmobile.Program) -> None:
    assert _difference(InterpretedSession(program)) < LIMITS["fp32"] / 10


def test_a_wrong_weight_is_caught(program: pockmobile.Program) -> None:
    session = InterpretedSession(program)
    weight = session.parameters[0]
    weight[0, 0] += 0.01 * weight.abs().max()
    assert _difference(session) > LIMITS["fp32"]


def test_a_wrong_order_of_outputs_is_caught(program: pockmobile.Program) -> None:
    session = InterpretedSession(program)
    right = session.program.delegate("train_step")
    assert isinstance(right, CoreMLDelegate)
    swapped = list(right.outputs)
    shapes = {value.name: tuple(value.shape) for value in right.function.outputs}
    first, second = [i for i, name in enumerate(swapped) if shapes[name] == (32,)]
    swapped[first], swapped[second] = swapped[second], swapped[first]
    _train_with(session, CoreMLDelegate(right.function, right.inputs, tuple(swapped)))
    assert _difference(session) > LIMITS["fp32"]


def test_a_wrong_order_of_operands_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    sub = torch.ops.aten.sub.Tensor
    right = support.EMITTERS[sub]
    turned = {**support.EMITTERS, sub: lambda e, node, x, y: right(e, node, y, x)}
    monkeypatch.setattr("pockmobile.targets.coreml.delegate.EMITTERS", turned)
    assert _difference(InterpretedSession(compile_coreml(_MLP))) > LIMITS["fp32"]


class _Baked:
    """A delegate that computes with the weights of its first call, whatever it is given."""

    def __init__(self, delegate: CoreMLDelegate, num_baked: int) -> None:
        self.outputs = delegate.outputs
        self._delegate, self._num_baked = delegate, num_baked
        self._first: Sequence[Tensor] | None = None

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        self._first = self._first or [tensor.clone() for tensor in tensors]
        changed = [*self._first[: self._num_baked], *tensors[self._num_baked :]]
        return self._delegate.run(changed)


def test_a_baked_in_weight_is_caught(program: pockmobile.Program) -> None:
    session = InterpretedSession(program)
    right = session.program.delegate("train_step")
    assert isinstance(right, CoreMLDelegate)
    _train_with(session, _Baked(right, 1))
    assert _difference(session) > LIMITS["fp32"]


def test_a_frozen_weight_lies_in_the_delegate_and_a_trained_one_does_not() -> None:
    model = coreml_model("mlp")
    frozen = dict(model.named_parameters())["layers.0.weight"]
    program = pockmobile.compile(model, (torch.zeros(4, 16),), plan="head", target="coreml")
    session = InterpretedSession(program)
    assert baked(session, [frozen])
    assert not baked(session, session.parameters)


def test_the_same_model_gives_the_same_bytes(program: pockmobile.Program) -> None:
    assert compile_coreml(_MLP).buffer == program.buffer


def test_two_states_give_two_losses_and_predictions(program: pockmobile.Program) -> None:
    session = InterpretedSession(program)
    inputs, labels = torch.randn(4, 16), torch.tensor([0, 1, 2, -100])
    seen = []
    for _ in range(2):
        loss, correct, counted = session.program.run(
            "evaluate", [*session.parameters, inputs, labels]
        )
        (output,) = session.program.run("predict", [*session.parameters, inputs[:1]])
        assert counted == 3
        assert 0 <= correct <= 3
        seen.append((float(loss), output))
        session.step(inputs, labels, lr=0.5)
    assert seen[0][0] != seen[1][0]
    assert not torch.equal(seen[0][1], seen[1][1])


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_a_split_step_is_the_whole_step(loss: str) -> None:
    """In fp16, clipped, so that much is outside the delegate."""
    inputs = torch.randn(4, 16)
    labels = torch.tensor([0, 1, 2, -100]) if loss == "cross_entropy" else torch.rand(4, 4)
    whole, split = (
        InterpretedSession(
            pockmobile.compile(
                coreml_model("mlp"), (inputs,), (labels,), loss=loss, plan="head",
                target=pockmobile.CoreML(precision="fp16"), split=is_split, clip_norm=0.5,
            )
        )
        for is_split in (False, True)
    )  # fmt: skip
    (latents,) = split.program.run("encode", [inputs])
    assert whole.step(inputs, labels, lr=0.1) == split.step(latents, labels, lr=0.1)
    for name, value in whole.state.items():
        assert torch.equal(value, split.state[name])
        assert value.dtype == torch.float32


def test_a_session_says_what_is_missing(program: pockmobile.Program, tmp_path: object) -> None:
    path = f"{tmp_path}/model.pte"
    program.save(path)
    with pytest.raises(UsageError, match=r"for target coreml and runs on CoreMLBackend, which"):
        Session(path)


def test_the_report_shows_the_delegates(program: pockmobile.Program) -> None:
    report = program.report()
    assert "for coreml (precision fp32, ios 17, compute_units all)" in report
    assert "\n  train_step  CoreMLBackend  " in report
    method = program.manifest.methods["train_step"]
    (delegate,) = method.delegates
    assert sum(delegate.operators.values()) == method.num_operators
    assert delegate.num_bytes == len(InterpretedSession(program).program.blob("train_step"))


class _Remainder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x).fmod(0.5))
        return result


def test_an_operator_that_core_ml_lacks_stays_outside() -> None:
    program = pockmobile.compile(
        _Remainder(), (torch.randn(2, 8),), plan="head", target="coreml"
    )
    outside = program.manifest.methods["train_step"].outside
    assert ("aten.fmod.Scalar", "Core ML has no such operator") in [
        (item.operator, item.reason) for item in outside
    ]
    assert not any("getitem" in item.operator for item in outside)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, r"precision is 'fp8', expected one of fp32, fp16"),
        ({"ios": 14}, r"ios is 14, expected one of 15, 16, 17, 18"),
        ({"compute_units": "npu"}, r"compute_units is 'npu', expected one of all, cpu_only"),
        ({"loss_scale": 0.5}, r"loss_scale is 0\.5, expected 1 to 32768"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pockmobile.CoreML(**options)  # type: ignore[arg-type]


def _for_release(ios: int, precision: Precision, plan: str) -> pockmobile.Program:
    return pockmobile.compile(
        coreml_model("mlp"),
        (torch.zeros(4, 16),),
        plan=plan,
        optimizer=OPTIMIZERS["sgd"],
        target=pockmobile.CoreML(ios=ios, precision=precision),
    )


@pytest.mark.parametrize(("ios", "precision"), [(15, "fp16"), (16, "fp32"), (18, "fp32")])
def test_other_releases(ios: int, precision: Precision) -> None:
    program = _for_release(ios, precision, "full")
    assert _difference(InterpretedSession(program)) <= LIMITS[precision]


@pytest.mark.parametrize(("ios", "count"), [(17, 3), (18, 1)])
def test_frozen_weights_are_in_the_file_once_from_ios_18_on(ios: int, count: int) -> None:
    program = _for_release(ios, "fp32", "head")
    weight = dict(coreml_model("mlp").named_parameters())["layers.0.weight"]
    assert program.buffer.count(weight.detach().numpy().tobytes()) == count
    assert program.buffer == _for_release(ios, "fp32", "head").buffer
    if ios == 18:
        session = InterpretedSession(program)
        assert session.program.blob("train_step") == session.program.blob("predict")
        assert _difference(session) <= LIMITS["fp32"]
