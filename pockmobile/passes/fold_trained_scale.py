"""Pass: folds a trained scale for each channel into the trained convolution before it."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import (
    arguments,
    call,
    origin,
    replace_node,
    replace_results,
    shape_of,
)
from pockmobile.passes.base import Numerics, Pass, finish, pays_to_scale

_aten = torch.ops.aten
_MUL: Final = _aten.mul.Tensor


@final
@dataclass(frozen=True)
class FoldTrainedScale(Pass):
    """Folds the scale and shift of trained BatchNorms into trained convolutions.

    The weight is scaled instead of the activations, forward and backward. What the scale's
    gradient sums over all pixels, the weight's gradient has summed already: z is linear in the
    weight, so that sum(grad * z) is sum(weight * d), with d the weight's gradient for `grad`.
    So z need not be kept either. It pays where the weight is smaller than what it makes.

    A shift alone becomes the bias.

    Before: z = convolution(x, weight); add(mul(z, scale), shift)
            sum(mul(grad, z)); convolution_backward(mul(grad, scale), x, weight)
    After:  convolution(x, mul(weight, scale), shift)
            d = convolution_backward(grad, x, mul(weight, scale))
            sum(mul(weight, d)), and mul(d, scale) as the weight's gradient
    """

    name = "fold-trained-scale"
    numerics = Numerics.CLOSE

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph with trained scales folded."""
        if not any(_matched(node) or _shifted_by(node) for node in graph.nodes):
            return graph
        graph = graph.copy()
        for node in list(graph.nodes):
            match, shift = _matched(node), _shifted_by(node)
            if match is not None:
                _fold(graph.module.graph, match)
            elif shift is not None:
                _fold_shift(graph.module.graph, node, *shift)
        return finish(graph)


@final
@dataclass(frozen=True)
class _Match:
    """A convolution, what scales its result, and its gradient; the sums are the scale's."""

    convolution: fx.Node
    scaled: fx.Node
    scale: fx.Node
    backward: fx.Node
    grad: fx.Node
    sums: tuple[fx.Node, ...]


def _matched(node: fx.Node) -> _Match | None:
    if node.target is not _aten.convolution.default:
        return None
    _, weight, bias, _, _, _, is_transposed, *_ = arguments(node)
    if is_transposed or bias is not None or weight.op == "get_attr":
        return None
    if not pays_to_scale(weight, node):
        return None
    found = [(user, scale) for user in node.users for scale in _by_channel(user, node, _MUL)]
    if len(found) != 1:
        return None
    scaled, scale = found[0]
    backward = _backward(scale, node)
    sums = [_sum_of(user) for user in node.users if user is not scaled]
    if backward is None or not all(item and backward[1] in item[1] for item in sums):
        return None
    return _Match(node, scaled, scale, *backward, tuple(item[0] for item in sums if item))


def _shifted_by(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Returns what shifts a trained convolution, its only user, and by what."""
    if node.target is not _aten.convolution.default or len(node.users) != 1:
        return None
    _, weight, bias, _, _, _, is_transposed, *_ = arguments(node)
    if is_transposed or bias is not None or weight.op == "get_attr":
        return None
    (user,) = node.users
    shifts = list(_by_channel(user, node, _aten.add.Tensor))
    return (user, shifts[0]) if shifts and shifts[0].op == "call_function" else None


def _by_channel(node: fx.Node, value: fx.Node, target: Any) -> Iterator[fx.Node]:
    """Yields what has a number for each channel of `value`, if `node` is it and `value`."""
    if node.target is target and not node.kwargs:
        sizes = shape_of(value)
        for other in node.all_input_nodes:
            if shape_of(other) == [1, sizes[1], *[1] * (len(sizes) - 2)] != sizes:
                yield other


def _sum_of(product: fx.Node) -> tuple[fx.Node, Any] | None:
    """Returns a product's sum over all but the channels, its only user, and its factors."""
    if product.target is not _MUL or len(product.users) != 1:
        return None
    (user,) = product.users
    if user.target is not _aten.sum.dim_IntList:
        return None
    rank = len(shape_of(product))
    dims = {dim % rank for dim in arguments(user)[1]}
    return (user, product.args) if dims == {0, *range(2, rank)} else None


def _backward(scale: fx.Node, convolution: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Returns the convolution's backward operator, and the gradient before it was scaled."""
    for product in scale.users:
        if product.target is not _MUL or len(product.users) != 1:
            continue
        (user,) = product.users
        factors = [arg for arg in product.all_input_nodes if arg is not scale]
        if (
            user.target is _aten.convolution_backward.default
            and user.args[:3] == (product, *convolution.args[:2])
            and arguments(user)[10][1]
        ):
            return user, factors[0]
    return None


def _fold_shift(
    graph: fx.Graph, convolution: fx.Node, shifted: fx.Node, shift: fx.Node
) -> None:
    x, weight, _, *rest = arguments(convolution)
    with graph.inserting_before(shifted):
        bias = call(graph, _aten.view_copy.default, shift, shape_of(weight)[:1])
        result = call(graph, convolution.target, x, weight, bias, *rest)
    result.meta.update(origin(convolution))
    replace_node(shifted, result)


def _fold(graph: fx.Graph, match: _Match) -> None:
    x, weight, _, *rest = arguments(match.convolution)
    outputs, *others = shape_of(weight)
    place, shift = _shifted(match)
    with graph.inserting_before(place):
        along = [outputs, *[1] * len(others)]
        factor = call(graph, _aten.view_copy.default, match.scale, along)
        folded = call(graph, _MUL, factor, weight)
        bias = shift and call(graph, _aten.view_copy.default, shift, [outputs])
        result = call(graph, match.convolution.target, x, folded, bias, *rest)
    result.meta.update(origin(match.convolution))
    _fold_backward(graph, match, folded, factor)
    replace_node(place, result)


def _shifted(match: _Match) -> tuple[fx.Node, fx.Node | None]:
    """Returns the last of a convolution's scale and shift, and by what it shifts."""
    if len(match.scaled.users) == 1:
        (user,) = match.scaled.users
        for shift in _by_channel(user, match.scaled, _aten.add.Tensor):
            return user, shift
    return match.scaled, None


def _fold_backward(graph: fx.Graph, match: _Match, folded: fx.Node, factor: fx.Node) -> None:
    _, x, weight, *rest = arguments(match.backward)
    first = min([match.backward, *(arguments(item)[0] for item in match.sums)])
    dims = list(range(1, len(shape_of(weight))))
    with graph.inserting_before(first):
        made = call(graph, match.backward.target, match.grad, x, folded, *rest)
        made.meta.update(origin(match.backward))
        results = [
            call(graph, operator.getitem, made, index) if is_asked else None
            for index, is_asked in enumerate(rest[-1])
        ]
        gradient = results[1]
        for item in match.sums:
            product = call(graph, _MUL, gradient, weight)
            total = call(graph, _aten.sum.dim_IntList, product, dims)
            replace_node(item, call(graph, _aten.view_copy.default, total, shape_of(item)))
        results[1] = call(graph, _MUL, gradient, factor)
    replace_results(match.backward, results)
