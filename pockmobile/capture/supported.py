"""Refuses what no training program can hold, before it is traced."""

import re
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, fx
from torch.fx.traceback import get_current_meta
from torch.utils._pytree import tree_leaves

from pockmobile.errors import UnsupportedOperatorError
from pockmobile.graph.rewrite import is_random

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_LIBRARIES = re.compile(r"[/\\](site-packages|dist-packages)[/\\]torch[/\\]")
_NO_DERIVATIVE = re.compile(r"derivative for '(?:aten::)?(\w+)[^']*' is not implemented")


def check_operators(graph: fx.Graph, rules: Container[object]) -> None:
    """Checks that a program can hold each operator, or that one of the rules replaces it.

    A result's size must not depend on values, nor a number of the graph; nothing may draw
    random numbers in evaluation mode, or compute with complex ones.

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
        if is_random(node) and node.target not in rules:
            raise UnsupportedOperatorError(
                f"{node.target} (from {_place(node.meta)}) draws random numbers, in evaluation "
                f"mode, too; a program has none: make them an input of the model"
            )
        values = [v for v in tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
        if any(value.is_complex() for value in values):
            raise UnsupportedOperatorError(
                f"{node.target} (from {_place(node.meta)}) computes with complex numbers, "
                f"which no target takes; write it with real ones (a rotation by cos and sin), "
                f"or compute it before the model"
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


def source_line(meta: Mapping[str, object]) -> str:
    """Returns the innermost line outside of torch that made a node, as `file:line`, or ""."""
    frames = _FRAME.findall(str(meta.get("stack_trace") or ""))
    own = [frame for frame in frames if not _LIBRARIES.search(frame[0])]
    return ":".join(own[-1]) if own else ""


def _place(meta: Mapping[str, object]) -> str:
    known = (module_path(meta) or "the model's own forward()", source_line(meta))
    return ", ".join(part for part in known if part)
