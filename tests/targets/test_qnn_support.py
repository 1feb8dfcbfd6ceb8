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
from pockmobile.targets.qnn.extraction import extract, input_shape
from pockmobile.targets.qnn.support import OPERATORS, refusal, refusal_in_int16
from pockmobile.targets.rewrites.pads import is_symmetric, pad_by_joining
from tests.passes.graphs import trace

aten = torch.ops.aten


def test_executorch_has_a_builder_for_each_operator() -> None:
    # A number beside a tensor becomes one before.
    ours = {
        str(target).replace(".Scalar", ".Tensor")
        for target in OPERATORS
        if target is not operator.getitem
    }
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
        (lambda x: aten.amax(x), (3,), "one number, cheaper outside"),
        (lambda x: x.sum([0]), (3000, 1), "float16 adds up to 2048 numbers only"),
        (lambda x: x > 0.0, (2,), "QNN's truth values stay inside the delegate"),
        (lambda x: aten.index_put(x, [x[0].long()], x[0]), (2, 2), "no such operator"),
        (lambda x: aten.constant_pad_nd(x, [0, 1, 0, 1]), (1, 1, 2, 2), "QNN pads both sides"),
        (lambda x: aten.gelu(x, approximate="tanh"), (2,), "a GELU by tanh"),
        (lambda x: aten.add(x, x, alpha=2.0), (2,), "with alpha"),
        (lambda x: aten.convolution(x, x, None, [1], [0], [1], False, [0], 1), (2, 2, 2),
         "so they must be frozen"),
    ],
)  # fmt: skip
def test_refusals_say_why(function: object, shape: tuple[int, ...], reason: str) -> None:
    assert reason in str(refusal(_last(function, torch.ones(shape)), ()))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_arithmetic_is_for_floats(dtype: torch.dtype) -> None:
    assert refusal(_last(lambda x: x + x, torch.ones(2, dtype=dtype)), ()) == (
        "QNN takes floats here, no whole numbers"
    )


def test_whole_numbers_are_compared_in_32_bits() -> None:
    def chosen(x: Tensor) -> Tensor:
        return (x == 1).float()

    assert refusal(_last(chosen, torch.ones(2, dtype=torch.int32)), ()) is None
    wide = _last(chosen, torch.ones(2, dtype=torch.int64))
    assert refusal(wide, ()) == "QNN's truth values stay inside the delegate"
    assert "no whole numbers" in str(refusal(wide.all_input_nodes[0], ()))


def test_a_kernel_comes_in_as_a_matrix() -> None:
    """As an image of 3x3 it would take QNN minutes to bring it out of its layout."""
    graph = trace(lambda w: w.reshape(8, 36) * 2.0, {"w": torch.randn(8, 4, 3, 3)})
    calls = [node for node in graph.nodes if node.op == "call_function"]
    for node in calls:
        if node.target is aten.view.default:
            node.target = aten.view_copy.default
    module = extract(calls, graph.placeholders, graph.results, {})
    assert input_shape(graph.placeholders[0]) == [8, 36]
    shapes = [n.args[1] for n in module.graph.nodes if n.target is aten.view_copy.default]
    assert shapes == [[8, 36]]
    w = torch.randn(8, 36)
    torch.testing.assert_close(module(w)[0], w * 2.0)


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


def _chosen(x: Tensor, num_classes: int) -> Tensor:
    """Returns the sum of what is chosen among classes, as a loss has it."""
    row = x.expand(1, 1, 1, num_classes)
    return torch.where(row > 0.5, row, 0.0 * row).sum([3])


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (torch.log, "QNN's logarithm of 16-bit numbers is 0"),
        (lambda x: aten.clamp(x, 0.1, 2.0), "cuts 16-bit numbers off below 0"),
        (
            lambda x: aten.convolution(x, x, None, [1, 1], [0, 0], [2, 2], False, [0, 0], 1),
            "a dilated convolution of 16-bit numbers wrong",
        ),
        (lambda x: _chosen(x, 65), "the sum of a choice among over 64 16-bit numbers wrong"),
        (lambda x: _chosen(x, 64), None),
        (lambda x: x.expand(1, 1, 1, 3000).sum([3]), None),
        (lambda x: aten.clamp(x, 0.1), None),
        (lambda x: aten.clamp(x, 0.0, 1.0), None),
        (lambda x: x + x, None),
    ],
)
def test_what_float16_has_and_16_bit_numbers_have_not(
    function: object, reason: str | None
) -> None:
    found = refusal_in_int16(_last(function, torch.rand(1, 1, 1, 1)))
    assert found == reason if reason is None else reason in str(found)
