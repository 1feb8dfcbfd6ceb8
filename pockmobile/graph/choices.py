"""Choices among many: logits, and all that a loss and its gradient read of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import fx

from pockmobile.graph.columns import Columns, is_row_view, unviewed
from pockmobile.graph.joint import JointGraph
from pockmobile.graph.rewrite import arguments, shape_of, value_of

_aten = torch.ops.aten


@final
@dataclass
class Choice:
    """Logits, and all that reads them.

    `picks` take the label's logarithm of a probability, `comparisons` the largest logit's
    place beside the label. `products` multiply probabilities, as rows, by a matrix with a row
    for each column; `turned` multiply them, as columns, by a matrix with a row for each row;
    `sums` add them up over the rows.
    """

    columns: Columns
    index: fx.Node | None = None
    picks: list[fx.Node] = field(default_factory=list)
    comparisons: list[fx.Node] = field(default_factory=list)
    products: list[fx.Node] = field(default_factory=list)
    turned: list[fx.Node] = field(default_factory=list)
    sums: list[fx.Node] = field(default_factory=list)

    @property
    def ends(self) -> list[fx.Node]:
        """The operators that are replaced."""
        return [*self.picks, *self.comparisons, *self.products, *self.turned, *self.sums]

    @property
    def operands(self) -> list[fx.Node]:
        """What the replacement reads beside the logits' own sources."""
        factors = [arguments(node)[1] for node in (*self.products, *self.turned)]
        labels = [] if self.index is None else [self.index]
        beside = [compared(node) for node in self.comparisons]
        return [*labels, *beside, *factors]


def logits_of(graph: JointGraph) -> list[fx.Node]:
    """Returns the logits of the graph's choices."""
    sources = [
        unviewed(node.all_input_nodes[0])
        for node in graph.nodes
        if node.target is _aten._log_softmax.default and _is_last(node)
    ]
    return list(dict.fromkeys(sources))


def choice_of(base: fx.Node) -> Choice | None:
    """Returns all that reads the logits, if each is known."""
    columns = Columns.of(base)
    if columns is None:
        return None
    choice = Choice(columns)
    if not _reads(choice, base) or not _compares_labels(choice):
        return None
    return None if _depends(choice.operands, set(choice.ends)) else choice


def _depends(nodes: Iterable[fx.Node], ends: set[fx.Node]) -> bool:
    """Whether some of the nodes are made of what is replaced."""
    seen: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node in ends:
            return True
        if node not in seen:
            seen.add(node)
            pending += node.all_input_nodes
    return False


def _reads(choice: Choice, node: fx.Node) -> bool:
    """Collects what reads logits; returns whether all of it is known."""
    return all(_read(choice, node, user) for user in node.users)


def _read(choice: Choice, node: fx.Node, user: fx.Node) -> bool:
    if is_row_view(user):
        return _reads(choice, user)
    if user.target is _aten._log_softmax.default and _is_last(user):
        return all(_picks(choice, pick) for pick in user.users)
    if user.target is _aten._softmax.default and _is_last(user):
        return all(_multiplies(choice, user, end) for end in user.users)
    if user.target is _aten.argmax.default and _is_last(user) and len(user.args) == 2:
        choice.comparisons += user.users
        return all(end.target is _aten.eq.Tensor for end in user.users)
    return False


def _picks(choice: Choice, node: fx.Node) -> bool:
    if node.target is not _aten.gather.default or not _is_last(node) or node.kwargs:
        return False
    index = arguments(node)[2]
    if choice.index not in (None, index) or value_of(index).numel() != choice.columns.num_rows:
        return False
    choice.index = index
    choice.picks.append(node)
    return True


def _multiplies(
    choice: Choice, node: fx.Node, user: fx.Node, *, is_turned: bool = False
) -> bool:
    if is_row_view(user) and not is_turned:
        return all(_multiplies(choice, user, end) for end in user.users)
    is_matrix = len(shape_of(node)) == 2
    if user.target is _aten.permute_copy.default and is_matrix and not is_turned:
        return all(_multiplies(choice, user, end, is_turned=True) for end in user.users)
    if user.target is _aten.mm.default and user.args[0] is node is not user.args[1]:
        (choice.turned if is_turned else choice.products).append(user)
        return True
    if user.target is _aten.sum.dim_IntList and is_matrix and arguments(user)[1] == [0]:
        choice.sums.append(user)
        return not is_turned
    return False


def _is_last(node: fx.Node) -> bool:
    """Whether an operator works along the last dimension."""
    source, dim = arguments(node)[:2]
    return dim in (-1, len(shape_of(source)) - 1)


def _compares_labels(choice: Choice) -> bool:
    """Whether what is compared are the labels whose logits are picked."""
    if not choice.comparisons:
        return True
    if choice.index is None:
        return False
    clamped = choice.index
    while clamped.target is _aten.view_copy.default:
        clamped = clamped.all_input_nodes[0]
    is_clamped = clamped.target is _aten.clamp.default and clamped.args[1:] == (0,)
    labels = clamped.all_input_nodes[0] if is_clamped else None
    return all(compared(node) is labels for node in choice.comparisons)


def compared(node: fx.Node) -> fx.Node:
    """Returns what the largest logit's place is compared with."""
    found: fx.Node = next(
        operand
        for operand in node.args
        if operand.target is not _aten.argmax.default  # type: ignore
    )
    return found
