"""Low-rank adapters (Hu et al., LoRA, ICLR 2022) beside linear layers and 1x1 convolutions."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, fx

from pockmobile.capture.forward import Forward
from pockmobile.errors import PlanError, nearest
from pockmobile.plan import ADAPTER_A, ADAPTER_B

_aten = torch.ops.aten
_SEED: Final = 0
PRODUCTS: Final[Mapping[Any, tuple[int, int]]] = {
    _aten.addmm.default: (1, 2),
    _aten.mm.default: (0, 1),
    _aten.matmul.default: (0, 1),
}
"""Products with a weight [in, out] -> which arguments are the input and the weight."""

_CONVOLUTIONS: Final = (_aten.conv2d.default, _aten.conv2d.padding)
_GEOMETRY: Final = (1, 0, 1, 1)
"""A convolution's stride, padding, dilation and groups where they are left out."""


def with_adapters(forward: Forward, adapters: Mapping[str, int]) -> Forward:
    """Adds `x A^T B^T` to each linear layer that `adapters` names by its weight.

    The parameters are `<weight>.lora_a` [rank, in], uniform as in `nn.Linear`, and
    `<weight>.lora_b` [out, rank], zeros: at the start the model is the one that it was. A
    1x1 convolution without groups is a linear layer at each place; its factors have two
    more dimensions of size one. Where a layer multiplies by its weight [in, out] as it is
    (GPT-2's), the factors have the same shapes.

    Raises:
        PlanError: a name that is no such layer's weight, or a rank that it cannot have.
    """
    if not adapters:
        return forward
    graph = fx.Graph()
    graph.output(graph.graph_copy(forward.graph.graph, {}))
    module = fx.GraphModule(forward.graph, graph)
    layers = _adaptable(module, forward)
    parameters, tensors = dict(forward.parameters), dict(forward.tensors)
    generator = torch.Generator().manual_seed(_SEED)
    for weight, rank in adapters.items():
        if weight not in layers:
            raise PlanError(
                f"{weight!r} is no weight of a linear layer or 1x1 convolution: "
                f"{nearest(weight, layers)}"
            )
        value = forward.parameters[weight]
        is_turned = layers[weight][0].target in PRODUCTS
        low = _start(weight, rank, value.t() if is_turned else value, generator)
        for name, value in low.items():
            attribute = name.replace(".", "__")
            module.register_buffer(attribute, value)
            tensors[attribute], parameters[name] = name, value
        for node in layers[weight]:
            _insert(node, [name.replace(".", "__") for name in low])
    module.recompile()
    trainable = forward.trainable | (parameters.keys() - forward.parameters.keys())
    return replace(
        forward,
        graph=module,
        tensors=tensors,
        parameters=parameters,
        trainable=trainable,
        adapters=adapters,
    )


def highest_rank(node: fx.Node, weight: Tensor) -> int:
    """Returns the highest rank of an adapter; 0 if the operator is not linear in channels.

    Args:
        node: an operator of the forward pass.
        weight: its weight.
    """
    if node.target in PRODUCTS:
        return min(weight.shape) if weight.dim() == 2 else 0
    if node.target is _aten.linear.default:
        return min(weight.shape[:2])
    if node.target not in _CONVOLUTIONS or tuple(weight.shape[2:]) != (1, 1):
        return 0
    geometry: list[Any] = [*node.args[3:7], *_GEOMETRY[len(node.args[3:7]) :]]
    is_plain = geometry[1] in (0, [0, 0], "same", "valid") and geometry[3] == 1
    return min(weight.shape[:2]) if is_plain else 0


def _adaptable(module: fx.GraphModule, forward: Forward) -> dict[str, list[fx.Node]]:
    found: dict[str, list[fx.Node]] = {}
    for node in module.graph.nodes:
        _, index = _places(node)
        weight = node.args[index] if len(node.args) > index else None
        if node.op == "call_function" and getattr(weight, "op", "") == "get_attr":
            name = forward.tensors[str(weight.target)]  # type: ignore[union-attr]
            if name in forward.parameters and highest_rank(node, forward.parameters[name]):
                found.setdefault(name, []).append(node)
    return found


def _places(node: fx.Node) -> tuple[int, int]:
    """Returns which arguments of a linear operator are its input and its weight."""
    return PRODUCTS.get(node.target, (0, 1))


def _start(
    name: str, rank: int, weight: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    outputs, inputs, *places = weight.shape
    if not 0 < rank <= min(outputs, inputs):
        raise PlanError(f"{name} {list(weight.shape)} cannot have an adapter of rank {rank}")
    bound = 1.0 / math.sqrt(inputs)
    down, up = (rank, inputs, *places), (outputs, rank, *places)
    # On the meta device nothing is drawn.
    uniform = (
        torch.empty(down, dtype=weight.dtype, device="meta")
        if weight.is_meta
        else torch.rand(down, generator=generator, dtype=weight.dtype)
    )
    zeros = torch.zeros(up, dtype=weight.dtype, device=weight.device)
    return {f"{name}.{ADAPTER_A}": (2.0 * uniform - 1.0) * bound, f"{name}.{ADAPTER_B}": zeros}


def _insert(node: fx.Node, attributes: list[str]) -> None:
    graph, users = node.graph, list(node.users)
    is_product = node.target in PRODUCTS
    layer: Any = _aten.linear.default if is_product else node.target
    stride = () if is_product else node.args[3:4]
    with graph.inserting_before(node.next):
        down, up = (graph.get_attr(name) for name in attributes)
        # The stride belongs to the way down: the way up sees what is left.
        low = graph.call_function(layer, (node.args[_places(node)[0]], down, None, *stride))
        change = graph.call_function(layer, (low, up))
        total = graph.call_function(_aten.add.Tensor, (node, change))
    for added in (down, up, low, change, total):
        added.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, total)
