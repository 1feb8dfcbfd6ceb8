"""QNN: float16 on the Hexagon processor (HTP) of Qualcomm's systems on a chip."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import fx

from pockmobile import qualcomm
from pockmobile.errors import MissingLibraryError
from pockmobile.graph import JointGraph
from pockmobile.passes import (
    Canonicalize,
    Decompose,
    EliminateCommon,
    FoldConstants,
    Pass,
    computed_in_half,
)
from pockmobile.targets.base import LoweredMethod, Target, check_loss_scale
from pockmobile.targets.delegate import lower_delegates
from pockmobile.targets.qnn.decompositions import select
from pockmobile.targets.qnn.delegate import compiler
from pockmobile.targets.qnn.guards import check_one_delegate
from pockmobile.targets.qnn.socs import chipset_of
from pockmobile.targets.qnn.support import refusal
from pockmobile.targets.rewrites.convolutions import select_at_once

_aten = torch.ops.aten

_OPTIMIZER: Final = "float16 is too coarse for the optimizer, which stays on the CPU"


@final
@dataclass(frozen=True)
class Qnn(Target):
    """Delegates forward and backward pass to the Hexagon processor, in float16, as a whole.

    The optimizer's arithmetic stays on the CPU, in float32: in float16 small updates vanish.
    `soc` is a system on a chip that ExecuTorch names. `loss_scale` keeps small gradients from
    vanishing. Without `compiles` the delegate is cut
    out but left empty, which needs none of Qualcomm's libraries: for a report.
    """

    soc: str = "SM8650"
    loss_scale: float = 256.0
    compiles: bool = True
    name = "qnn"
    views = frozenset({_aten.view_copy.default})

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            UsageError: the SoC is unknown or has no float16, or the scale is out of range.
        """
        chipset_of(self.soc)
        check_loss_scale(self.loss_scale)

    @property
    def gradient_scale(self) -> float | None:  # type: ignore[override]
        """The loss scale."""
        return self.loss_scale

    def options(self) -> Mapping[str, object]:
        """Returns the system on a chip, and the scale."""
        return {"soc": self.soc, "loss_scale": self.loss_scale}

    def check_ready(self) -> None:
        """Checks that Qualcomm's libraries are there, if they are needed.

        Raises:
            MissingLibraryError: they are not.
        """
        missing = qualcomm.missing() if self.compiles else None
        if missing:
            raise MissingLibraryError(missing)

    def passes(self) -> Sequence[Pass]:
        """Returns the rewrites into operators that QNN has."""
        return (
            Decompose("qnn", select),
            Canonicalize(),
            # A convolution is written by whether its weight is a constant: fold first.
            FoldConstants(),
            EliminateCommon(),
            Decompose("convolutions", select_at_once),
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
        half = computed_in_half(graph)

        def refuse(node: fx.Node, constants: Container[fx.Node]) -> str | None:
            return refusal(node, constants) if node in half else _OPTIMIZER

        return lower_delegates(
            graph,
            refuse,
            lambda constants: compiler(self, constants, method),
            check=check_one_delegate,
        )
