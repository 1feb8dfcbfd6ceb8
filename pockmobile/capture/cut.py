"""Cuts the graph of a forward pass in two."""

from collections.abc import Iterable, Sequence

from torch import fx
from torch.utils._pytree import tree_leaves

from pockmobile.capture import Forward


def first_use(forward: Forward, names: Iterable[str]) -> int:
    """Returns the place of the first operator that reads one of these parameters.

    It is counted from the start of the graph; the length of the graph where nothing does.
    """
    wanted, nodes = frozenset(names), list(forward.graph.graph.nodes)
    places = (place for place, node in enumerate(nodes) if _reads(forward, node, wanted))
    return next(places, len(nodes))


def crossing(forward: Forward, place: int) -> list[fx.Node]:
    """Returns what depends on the inputs, is made before `place` and used from there on."""
    nodes = list(forward.graph.graph.nodes)
    used_after = set(nodes[place:])
    varying: dict[fx.Node, None] = {}
    for node in nodes[:place]:
        if node.op == "placeholder" or any(
            parent in varying for parent in node.all_input_nodes
        ):
            varying[node] = None
    return [node for node in varying if not used_after.isdisjoint(node.users)]


def before(forward: Forward, place: int) -> fx.GraphModule:
    """Returns the graph up to `place`; its outputs are what crosses."""
    graph = fx.Graph()
    memo: dict[fx.Node, fx.Node] = {}
    for node in list(forward.graph.graph.nodes)[:place]:
        memo[node] = graph.node_copy(node, memo.__getitem__)
    graph.output(tuple(memo[node] for node in crossing(forward, place)))
    return fx.GraphModule(forward.graph, graph)


def after(forward: Forward, place: int) -> fx.GraphModule:
    """Returns the graph from `place` on; its placeholders are what crosses, in order."""
    graph = fx.Graph()
    memo = {node: graph.placeholder(node.name) for node in crossing(forward, place)}

    def carry(node: fx.Node) -> fx.Node:
        # What does not depend on the inputs (parameters, a mask) is made again from here.
        if node not in memo:
            memo[node] = graph.node_copy(node, carry)
        return memo[node]

    nodes: Sequence[fx.Node] = list(forward.graph.graph.nodes)[place:]
    for node in nodes[:-1]:
        carry(node)
    results = [leaf for leaf in tree_leaves(nodes[-1].args) if isinstance(leaf, fx.Node)]
    graph.output(tuple(carry(node) for node in results))
    return fx.GraphModule(forward.graph, graph)


def _reads(forward: Forward, node: fx.Node, names: frozenset[str]) -> bool:
    return any(
        parent.op == "get_attr" and forward.tensors[str(parent.target)] in names
        for parent in node.all_input_nodes
    )
