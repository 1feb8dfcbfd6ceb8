"""Refuses what no training program can hold, before it is traced."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import fx
from torch.fx.traceback import get_current_meta

from pockmobile.errors import UnsupportedOperatorError

_NO_DERIVATIVE = re.compile(r"derivative for '(?:aten::)?(\w+)[^']*' is not implemented")


def check_static(graph: fx.Graph) -> None:
    """Checks that no operator's result has a size, or is a number, that depends on values.

    Raises:
        UnsupportedOperatorError: naming the first such operator and its module.
    """
    for node in graph.nodes:
        # A size that torch could pin down leaves no symbol behind.
        is_counting = node.target is torch.ops.aten.bincount.default
        if node.meta.get("unbacked_bindings") or is_counting:
            raise UnsupportedOperatorError(
                f"the result of {node.target} (from {_place(node.meta)}) depends in size, or "
                f"as a plain number, on the values of its inputs; a program has fixed sizes: "
                f"replace that layer"
            )


@contextmanager
def explaining_gradients() -> Iterator[None]:
    """Turns autograd's error on an operator without a gradient into ours.

    Raises:
        UnsupportedOperatorError: naming the operator and its module.
    """
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        found = _NO_DERIVATIVE.search(str(error))
        if found is None:
            raise
        raise UnsupportedOperatorError(
            f"aten.{found[1]} (from {_place(get_current_meta())}) has no gradient in PyTorch; "
            f"replace that layer, or detach its input"
        ) from error


def module_path(meta: Mapping[str, object]) -> str:
    """Returns the path of the module that a node's meta names; "" for the model itself."""
    stack = meta.get("nn_module_stack")
    path = str(next(reversed(stack.values()))[0]) if isinstance(stack, dict) and stack else ""
    return path.removeprefix("L['self'].").removeprefix("L['self']")


def _place(meta: Mapping[str, object]) -> str:
    return module_path(meta) or "the model's own forward()"
