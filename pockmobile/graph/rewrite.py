"""Helpers with which passes add operators to a graph."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

from pockmobile.graph.joint import add_constant, fake_like

MODULE_KEY: Final = "module"
"""Where a node keeps the path of the module that it came from, for reports."""
LINE_KEY: Final = "line"
"""Where it keeps the file and line of the model's source, for errors."""
AGAIN_KEY: Final = "again"
"""Set where a value is computed a second time on purpose, not to be kept in between."""

OPTIMIZER: Final = "(optimizer)"
"""The path of what belongs to no module but to the optimizer; no module can have it."""


_FACTORIES: Final = (torch.ops.aten.full.default, torch.ops.aten.scalar_tensor.default)


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """Returns the positional arguments, whose types FX does not know."""
    return node.args


def result_index(node: fx.Node) -> int:
    """Returns which result of an operator with several a `getitem` node takes."""
    return int(arguments(node)[1])


def value_of(node: fx.Node) -> Tensor:
    """Returns the meta tensor of a node that yields one tensor."""
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value


def shape_of(node: fx.Node) -> list[int]:
    """Returns the shape of a node's tensor."""
    return [int(size) for size in value_of(node).shape]


def num_bytes(node: fx.Node) -> int:
    """Returns the size of all tensors that a node yields."""
    value = node.meta["val"]
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    values = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return sum(value.numel() * value.element_size() for value in values)


def infer(target: Any, args: Any, kwargs: Any) -> Any:
    """Runs `target` on the meta tensors of its arguments; the results are contiguous."""
    args, kwargs = tree_map(
        lambda leaf: leaf.meta["val"] if isinstance(leaf, fx.Node) else leaf,
        (args, dict(kwargs)),
    )
    if "device" in kwargs or target in _FACTORIES:
        kwargs = {**kwargs, "device": torch.device("meta")}
    return contiguous(target(*args, **kwargs))


def contiguous(value: Any) -> Any:
    """Returns meta tensors of contiguous strides in the place of the tensors in `value`."""
    return tree_map(lambda leaf: leaf.contiguous() if isinstance(leaf, Tensor) else leaf, value)


def is_random(node: fx.Node) -> bool:
    """Whether the operator draws random numbers, so that two calls differ."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags


_MOVING: Final = (
    torch.ops.aten.cat.default,
    torch.ops.aten.slice_copy.Tensor,
    torch.ops.aten.view_copy.default,
    torch.ops.aten.permute_copy.default,
    torch.ops.aten.expand_copy.default,
)


def is_pointwise(node: fx.Node) -> bool:
    """Whether an operator computes each element of its result by itself."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def is_cheap(node: fx.Node) -> bool:
    """Whether an operator computes each element by itself, or only moves them."""
    if node.op != "call_function" or is_random(node):
        return False
    return is_pointwise(node) or node.target in _MOVING


def origin(node: fx.Node) -> dict[str, str]:
    """Returns the part of a node's meta that says where it came from."""
    return {key: str(node.meta.get(key, "")) for key in (MODULE_KEY, LINE_KEY)}


def call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Adds a call with its meta value; it comes from where its first argument does."""
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = infer(target, args, kwargs)
    parents = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, fx.Node)]
    if parents:
        node.meta.update(origin(parents[0]))
    return node


def inline(
    graph: fx.Graph, function: Callable[..., Any], args: Sequence[Any], *, module: str = ""
) -> list[fx.Node]:
    """Traces `function` over `args` (nodes, numbers, lists) and adds its operators.

    Numbers that the function makes tensors of become constants. `module` is the path of the
    module that the operators belong to. Returns one node for each tensor that the function
    returns.
    """
    return splice(graph, traced(function, args), args, place={MODULE_KEY: module})


def traced(function: Callable[..., Any], args: Sequence[Any]) -> fx.GraphModule:
    """Returns what `function` does with `args` (nodes, numbers, lists), for `splice`."""
    nodes = nodes_of(args)

    def on_tensors(*tensors: Tensor) -> list[Tensor]:
        feed = dict(zip(nodes, tensors, strict=True))
        real = tree_map(lambda arg: feed[arg] if isinstance(arg, fx.Node) else arg, list(args))
        return [leaf for leaf in tree_leaves(function(*real)) if leaf is not None]

    module = make_fx(on_tensors)(*(node.meta["val"] for node in nodes))
    assert isinstance(module, fx.GraphModule)
    return module


def nodes_of(args: Sequence[Any]) -> list[fx.Node]:
    """Returns the nodes among arguments, however deep, in order."""
    return [leaf for leaf in tree_leaves(list(args)) if isinstance(leaf, fx.Node)]


def splice(
    graph: fx.Graph,
    traced: fx.GraphModule,
    args: Sequence[Any],
    *,
    place: Mapping[str, str],
) -> list[fx.Node]:
    """Adds traced operators, which take the nodes among `args`; returns their results.

    `place` is where they come from, as `origin` says it.
    """
    owner = graph.owning_module
    assert owner is not None
    feed = iter(nodes_of(args))
    memo: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            memo[node] = next(feed)
        elif node.op == "get_attr":
            memo[node] = add_constant(owner, getattr(traced, str(node.target)))
        elif node.op == "call_function":
            memo[node] = graph.node_copy(node, memo.__getitem__)
            memo[node].meta = {"val": to_meta(node.meta["val"]), **place}
        else:
            return [memo[result] for result in tree_leaves(node.args) if result is not None]
    raise AssertionError("a graph without output")


def to_meta(value: Any) -> Any:
    """Returns meta tensors in the place of the tensors in `value`."""
    return tree_map(lambda leaf: fake_like(leaf) if isinstance(leaf, Tensor) else leaf, value)


def replace_node(node: fx.Node, replacement: fx.Node) -> None:
    """Puts `replacement` in the place of `node` and erases `node`."""
    node.replace_all_uses_with(replacement)
    node.graph.erase_node(node)


def replace_results(node: fx.Node, results: Sequence[fx.Node | None]) -> None:
    """Puts `results` in the place of the `getitem` nodes of a node with several results."""
    for user in list(node.users):
        assert user.target is operator.getitem
        result = results[result_index(user)]
        if user.users:
            assert result is not None, f"{user.format_node()} was not computed"
            user.replace_all_uses_with(result)
        node.graph.erase_node(user)
    node.graph.erase_node(node)
