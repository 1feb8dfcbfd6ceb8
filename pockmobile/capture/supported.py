"""Refuses what no training program can hold, before it is traced."""

import re
import warnings
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.fx.traceback import get_current_meta
from torch.utils._pytree import tree_leaves

from pockmobile.errors import PockmobileWarning, UnsupportedOperatorError
from pockmobile.graph.rewrite import is_random

_aten = torch.ops.aten

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_LIBRARIES = re.compile(r"[/\\](site-packages|dist-packages)[/\\]torch[/\\]")
_NO_DERIVATIVE = re.compile(r"derivative for '(?:aten::)?(\w+)[^']*' is not implemented")

_DROPOUT: Final = (1, 2)
_OF_CELLS: Final = (5, 6)
_CHANCES: Final[Mapping[Any, tuple[int, int | None]]] = {
    _aten.dropout.default: _DROPOUT,
    _aten.dropout_.default: _DROPOUT,
    _aten.feature_dropout.default: _DROPOUT,
    _aten.feature_dropout_.default: _DROPOUT,
    _aten.alpha_dropout.default: _DROPOUT,
    _aten.alpha_dropout_.default: _DROPOUT,
    _aten.feature_alpha_dropout.default: _DROPOUT,
    _aten.feature_alpha_dropout_.default: _DROPOUT,
    _aten.native_dropout.default: _DROPOUT,
    _aten.rrelu.default: (2, 3),
    _aten.rrelu_.default: (2, 3),
    _aten.lstm.input: _OF_CELLS,
    _aten.gru.input: _OF_CELLS,
    _aten.rnn_tanh.input: _OF_CELLS,
    _aten.rnn_relu.input: _OF_CELLS,
    _aten.scaled_dot_product_attention.default: (4, None),
}
"""Where the arguments are that say how much is random, and whether anything is."""


def check_operators(graph: fx.Graph, rules: Container[object]) -> None:
    """Checks that a program can hold each operator, or that one of the rules replaces it.

    A result's size must not depend on values, nor a number of the graph; nothing may draw
    random numbers in evaluation mode, or compute with complex ones. What a rule replaces may
    be random while training alone, which `check_switches` tells.

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
            raise _random(node)
        values = [v for v in tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
        if any(value.is_complex() for value in values):
            raise UnsupportedOperatorError(
                f"{node.target} (from {_place(node.meta)}) computes with complex numbers, "
                f"which no target takes; write it with real ones (a rotation by cos and sin), "
                f"or compute it before the model"
            )


def check_switches(graph: fx.Graph, *, was_evaluating: bool) -> None:
    """Checks that dropout, and what else draws random numbers while training, is off.

    In a model that was put into evaluation mode it was switched on by hand, and on purpose. In
    an archive it may have been on because the model was in training mode: it is off in the
    program, which a warning says.

    Raises:
        UnsupportedOperatorError: naming the first such operator and its module.
    """
    drawing = [node for node in graph.nodes if _is_on(node)]
    if not drawing:
        return
    # Any that is off tells that the model was in evaluation mode.
    off = (n for n in graph.nodes if n.target in _CHANCES and _chance(n) and not _is_on(n))
    if was_evaluating or next(off, None) is not None:
        raise _random(drawing[0])
    others = f", and {len(drawing) - 1} more" if len(drawing) > 1 else ""
    warnings.warn(
        f"{drawing[0].target} (from {_place(drawing[0].meta)}{others}) drops values at random "
        f"in this archive, and nothing in the program; export model.eval() to do the same",
        PockmobileWarning,
        stacklevel=2,
    )


def check_traced(graph: fx.Graph) -> None:
    """Checks that what was traced, the loss included, draws no random numbers.

    Raises:
        UnsupportedOperatorError: naming the first such operator and where it is.
    """
    for node in graph.nodes:
        if is_random(node):
            raise _random(node)


def _random(node: fx.Node) -> UnsupportedOperatorError:
    return UnsupportedOperatorError(
        f"{node.target} (from {_place(node.meta)}) draws random numbers, in evaluation mode, "
        f"too; a program has none: make them an input of the model"
    )


def _is_on(node: fx.Node) -> bool:
    """Whether an operator that may be random is."""
    if node.target not in _CHANCES or not _chance(node):
        return False
    switch = _CHANCES[node.target][1]
    return switch is None or bool(_argument(node, switch))


def _chance(node: fx.Node) -> bool:
    """Whether it would draw anything if it were switched on."""
    return bool(_argument(node, _CHANCES[node.target][0]))


def _argument(node: fx.Node, index: int) -> Any:
    schema = node.target._schema.arguments[index]  # type: ignore[union-attr]
    given = dict(enumerate(node.args))
    return given.get(index, node.kwargs.get(schema.name, schema.default_value))


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
