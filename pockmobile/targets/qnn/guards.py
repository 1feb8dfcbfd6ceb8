"""Guards against what ExecuTorch's QNN backend gets wrong without a word."""

import itertools
import operator
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

from executorch.backends.qualcomm.utils.constants import QCOM_QUANT_ATTRS
from torch import Tensor, fx
from torch.export import ExportedProgram

from pockmobile.errors import UnsupportedOperatorError
from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import MODULE_KEY, shape_of
from pockmobile.targets.partition import Partition

_MOST_NAMED: Final = 5


def check_one_delegate(graph: JointGraph, cut: Partition) -> None:
    """Refuses a graph of which several delegates were made.

    Between two of them a value without dimensions is lost at run time.

    Raises:
        UnsupportedOperatorError: it names the operators between the delegates.
    """
    if len(cut.delegates) <= 1:
        return
    named = {
        f"{node.target} (from {node.meta.get(MODULE_KEY) or 'the loss'}: {cut.refusals[node]})"
        for node in _between(graph, cut)
    }
    shown = sorted(named)[:_MOST_NAMED]
    more = f" and {len(named) - len(shown)} more" if len(named) > len(shown) else ""
    raise UnsupportedOperatorError(
        f"QNN would need {len(cut.delegates)} delegates and takes one, because of "
        f"{'; '.join(shown)}{more}; replace the layers that need them, train only what comes "
        f"after them (plan head or last:N), or choose target xnnpack"
    )


def _between(graph: JointGraph, cut: Partition) -> Iterator[fx.Node]:
    """Yields the host's operators on a path from one delegate to another."""
    inside = {node for group in cut.delegates for node in group}
    after = _reached(inside, list(graph.nodes), lambda node: node.all_input_nodes)
    before = _reached(inside, list(graph.nodes)[::-1], lambda node: list(node.users))
    for node in graph.nodes:
        is_operator = node in cut.refusals and node.target is not operator.getitem
        if is_operator and node in after and node in before:
            yield node


def _reached(
    seeds: Collection[fx.Node],
    order: Sequence[fx.Node],
    sources: Callable[[fx.Node], Iterable[fx.Node]],
) -> set[fx.Node]:
    """Returns what can be reached from `seeds`, of nodes in an order that follows `sources`."""
    found = set(seeds)
    for node in order:
        if not found.isdisjoint(sources(node)):
            found.add(node)
    return found


@final
@dataclass(frozen=True)
class Signature:
    """Names and sizes of a blob's inputs and outputs."""

    inputs: Sequence[tuple[str, tuple[int, ...]]]
    outputs: Sequence[tuple[str, tuple[int, ...]]]


def order_outputs(program: ExportedProgram) -> None:
    """Sorts operators so that the outputs are computed in the order in which they are returned.

    QNN knows outputs by the order in which they are computed. A pass that joins transpositions
    moves them to where the first of them was, and the runtime would mix up the gradients.
    """
    graph = program.graph
    end = graph.output_node()
    placed: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            placed.add(node)
    for result in end.all_input_nodes:
        for node in _with_sources(result, placed):
            end.prepend(node)
            placed.add(node)
    graph.lint()


def _with_sources(node: fx.Node, placed: Container[fx.Node]) -> list[fx.Node]:
    """Returns a node after all that it is made of, without what is placed."""
    ordered: dict[fx.Node, None] = {}
    stack = [node]
    while stack:
        top = stack[-1]
        missing = [p for p in top.all_input_nodes if p not in placed and p not in ordered]
        if top in placed or top in ordered:
            stack.pop()
        elif missing:
            stack.extend(missing)
        else:
            ordered[stack.pop()] = None
    return list(ordered)


def check_rounded(program: ExportedProgram) -> None:
    """Refuses a program in 16 bits some of whose values are floats after all.

    QNN would not compile it, or compute it in another precision.

    Raises:
        UnsupportedOperatorError: it names the operators.
    """
    borders = ("quantize_per_tensor", "dequantize_per_tensor")
    floats = [
        node
        for node in program.graph.nodes
        if node.op in ("call_function", "placeholder") and _is_plain_float(node)
    ]
    found = {
        user.target.__name__
        for node in floats
        for user in node.users
        if user.op == "call_function" and not any(name in str(user.target) for name in borders)
    }
    if found:
        raise UnsupportedOperatorError(
            f"QNN has no int16 for {', '.join(sorted(found))}; choose precision fp16"
        )


def _is_plain_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return is_float and not node.meta.get(QCOM_QUANT_ATTRS)


def check_signature(program: ExportedProgram, found: Signature) -> None:
    """Checks that a blob takes and returns what its program does, in the same order.

    The runtime binds them by their places alone: in another order it would write gradients
    into each other's memory.
    """
    expected = Signature(
        [(f"input_{i}_{node.name}@0", _sizes(node)) for i, node in enumerate(_inputs(program))],
        [(f"output_{n.name}@0", _sizes(n)) for n in program.graph.output_node().args[0]],
    )
    # The runtime sorts inputs by the number in their names.
    inputs = sorted(found.inputs, key=lambda item: int(item[0].split("_")[1]))
    for ours, theirs in ((expected.inputs, inputs), (expected.outputs, found.outputs)):
        for one, other in itertools.zip_longest(ours, theirs):
            assert one == other, f"QNN has {other} in the place of {one}"


def _inputs(program: ExportedProgram) -> list[fx.Node]:
    names = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.name in names]


def _sizes(node: fx.Node) -> tuple[int, ...]:
    return tuple(shape_of(node)) or (1,)
