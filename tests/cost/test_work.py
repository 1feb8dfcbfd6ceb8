"""The work and the memory of known operators, against numbers worked out by hand."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from pockmobile.cost.work import NO_LOAD, Load, Work, load_of, work_of
from pockmobile.graph import JointGraph
from pockmobile.graph.joint import constant_nodes
from pockmobile.graph.rewrite import call
from pockmobile.targets import Target
from pockmobile.targets.portable import Portable
from pockmobile.targets.xnnpack import Xnnpack
from tests.passes.graphs import NO_TENSORS, aten, trace

FLOAT = 4


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


def works(
    function: Callable[..., Any],
    inputs: Mapping[str, Tensor],
    constants: Mapping[str, Tensor] = NO_TENSORS,
) -> dict[Work, float]:
    """Returns the work of a function that is one operator."""
    graph = trace(function, inputs, constants=constants)
    (node,) = [node for node in graph.nodes if node.op == "call_function"]
    return dict(work_of(node, constant_nodes(graph)))


def load(
    function: Callable[..., Any],
    inputs: Mapping[str, Tensor],
    *,
    target: Target | None = None,
    dying: tuple[str, ...] = (),
    constants: Mapping[str, Tensor] = NO_TENSORS,
) -> Load:
    graph = trace(function, inputs, constants=constants)
    return load_of(graph, target or Portable(), dying)


@pytest.mark.parametrize(
    ("function", "inputs", "products", "weight"),
    [
        (aten.mm.default, {"a": ones(3, 5), "b": ones(5, 7)}, 3 * 5 * 7, 5 * 7),
        (aten.bmm.default, {"a": ones(2, 3, 5), "b": ones(2, 5, 7)}, 2 * 3 * 5 * 7, 2 * 5 * 7),
        (
            aten.addmm.default,
            {"bias": ones(7), "a": ones(3, 5), "b": ones(5, 7)},
            3 * 5 * 7,
            5 * 7,
        ),
    ],
)
def test_products(function: Any, inputs: dict[str, Tensor], products: int, weight: int) -> None:
    found = dict(works(function, inputs))
    assert found.pop(Work.BYTES) >= FLOAT * sum(value.numel() for value in inputs.values())
    assert found == {
        Work.DENSE: products, Work.PACKED: FLOAT * weight, Work.OPERATORS: 1,
    }  # fmt: skip


def test_a_linear_layer_is_a_product() -> None:
    # Tracing writes it as others; targets write it as itself.
    graph = fx.Graph()
    x, weight, bias = (graph.placeholder(name) for name in ("x", "weight", "bias"))
    values = {x: ones(2, 3, 5), weight: ones(7, 5), bias: ones(7)}
    for node, value in values.items():
        node.meta["val"] = value.to("meta")
    found = work_of(call(graph, aten.linear.default, x, weight, bias), {bias})
    assert found == {
        Work.DENSE: 2 * 3 * 5 * 7, Work.PACKED: FLOAT * 35, Work.OPERATORS: 1,
        Work.BYTES: FLOAT * (2 * 3 * 5 + 7 * 5 + 2 * 3 * 7),
    }  # fmt: skip


def test_the_weight_of_a_frozen_product_is_not_packed_at_each_step() -> None:
    found = works(aten.mm.default, {"a": ones(3, 5)}, {"b": ones(5, 7)})
    assert found == {
        Work.DENSE: 3 * 5 * 7, Work.OPERATORS: 1, Work.BYTES: FLOAT * (3 * 5 + 3 * 7),
    }  # fmt: skip


def convolve(
    *, stride: int = 1, padding: int = 0, groups: int = 1, transposed: bool = False
) -> Callable[..., Tensor]:
    def function(x: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = aten.convolution.default(
            x, weight, None, [stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], groups
        )
        return result

    return function


@pytest.mark.parametrize(
    ("function", "x", "weight", "kind", "products"),
    [
        # Output 6x6: each of the 8x3x3x3 weights at each of 2x6x6 places.
        (convolve(), (2, 3, 8, 8), (8, 3, 3, 3), Work.DENSE, 2 * 6 * 6 * 8 * 3 * 9),
        (
            convolve(stride=2, padding=1),
            (2, 3, 8, 8), (8, 3, 3, 3), Work.DENSE, 2 * 4 * 4 * 8 * 3 * 9,
        ),
        # Depthwise: one input channel for each output channel.
        (
            convolve(padding=1, groups=6),
            (2, 6, 8, 8), (6, 1, 3, 3), Work.GROUPED, 2 * 8 * 8 * 6 * 9,
        ),
        # Transposed: each weight meets each place of the 4x4 input.
        (
            convolve(stride=2, transposed=True),
            (2, 3, 4, 4), (3, 8, 2, 2), Work.DENSE, 2 * 4 * 4 * 3 * 8 * 4,
        ),
    ],
)  # fmt: skip
def test_convolutions(
    function: Any, x: tuple[int, ...], weight: tuple[int, ...], kind: Work, products: int
) -> None:
    found = works(function, {"x": ones(*x), "weight": ones(*weight)})
    assert found[kind] == products
    assert set(found) == {kind, Work.BYTES, Work.OPERATORS}


@pytest.mark.parametrize(
    ("mask", "factor"),
    [([True, False, False], 1), ([False, True, False], 1), ([True, True, True], 2)],
)
def test_each_result_of_a_convolutions_backward_is_as_much_work_as_the_convolution(
    mask: list[bool], factor: int
) -> None:
    def backward(grad: Tensor, x: Tensor, weight: Tensor) -> Any:
        results = aten.convolution_backward.default(
            grad, x, weight, [8], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, mask
        )
        return next(result for result in results if result is not None)

    inputs = {"grad": ones(2, 8, 6, 6), "x": ones(2, 3, 8, 8), "weight": ones(8, 3, 3, 3)}
    graph = trace(backward, inputs)
    totals = [work_of(n, set()) for n in graph.nodes if n.op == "call_function"]
    forward = works(convolve(), {"x": inputs["x"], "weight": inputs["weight"]})
    assert totals[0][Work.DENSE] == factor * forward[Work.DENSE]
    assert totals[1] == {}, "picking a result is free"


def test_other_operators_move_bytes() -> None:
    found = works(lambda a, b: a + b, {"a": ones(3, 5), "b": ones(5)})
    assert found == {Work.BYTES: FLOAT * (15 + 5 + 15), Work.OPERATORS: 1}


def test_constants_are_not_counted_as_moved() -> None:
    found = works(lambda a, b: a + b, {"a": ones(3, 5)}, {"b": ones(5)})
    assert found == {Work.BYTES: FLOAT * (15 + 15), Work.OPERATORS: 1}


def test_a_load_sums_the_work_and_leaves_out_what_is_constant() -> None:
    found = load(lambda a, b: (a + b.exp()).tanh(), {"a": ones(4)}, constants={"b": ones(4)})
    assert found.work == {Work.BYTES: FLOAT * (4 + 4 + 4 + 4), Work.OPERATORS: 2}


def chain(x: Tensor) -> Tensor:
    return x.exp().tanh().exp()


def test_what_is_held_above_the_result_is_transient() -> None:
    # Two values of 16 bytes live at once, and the last one is the result.
    assert load(chain, {"x": ones(4)}).transient_bytes == 16


def test_an_input_that_dies_makes_room() -> None:
    # Inputs that die count as held before: at most two values ever live, x among them.
    assert load(chain, {"x": ones(4)}, dying=("x",)).transient_bytes == 0
    found = load(lambda x: x.sum().reshape(1), {"x": ones(4)}, dying=("x",))
    assert found.transient_bytes == 0


def test_views_move_nothing_on_xnnpack() -> None:
    def viewed(x: Tensor) -> Tensor:
        result: Tensor = aten.permute_copy.default(aten.view_copy.default(x, [2, 2]), [1, 0])
        return result

    assert load(viewed, {"x": ones(4)}, target=Xnnpack()).work == {}
    assert load(viewed, {"x": ones(4)}).work == {Work.BYTES: 2 * 16, Work.OPERATORS: 1}


def test_single_numbers_beside_a_delegate_make_it_no_hosts() -> None:
    def scaled(x: Tensor, step: Tensor) -> Tensor:
        return x * torch.expm1(step)

    inputs = {"x": ones(4), "step": ones(1)}
    assert not load(scaled, inputs, target=Xnnpack()).is_host
    assert load(scaled, {**inputs, "step": ones(4)}, target=Xnnpack()).is_host
    assert load(lambda step: step.expm1(), {"step": ones(1)}, target=Xnnpack()).is_host


def test_results_that_lie_elsewhere_are_not_held() -> None:
    graph = trace(chain, {"x": ones(4)})
    assert load_of(graph, Portable(), writes_outside=True).transient_bytes == 32


def test_an_operator_that_no_delegate_takes_is_the_hosts() -> None:
    assert load(chain, {"x": ones(4)}).is_host
    assert not load(chain, {"x": ones(4)}, target=Xnnpack()).is_host
    assert load(lambda x: x.cumsum(0).exp(), {"x": ones(4)}, target=Xnnpack()).is_host


def test_an_empty_graph_is_no_load() -> None:
    graph: JointGraph = trace(lambda x: x, {"x": ones(4)})
    found = load_of(graph, Portable())
    assert (found.work, found.is_host) == (NO_LOAD.work, NO_LOAD.is_host)
