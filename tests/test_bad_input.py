"""Each mistake is answered by one line that names it, with no half-written output left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pockmobile import Session
from pockmobile.errors import ArtifactError, InputError, UnsupportedOperatorError
from tests.export_models import (
    CLASSIFIER,
    NUM_TOKENS,
    Broken,
    Classifier,
    Tokens,
    refused,
    run_export,
    save_state,
)

Capture = pytest.CaptureFixture[str]
WEIGHTED = "tests.export_models:weighted_loss"
VECTOR = "tests.export_models:vector_loss"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_state(tmp_path / "model.pt", Classifier())


# Files and models


def test_no_file_of_a_model(tmp_path: Path, capsys: Capture) -> None:
    missing, empty, text = (tmp_path / name for name in ("missing.pt", "empty.pt", "text.pt"))
    empty.touch()
    text.write_text("no model")
    script = tmp_path / "script.pt"
    torch.jit.script(nn.Linear(2, 2)).save(str(script))
    assert refused(capsys, missing) == (
        f"error: cannot read {missing}: No such file or directory\n"
    )
    assert f"{empty} is empty" in refused(capsys, empty)
    assert f"{text} is no file of a known kind" in refused(capsys, text)
    assert f"{script} is a TorchScript archive" in refused(capsys, script)


def test_a_forward_pass_that_fails(path: Path, tmp_path: Path, capsys: Capture) -> None:
    factory = ("--model", CLASSIFIER)
    assert refused(capsys, path, *factory, "--input-shape", 7) == (
        "error: the model's forward pass fails on example inputs of shape [8, 7]: mat1 and "
        "mat2 shapes cannot be multiplied (8x7 and 6x6)\n"
    )
    broken = save_state(tmp_path / "broken.pt", Broken())
    factory = ("--model", "tests.export_models:Broken")
    assert "of shape [8, 6]: no features today" in refused(
        capsys, broken, *factory, "--input-shape", 6
    )
    assert "broken.pt does not fit Classifier: missing blocks" in refused(
        capsys, broken, "--model", CLASSIFIER, "--input-shape", 6
    )


def test_data_dependent_control_flow(path: Path, tmp_path: Path, capsys: Capture) -> None:
    weights = save_state(tmp_path / "branching.pt", Branching())
    line = refused(
        capsys, weights, "--model", "tests.test_bad_input:Branching", "--input-shape", 6
    )
    assert line.startswith("error: torch.export cannot capture the model: ")


class Branching(nn.Module):
    """Takes its way by a value, which a program cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, features: Tensor) -> Tensor:
        output = self.linear(features)
        return output if output.sum() > 0 else -output


# Losses and plans


@pytest.mark.parametrize(
    ("loss", "target", "message"),
    [
        ("cross_entropy", torch.zeros(4), "loss cross_entropy needs int64 labels of shape [4]"),
        ("next_token", None, "loss next_token needs outputs [batch, time > 1, vocabulary]"),
        ("mse", torch.zeros(4, 2), "loss mse needs float32 targets of shape [4, 3]"),
        ("mae", None, "unknown loss 'mae': did you mean mse"),
        (VECTOR, torch.zeros(4, 3), "must return one float32 number, found torch.float32 [4]"),
        (VECTOR, torch.zeros(4, 5), f"loss {VECTOR} fails on outputs of shape [4, 3] and"),
        (WEIGHTED, None, "is your own, so example targets must be given"),
    ],
)
def test_a_loss_that_does_not_fit(
    path: Path, tmp_path: Path, capsys: Capture, loss: str, target: Tensor | None, message: str
) -> None:
    examples = tmp_path / "examples.pt"
    content = {"features": torch.randn(4, 6)} | ({} if target is None else {"target": target})
    torch.save(content, examples)
    arguments = ("--model", CLASSIFIER, "--example-inputs", examples, "--loss", loss)
    assert message in refused(capsys, path, *arguments)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("heads", "unknown plan 'heads': expected full, head, bias, last:N"),
        ("last:9", "the plan asks for the last 9 blocks, the model has 2"),
        ("no.json", "cannot read the plan no.json: No such file or directory"),
        (
            {"head.wieght": None},
            "'head.wieght', which the model cannot train: did you mean head.weight, head.bias",
        ),
        (
            {"head.weight": {"dim": 1, "start": 0, "stop": 99}},
            "slice 0:99 of head.weight is not inside 0:6",
        ),
    ],
)
def test_a_plan_that_does_not_fit(
    path: Path, tmp_path: Path, capsys: Capture, plan: str | dict[str, Any], message: str
) -> None:
    if isinstance(plan, dict):
        file = tmp_path / "plan.json"
        file.write_text(json.dumps({"format": 1, "preset": None, "update": plan}))
        plan = str(file)
    arguments = ("--model", CLASSIFIER, "--input-shape", 6, "--plan", plan)
    assert message in refused(capsys, path, *arguments)


