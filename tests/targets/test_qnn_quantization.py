"""How values become 16-bit numbers for QNN: encodings, and where rounding is written."""

from typing import Any, Final

import pytest
import torch
from torch import Tensor, fx, nn

from pockmobile.targets.qnn.encodings import RANGE_KEY, Range, affine, range_of, symmetric
from pockmobile.targets.qnn.quantization import quantize

aten = torch.ops.aten
_STEP: Final = 65535


def _module(function: Any, *ranges: Range, **buffers: Tensor) -> fx.GraphModule:
    """Returns the module of a function of placeholders; `ranges` are of all float nodes."""
    root = nn.Module()
    for name, value in buffers.items():
        root.register_buffer(name, value)
    graph = fx.Graph()
    function(graph)
    values = [n for n in graph.nodes if n.op in ("placeholder", "call_function")]
    for node, measured in zip(values, ranges, strict=True):
        node.meta[RANGE_KEY] = measured
    return fx.GraphModule(root, graph)


def _listing(module: fx.GraphModule) -> list[str]:
    """Returns the operators that are no rounding, each with the types its operands have."""
    kinds = {torch.int32: "u16", torch.int16: "i16"}
    lines = []
    for node in module.graph.nodes:
        if node.op == "call_function" and "quantize" not in str(node.target):
            parts = [
                kinds[x.args[-1]] if "dequantize" in x.name else "float"
                for x in node.all_input_nodes
            ]
            lines.append(f"{node.target.__name__}({', '.join(parts)})")
    return lines


def test_an_encoding_holds_zero_exactly_and_both_ends() -> None:
    for low, high in ((-1.0, 3.0), (2.0, 5.0), (-5.0, -2.0)):
        scale, zero, least, most, dtype = affine(low, high)
        assert (least, most, dtype) == (0, _STEP, torch.int32)
        assert 0 <= zero <= most
        assert (most - zero) * scale == pytest.approx(max(high, 0.0), abs=scale)
    assert affine(0.0, 0.0)[0] > 0.0
    assert symmetric(-4.0, 1.0) == (4.0 / 32767, 0, -32767, 32767, torch.int16)


def test_what_stands_for_infinity_does_not_widen_a_range() -> None:
    value = torch.tensor([-2.0, 3.0, torch.finfo(torch.float32).min])
    assert range_of(value) == Range(-2.0, 3.0, is_open=True)
    assert range_of(value[:2]) == Range(-2.0, 3.0)
    assert Range(-2.0, 3.0).joined(Range(-5.0, 1.0, is_open=True)) == Range(-5.0, 3.0, True)


def _product(graph: fx.Graph) -> None:
    x, y = graph.placeholder("x"), graph.placeholder("y")
    graph.output(graph.call_function(aten.mm.default, (x, y)))


def test_a_product_has_a_second_factor_whose_zero_is_in_the_middle() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(3, 4), torch.randn(4, 5)
    module = _module(_product, range_of(x), range_of(y), range_of(x @ y))
    assert _listing(quantize(module)) == ["mm.default(u16, i16)"]
    error = (module(x, y) - x @ y).abs().max() / (x @ y).abs().max()
    assert 0 < error < 2e-4


def test_a_number_becomes_a_constant_and_a_lower_limit_a_maximum() -> None:
    def function(graph: fx.Graph) -> None:
        x = graph.placeholder("x")
        least = graph.call_function(aten.clamp.default, (x, 0.5))
        graph.output(graph.call_function(aten.mul.Tensor, (least, 3.0)))

    x = torch.linspace(-2.0, 2.0, 9)
    module = _module(function, Range(-2.0, 2.0), Range(0.5, 2.0), Range(1.5, 6.0))
    assert _listing(quantize(module)) == ["maximum.default(u16, u16)", "mul.Tensor(u16, u16)"]
    torch.testing.assert_close(module(x), x.clamp(0.5) * 3.0, rtol=1e-4, atol=2e-4)


