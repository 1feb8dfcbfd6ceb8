"""QNN: float16 on the Hexagon processor (HTP) of Qualcomm's systems on a chip."""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.passes import (
    Canonicalize,
    Decompose,
    EliminateCommon,
    FoldConstants,
    Pass,
)
from pockmobile.targets.base import LoweredMethod, Target
from pockmobile.targets.delegate import lower_delegates
from pockmobile.targets.qnn.decompositions import select
from pockmobile.targets.qnn.delegate import compiler
from pockmobile.targets.qnn.guards import check_one_delegate
from pockmobile.targets.qnn.optimizer import outside_optimizer
from pockmobile.targets.qnn.support import refusal
from pockmobile.targets.rewrites.convolutions import select_convolution

_aten = torch.ops.aten

_MOST_DOUBLINGS: Final = 12
"""Of the loss: float16 ends at 65504, and gradients are sums over a batch."""


@final
@dataclass(frozen=True)
class Qnn(Target):
    """Delegates forward and backward pass to the Hexagon processor, in float16, as a whole.

    The optimizer's arithmetic stays on the CPU, in float32: in float16 small updates vanish.
    `soc` is a system on a chip that ExecuTorch names. Without `compiles` the delegate is cut
    out but left empty, which needs none of Qualcomm's libraries: for a report.
    """

    soc: str = "SM8650"
    compiles: bool = True
    name = "qnn"
    views = frozenset({_aten.view_copy.default})

    def loss_scale(self, num_terms: int) -> float:
        """Makes the gradient of each term about as large as if it was alone."""
        return 2.0 ** min(math.ceil(math.log2(max(num_terms, 1))), _MOST_DOUBLINGS)

    def passes(self) -> Sequence[Pass]:
        """Returns the rewrites into operators that QNN has."""
        return (
            Decompose("qnn", select),
            Canonicalize(),
            # A convolution is written by whether its weight is a constant: fold first.
            FoldConstants(),
            EliminateCommon(),
            Decompose("convolutions", select_convolution),
            Canonicalize(),
            # What the convolutions were written in, and the filters that gather windows.
            FoldConstants(),
            Decompose("qnn", select),
        )

    def delegates(self, node: fx.Node, constants: Container[fx.Node]) -> bool:
        """Whether QNN takes an operator, of whose inputs `constants` are frozen."""
        return refusal(node, constants) is None

    def lower(self, graph: JointGraph, *, method: str = "forward") -> LoweredMethod:
        """Returns the graph with its delegate compiled.

        Raises:
            MissingLibraryError: Qualcomm's libraries are missing.
            UnsupportedOperatorError: operators in the way of a single delegate.
        """
        return lower_delegates(
            graph,
            outside_optimizer(graph, refusal),
            lambda constants: compiler(self, constants, method),
            check=check_one_delegate,
        )