# Operators


class Around(nn.Module):
    """An operator, named `layer`, between two layers that can be trained."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.layer = layer
        self.head = nn.Linear(8, 3)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(features)))


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _taken(x: Tensor) -> Tensor:
    return x + torch.take(x, torch.arange(8))


def _inverse(x: Tensor) -> Tensor:
    return x @ torch.linalg.inv(x.t() @ x + torch.eye(8))


_FORWARD = Lambda.forward.__code__
LINE = f"{_FORWARD.co_filename}:{_FORWARD.co_firstlineno + 1}"
ANYWAY = "; replace that layer"
IN_TRAINING = "; replace that layer, or train only what comes after it (plan head or last:N)"
OPERATORS = {
    "fft": (
        Lambda(lambda x: torch.fft.fft(x).real),
        f"aten.fft_fft.default (from layer, {LINE}) computes with complex numbers",
    ),
    "inverse": (
        Lambda(_inverse),
        f"no kernel for aten.linalg_inv_ex.default (from layer, {LINE}), "
        f"aten._linalg_check_errors.default (from layer, {LINE})" + ANYWAY,
    ),
    "running product": (
        Lambda(lambda x: x.cumprod(-1)),
        f"no kernel for aten.cumprod.default (from layer, {LINE})" + ANYWAY,
    ),
    "elements taken": (
        Lambda(_taken),
        f"no kernel for aten.put.default (from layer, {LINE})" + IN_TRAINING,
    ),
    "transposed convolution in 3D": (
        nn.Sequential(nn.Unflatten(1, (1, 2, 2, 2)), nn.ConvTranspose3d(1, 1, 1), nn.Flatten()),
        "the runtime's aten.convolution.default takes 1 or 2 dimensions, not 3, as in layer.1",
    ),
}


@pytest.mark.parametrize(
    ("name", "target"),
    [(name, "portable") for name in OPERATORS]
    + [("running product", "xnnpack"), ("inverse", "xnnpack")],
)
def test_an_operator_that_the_runtime_lacks(name: str, target: str) -> None:
    from pockmobile import compile

    layer, message = OPERATORS[name]
    with pytest.raises(UnsupportedOperatorError) as caught:
        compile(Around(layer), (torch.randn(4, 8),), target=target)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_comes_before_the_training_may_lack_a_gradient() -> None:
    from pockmobile import compile

    layer, _ = OPERATORS["elements taken"]
    compile(Around(layer), (torch.randn(4, 8),), target="portable", plan="head")


def test_the_command_says_which_operator(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "model.pt2"
    model = Around(OPERATORS["running product"][0])
    torch.export.save(torch.export.export(model, (torch.randn(4, 8),)), path)
    line = refused(capsys, path, status=1)
    assert "no kernel for aten.cumprod.default (from layer, " in line


# What a session is handed


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pockmobile import compile

    path = tmp_path_factory.mktemp("tokens") / "tokens.pte"
    ids = torch.zeros(2, 5, dtype=torch.int64)
    compile(Tokens(), (ids,), loss="next_token").save(path)
    return path


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (
            [[NUM_TOKENS] * 5],
            [[0] * 5],
            f"ids[0, 0] is {NUM_TOKENS}, expected 0 <= value <= 10",
        ),
        ([[0] * 5], [[0] * 4 + [-1]], "target[0, 4] is -1, expected 0 <= value <= 10, or -100"),
        ([[0] * 4], [[0] * 5], "ids has shape [1, 4], expected [rows, 5]"),
        ([[0.0] * 5], [[0] * 5], "ids has dtype float32, expected int64"),
        ([[0] * 5] * 3, [[0] * 5] * 3, "found 3 rows, the program trains on at most 2 a step"),
    ],
)
def test_a_session_refuses(
    program: Path, inputs: list[Any], targets: list[Any], message: str
) -> None:
    session = Session(program)
    before = session.state
    with pytest.raises(InputError) as caught:
        session.step(torch.tensor(inputs), torch.tensor(targets), lr=0.1)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    for name, value in session.state.items():
        assert torch.equal(value, before[name])


def test_a_program_cut_short(program: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.pte"
    short.write_bytes(program.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="it was cut short, or another tool wrote it"):
        Session(short)


# What stood there before


def test_a_failure_leaves_the_former_program(path: Path, capsys: Capture) -> None:
    output = path.with_name("net.pte")
    arguments = (path, "-o", output, "--model", CLASSIFIER, "--plan", "head")
    run_export(capsys, *arguments, "--input-shape", 6, "--target", "portable")
    before = output.read_bytes()
    refused(capsys, *arguments, "--input-shape", 7)
    assert output.read_bytes() == before
