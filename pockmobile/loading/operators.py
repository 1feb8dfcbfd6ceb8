"""Which names in a `torch.export` archive are operators, and nothing else of Python's."""

import math
import operator
import re
from typing import Final

import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import GraphModule

# Arithmetic on sizes: the list of torch's own serializer (_SYM_OPS).
_ON_SIZES: Final = (
    *("eq", "ne", "le", "ge", "lt", "gt", "and_", "or_", "neg", "pos", "mul", "add", "sub"),
    *("floordiv", "truediv", "mod", "pow", "lshift", "rshift", "getitem"),
)
_SYMBOLIC: Final = (
    *("sym_not", "sym_int", "sym_float", "sym_ite"),
    *("sym_max", "sym_min", "_sym_sqrt"),
)
_BUILTINS: Final = {
    "math.trunc": math.trunc,
    **{f"_operator.{name}": getattr(operator, name) for name in _ON_SIZES},
    **{f"torch.{name}": getattr(torch, name) for name in _SYMBOLIC},
}
_OPERATOR: Final = re.compile(r"torch\.ops\.[a-z]\w*\.\w+(\.\w+)?")


def is_operator_name(text: str) -> bool:
    """Tells whether torch resolves `text` to an operator, if to anything."""
    return text in _BUILTINS or _OPERATOR.fullmatch(text) is not None


def unknown_operator(module: GraphModule) -> str | None:
    """Returns the first thing that a graph calls which is no operator, or None."""
    builtins = set(_BUILTINS.values())
    for graph_module in module.modules():
        if not isinstance(graph_module, GraphModule):
            continue
        for node in graph_module.graph.find_nodes(op="call_module"):
            return str(node.target)
        for node in graph_module.graph.nodes:
            if node.op == "call_method" or (
                node.op == "call_function"
                and not isinstance(node.target, OpOverload | HigherOrderOperator)
                and node.target not in builtins
            ):
                return str(node.target)
    return None
