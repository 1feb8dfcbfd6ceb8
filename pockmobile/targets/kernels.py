"""What the stock runtime cannot run, found before a program is written.

The exporter writes any operator that torch has; the runtime refuses it on the phone. Python's
runtime is built of the same kernels (portable, optimised, quantised) as the published Android
and iOS ones, so it is asked.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final

import torch
from executorch.extension.pybindings import portable_lib
from torch import fx

from pockmobile.errors import UnsupportedOperatorError
from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import MODULE_KEY, origin, shape_of
from pockmobile.targets.base import LoweredMethod

_aten = torch.ops.aten

Methods = Mapping[str, tuple[JointGraph, LoweredMethod]]


def check_kernels(methods: Methods, written: Iterable[str]) -> None:
    """Checks that the runtime has the operators that were `written`, like `aten::add.out`.

    Raises:
        UnsupportedOperatorError: naming those it lacks, and the modules they came from.
    """
    missing = set(written).difference(portable_lib._get_operator_names())
    if missing:
        raise _unsupported(methods, {_base(name) for name in missing})


def explain_failure(methods: Methods, error: Exception) -> None:
    """Explains why the exporter failed, if it was for an operator that the runtime lacks.

    Raises:
        UnsupportedOperatorError: naming those operators, and the modules they came from.
    """
    known = {_base(name) for name in portable_lib._get_operator_names()}
    found = {
        _base(str(node.target)) for method in methods.values() for node in _outside(*method)
    }
    # The exporter itself writes views as copies.
    missing = {name for name in found if not known & {name, f"{name}_copy"}}
    if missing:
        raise _unsupported(methods, missing) from error


def check_limits(methods: Methods) -> None:
    """Checks the operators whose kernels take less than torch's, which only running tells.

    Raises:
        UnsupportedOperatorError: naming the operator, the module and the limit.
    """
    for method in methods.values():
        for node in _outside(*method):
            reason = _LIMITS[node.target](node) if node.target in _LIMITS else None
            if reason:
                raise UnsupportedOperatorError(
                    f"the runtime's {node.target} {reason}, as in {_place(node)}; "
                    f"{_remedy(methods, [node])}"
                )


def _unsupported(methods: Methods, missing: Collection[str]) -> UnsupportedOperatorError:
    """Returns the error; `missing` are names without overload, like `aten::sort`."""
    culprits: dict[str, fx.Node] = {}
    for method in methods.values():
        for node in _outside(*method):
            if _base(str(node.target)) in missing:
                culprits.setdefault(str(node.target), node)
    if not culprits:
        return UnsupportedOperatorError(
            f"the runtime has no kernel for {', '.join(sorted(missing))}; replace the layer "
            f"that needs it"
        )
    named = ", ".join(f"{name} (from {_place(node)})" for name, node in culprits.items())
    return UnsupportedOperatorError(
        f"the runtime has no kernel for {named}; {_remedy(methods, culprits.values())}"
    )


def _remedy(methods: Methods, culprits: Collection[fx.Node]) -> str:
    predict = methods.get("predict")
    predicting = {node.target for node in _outside(*predict)} if predict else set()
    if any(node.target in predicting for node in culprits):
        return "replace that layer"
    return "replace that layer, or train only what comes after it (plan head or last:N)"


def _place(node: fx.Node) -> str:
    path, line = origin(node).values()
    known = [path or ("the model's own forward()" if line else ""), line]
    return ", ".join(part for part in known if part) or "the loss or the optimizer"


def _outside(graph: JointGraph, lowered: LoweredMethod) -> Iterator[fx.Node]:
    """Yields the nodes that no delegate took; a target may tell their operators alone."""
    found = {(item.operator, item.module) for item in lowered.outside}
    for node in graph.nodes:
        name, module = str(node.target), node.meta.get(MODULE_KEY, "")
        if node.op == "call_function" and not found.isdisjoint({(name, module), (name, "")}):
            yield node


def _base(operator: str) -> str:
    """`aten.sort.default` or `aten::sort.values` -> `aten::sort`."""
    namespace, _, name = operator.replace("::", ".").partition(".")
    return f"{namespace}::{name.partition('.')[0]}"


def _convolution(node: fx.Node) -> str | None:
    assert isinstance(node.args[0], fx.Node)
    num_dims = len(shape_of(node.args[0])) - 2
    return f"takes 1 or 2 dimensions, not {num_dims}" if num_dims > 2 else None


_LIMITS: Final[Mapping[object, Callable[[fx.Node], str | None]]] = {
    _aten.convolution.default: _convolution,
    _aten.convolution_backward.default: _convolution,
}