def test_what_is_moved_keeps_its_encoding_and_a_choice_gives_its_own() -> None:
    def function(graph: fx.Graph) -> None:
        x, chosen = graph.placeholder("x"), graph.placeholder("chosen")
        turned = graph.call_function(aten.permute_copy.default, (x, [1, 0]))
        zero = graph.get_attr("zero")
        graph.output(graph.call_function(aten.where.self, (chosen, turned, zero)))

    x = torch.randn(3, 4)
    wide = Range(-100.0, 100.0)  # Another range of the moved value: it must not count.
    module = _module(
        function, range_of(x), range_of(x), wide, Range(-9.0, 9.0), zero=torch.zeros(1)
    )
    del next(n for n in module.graph.nodes if n.name == "chosen").meta[RANGE_KEY]
    quantize(module)
    scales = {
        n.args[0].name: n.args[1] for n in module.graph.nodes if n.name.startswith("quant")
    }
    assert scales["permute_copy_default"] == scales["x"]
    (where,) = (n for n in module.graph.nodes if n.target is aten.where.self)
    encodings = {operand.args[1:] for operand in where.args[1:]}
    assert encodings == {next(iter(where.users)).args[1:]}


def test_a_constant_that_is_read_in_two_ways_is_two() -> None:
    def function(graph: fx.Graph) -> None:
        x, w = graph.placeholder("x"), graph.get_attr("w")
        product = graph.call_function(aten.mm.default, (x, w))
        graph.output(graph.call_function(aten.add.Tensor, (product, w)))

    x, w = torch.randn(4, 4), torch.randn(4, 4)
    ranges = range_of(x), range_of(x @ w), range_of(x @ w + w)
    module = quantize(_module(function, *ranges, w=w))
    assert _listing(module) == ["mm.default(u16, i16)", "add.Tensor(u16, u16)"]
    read = [n for n in module.graph.nodes if n.op == "get_attr"]
    assert len({str(n.target) for n in read}) == len(read) == 2
    torch.testing.assert_close(module(x), x @ w + w, rtol=1e-3, atol=1e-3)


def test_a_bias_has_room_beside_the_products() -> None:
    """QNN adds them up in 32 bits: a large bias in steps as fine as theirs ran over."""

    def function(graph: fx.Graph) -> None:
        x, w, b = graph.placeholder("x"), graph.get_attr("w"), graph.get_attr("b")
        rest = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        graph.output(graph.call_function(aten.convolution.default, (x, w, b, *rest)))

    x, w, b = (
        torch.rand(1, 2, 3, 3) * 0.1,
        torch.rand(2, 2, 1, 1) * 0.1,
        torch.tensor([5.0, 1.0]),
    )
    y = nn.functional.conv2d(x, w, b)
    module = quantize(_module(function, range_of(x), range_of(y), w=w, b=b))
    (node,) = (n for n in module.graph.nodes if n.target is aten.convolution.default)
    steps = [operand.args[1] for operand in node.args[:3]]
    assert steps[2] == pytest.approx(steps[0] * steps[1])
    assert 5.0 / steps[2] <= 2**29 * 1.001
    torch.testing.assert_close(module(x), y, rtol=1e-3, atol=1e-3)


def test_a_mask_is_one_at_most() -> None:
    """With room above it, 1 was rounded to a little more, of which the ceiling is 2."""

    def function(graph: fx.Graph) -> None:
        x = graph.placeholder("x")
        cut = graph.call_function(aten.clamp.default, (x, 0.0, 1.0))
        graph.output(graph.call_function(aten.ceil.default, (cut,)))

    module = _module(function, Range(-3.0, 3.0), Range(0.0, 1.0), Range(0.0, 1.0))
    found = quantize(module)(torch.linspace(-3.0, 3.0, 101))
    assert found.max() == 1.0
    assert set(found.tolist()) == {0.0, 1.0}
