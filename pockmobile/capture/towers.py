"""Finds the towers of a model: the parts that end side by side, each in a head of its own."""

from collections.abc import Mapping, Sequence

from torch import fx
from torch.utils._pytree import tree_leaves

from pockmobile.plan import Layer


def towers_of(
    graph: fx.Graph, layers: Sequence[tuple[fx.Node, Layer]]
) -> Mapping[fx.Node, frozenset[int]]:
    """Returns the heads, by number, that each layer reaches.

    A head is a linear layer or convolution behind which the model's first output, on which
    the loss is computed, has no other. CLIP has two, one for images and one for texts. What
    comes after the heads belongs to each of them, what that output is not made from to none.
    """
    ends = {node for node, layer in layers if layer.kind in ("linear", "convolution")}
    counted = _before_output(graph)
    reached: dict[fx.Node, frozenset[int]] = {}
    num_heads = 0
    for node in reversed(graph.nodes):
        if node not in counted:
            continue
        behind = frozenset[int]().union(*(reached.get(user, ()) for user in node.users))
        if node in ends and not behind:
            behind = frozenset({num_heads})
            num_heads += 1
        reached[node] = behind
    every = frozenset(range(max(num_heads, 1)))
    return {
        node: (reached[node] or every) if node in reached else frozenset() for node, _ in layers
    }


def _before_output(graph: fx.Graph) -> set[fx.Node]:
    """Returns what the first output is computed from."""
    leaves = tree_leaves(graph.output_node().args)
    pending = [leaf for leaf in leaves if isinstance(leaf, fx.Node)][:1]
    found = set(pending)
    while pending:
        parents = [node for node in pending.pop().all_input_nodes if node not in found]
        found.update(parents)
        pending.extend(parents)
    return found
