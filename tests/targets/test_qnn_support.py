"""What is said of QNN without its libraries: what it takes, and why not the rest."""

import operator

import pytest
import torch
from executorch.backends.qualcomm import builders  # noqa: F401
from executorch.backends.qualcomm.builders.node_visitor_manager import _node_visitor_dict
from torch import Tensor, fx, nn

import pockmobile
from pockmobile import qualcomm
from pockmobile.errors import MissingLibraryError
from pockmobile.targets.qnn import Qnn
from pockmobile.targets.qnn.support import OPERATORS, refusal
from pockmobile.targets.rewrites.pads import is_symmetric, pad_by_joining
from tests.passes.graphs import trace

aten = torch.ops.aten


def test_executorch_has_a_builder_for_each_operator() -> None:
    ours = {str(target) for target in OPERATORS if target is not operator.getitem}
    assert ours <= set(_node_visitor_dict)


def _last(function: object, *inputs: Tensor) -> fx.Node:
    graph = trace(function, {f"x{i}": x for i, x in enumerate(inputs)})  # type: ignore[arg-type]
    return graph.results[0]


@pytest.mark.parametrize(
    ("function", "shape", "reason"),
    [
        (lambda x: x.sort(-1)[0], (2, 3), "QNN has no such operator for a training step"),
        (lambda x: aten._softmax(x, 0, False), (2, 3), "over the last dimension only"),
        (lambda x: aten.relu(x), (1,) * 6, "QNN takes at most 5 dimensions"),
        (lambda x: aten.relu(x), (), "one number, cheaper outside"),
        (lambda x: aten.constant_pad_nd(x, [0, 1, 0, 1]), (1, 1, 2, 2), "QNN pads both sides"),
        (lambda x: aten.gelu(x, approximate="tanh"), (2,), "a GELU by tanh"),
        (lambda x: aten.add(x, x, alpha=2.0), (2,), "with alpha"),
        (lambda x: aten.convolution(x, x, None, [1], [0], [1], False, [0], 1), (1, 1, 4),
         "so they must be frozen"),
    ],
)  # fmt: skip
def test_refusals_say_why(function: object, shape: tuple[int, ...], reason: str) -> None:
    assert reason in str(refusal(_last(function, torch.ones(shape)), ()))


def test_integers_are_refused() -> None:
    assert refusal(_last(lambda x: x + x, torch.ones(2, dtype=torch.int64)), ()) == (
        "QNN takes floats only"
    )


@pytest.mark.parametrize(
    "widths", [(0, 1, 0, 1), (2, 0), (1, 1, 2, 2, 0, 3), (0, 2, 0, 0, 0, 3)]
)
def test_pads_are_concatenations(widths: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, 4, 5)
    expected = nn.functional.pad(x, widths, value=1.5)
    torch.testing.assert_close(pad_by_joining(x, list(widths), 1.5), expected)


def test_pads_that_are_right_are_kept() -> None:
    assert pad_by_joining(torch.ones(1, 1, 2, 2), [1, 1, 2, 2]) is NotImplemented
    assert pad_by_joining(torch.ones(1, 1, 2, 2), [-1, -1]) is NotImplemented
    assert is_symmetric([1, 1, 2, 2])
    assert not is_symmetric([1, 1, 0, 0, 1, 1])


def test_missing_libraries_are_told_before_anything_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(qualcomm, "missing", lambda: "they are missing")
    stages: list[str] = []
    with pytest.raises(MissingLibraryError, match="they are missing"):
        pockmobile.compile(
            nn.Linear(3, 2), (torch.ones(4, 3),), target="qnn", progress=stages.append
        )
    assert stages == []
    Qnn(compiles=False).check_ready()
