"""Pass: folds a scale and a shift for each channel into the convolution before them."""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, fx

from pockmobile.graph import JointGraph
from pockmobile.graph.joint import add_constant, constant_value
from pockmobile.graph.rewrite import call, replace_node, shape_of
from pockmobile.passes.base import Numerics, Pass, finish, pays_to_scale

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class FoldScale(Pass):
    """Folds frozen BatchNorms into convolutions, forward and backward.

    Scaling a constant weight costs nothing at a step. A trained one is scaled, and so is its
    gradient, unless it is larger than what it makes: then activations are.

    Of a shift that is trained, what is constant is folded.

    Before: add(mul(convolution(x, weight), scale), shift)
            convolution_backward(mul(grad, scale), x, weight)
            add(convolution(x, weight), view(add(constant, trained)))
    After:  convolution(x, mul(weight, scale), shift)
            convolution_backward(grad, x, mul(weight, scale)), its weight gradient scaled
            add(convolution(x, weight, constant), view(trained))
    """

    name = "fold-scale"
    numerics = Numerics.CLOSE

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph with scales and shifts folded."""
        if not any(_foldable(node) or _partly_foldable(node) for node in graph.nodes):
            return graph
        graph = graph.copy()
        for node in list(graph.nodes):
            found, part = _foldable(node), _partly_foldable(node)
            if found is not None:
                _FOLDS[node.target](graph, node, *found)
            elif part is not None:
                _fold_part(graph, part)
        return finish(graph)


def _foldable(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Returns the convolution or gradient that `node` scales or shifts, and the constant."""
    if node.target is _aten.convolution_backward.default:
        return _scaled_gradient(node)
    if node.target not in _FOLDS or node.kwargs:
        return None
    for source, other in _both_ways(node):
        if _is_convolution(source) and _is_per_channel(other, shape_of(source)):
            if node.target is _aten.mul.Tensor and not pays_to_scale(source.args[1], source):
                continue
            bias = source.args[2]
            if bias is None or bias.op == "get_attr":  # type: ignore[union-attr]
                return source, other
    return None


@final
@dataclass(frozen=True)
class _Shift:
    """A frozen convolution, and the view of the sum of a constant that shifts it with another.

    Nothing else reads the two.
    """

    convolution: fx.Node
    view: fx.Node
    constant: fx.Node
    trained: fx.Node


def _partly_foldable(node: fx.Node) -> _Shift | None:
    if node.target is not _aten.add.Tensor or node.kwargs:
        return None
    for source, view in _both_ways(node):
        if not _is_convolution(source) or source.args[1].op != "get_attr":  # type: ignore
            continue
        total: Any = view.args[0] if view.target is _aten.view_copy.default else None
        is_only = total is not None and len(view.users) == 1 == len(total.users)
        if not is_only or total.target is not _aten.add.Tensor or total.kwargs:
            continue
        channels = [shape_of(source)[1]]
        for constant, trained in _both_ways(total):
            if constant.op == "get_attr" and shape_of(constant) == channels:
                return _Shift(source, view, constant, trained)
    return None


def _scaled_gradient(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    grad: Any = node.args[0]
    if grad.target is not _aten.mul.Tensor or node.args[7]:
        return None
    if not pays_to_scale(node.args[2], grad):
        return None
    for source, scale in _both_ways(grad):
        if _is_per_channel(scale, shape_of(grad)) and shape_of(source) == shape_of(grad):
            return source, scale
    return None


def _both_ways(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    left, right = node.args[:2]
    if isinstance(left, fx.Node) and isinstance(right, fx.Node):
        yield left, right
        yield right, left


def _is_convolution(node: fx.Node) -> bool:
    is_plain = node.target is _aten.convolution.default and not node.args[6]
    return is_plain and len(node.users) == 1


def _is_per_channel(node: fx.Node, shape: list[int]) -> bool:
    """Whether the node is a constant of shape [1, channels, 1, ...]."""
    if node.op != "get_attr":
        return False
    wanted = [1, shape[1], *[1] * (len(shape) - 2)]
    found = shape_of(node)
    return [1] * (len(shape) - len(found)) + found == wanted


def _fold_mul(graph: JointGraph, node: fx.Node, convolution: fx.Node, scale: fx.Node) -> None:
    factor = constant_value(scale).reshape(-1)
    _, weight, bias, *_ = convolution.args
    with graph.module.graph.inserting_before(convolution):
        scaled = _scaled_weight(graph, weight, factor)
        if bias is not None:
            bias = add_constant(graph.module, constant_value(bias) * factor)  # type: ignore[arg-type]
    convolution.args = (convolution.args[0], scaled, bias, *convolution.args[3:])
    replace_node(node, convolution)


def _fold_add(graph: JointGraph, node: fx.Node, convolution: fx.Node, shift: fx.Node) -> None:
    _add_to_bias(graph, convolution, constant_value(shift).reshape(-1))
    replace_node(node, convolution)


def _add_to_bias(graph: JointGraph, convolution: fx.Node, value: Tensor) -> None:
    bias: Any = convolution.args[2]
    total = value if bias is None else value + constant_value(bias)
    with graph.module.graph.inserting_before(convolution):
        folded = add_constant(graph.module, total)
    convolution.update_arg(2, folded)


def _fold_part(graph: JointGraph, shift: _Shift) -> None:
    _add_to_bias(graph, shift.convolution, constant_value(shift.constant))
    shift.view.update_arg(0, shift.trained)


def _fold_backward(graph: JointGraph, node: fx.Node, grad: fx.Node, scale: fx.Node) -> None:
    factor = constant_value(scale).reshape(-1)
    weight: Any = node.args[2]
    with graph.module.graph.inserting_before(node):
        scaled = _scaled_weight(graph, weight, factor)
    node.args = (grad, node.args[1], scaled, *node.args[3:])
    for item in list(node.users):
        assert item.target is operator.getitem
        if item.args[1] == 0:
            continue
        users = list(item.users)
        with graph.module.graph.inserting_after(item):
            constant = add_constant(graph.module, _along_outputs(factor, shape_of(item)))
        with graph.module.graph.inserting_after(constant):
            product = call(graph.module.graph, _aten.mul.Tensor, item, constant)
        for user in users:
            user.replace_input_with(item, product)


def _scaled_weight(graph: JointGraph, weight: Any, factor: Tensor) -> fx.Node:
    """Returns a weight [out, in, ...] times `factor` [out], at the insert point."""
    along = _along_outputs(factor, shape_of(weight))
    if weight.op == "get_attr":
        return add_constant(graph.module, constant_value(weight) * along)
    constant = add_constant(graph.module, along)
    return call(graph.module.graph, _aten.mul.Tensor, weight, constant)


def _along_outputs(factor: Tensor, shape: list[int]) -> Tensor:
    return factor.reshape(-1, *[1] * (len(shape) - 1))


_FOLDS: Final[Mapping[Any, Callable[[JointGraph, fx.Node, fx.Node, fx.Node], None]]] = {
    _aten.mul.Tensor: _fold_mul,
    _aten.add.Tensor: _fold_add,
    _aten.convolution_backward.default: _fold_backward,
}
