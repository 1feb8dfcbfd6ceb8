"""XNNPACK: float32 on the CPU of phones and of Arm Linux."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx

from pockmobile.graph import JointGraph
from pockmobile.passes import (
    Canonicalize,
    Decompose,
    EliminateCommon,
    FlattenSoftmax,
    FoldConstants,
    FoldTrainedScale,
    GatherLogSoftmax,
    Pass,
    RoundTables,
    ScaleFactors,
    SumRows,
)
from pockmobile.targets.base import LoweredMethod, Target
from pockmobile.targets.delegate import lower_delegates
from pockmobile.targets.rewrites.convolutions import select_convolution
from pockmobile.targets.rewrites.small_images import select_small_image
from pockmobile.targets.xnnpack.decompositions import (
    select,
    select_label,
    select_large_weight,
    select_number,
)
from pockmobile.targets.xnnpack.delegate import compiler
from pockmobile.targets.xnnpack.emitter import is_cut_again
from pockmobile.targets.xnnpack.overwriting import overwritten
from pockmobile.targets.xnnpack.quantize import Precision, quantized
from pockmobile.targets.xnnpack.support import refusal

_aten = torch.ops.aten


def _rounded(table: Tensor) -> tuple[Tensor, Tensor]:
    found = quantized(table)
    return found.values, found.scales


@final
@dataclass(frozen=True)
class Xnnpack(Target):
    """Delegates nearly all of a training step to XNNPACK, on the stock runtime.

    `frozen_weights` is how products may hold frozen weights.
    """

    frozen_weights: Precision = "fp32"
    name = "xnnpack"
    gradient_scale = None
    saves_memory = True
    packs_products = True
    views = frozenset(
        {_aten.view_copy.default, _aten.permute_copy.default, _aten.expand_copy.default}
    )

    def options(self) -> Mapping[str, object]:
        """Frozen weights are told among the passes."""
        return {}

    def passes(self) -> Sequence[Pass]:
        """Returns the rewrites into XNNPACK's operators."""
        is_exact = self.frozen_weights == "fp32"
        tables = () if is_exact else (RoundTables(_rounded),)
        # In int8 each of these products would round its rows anew.
        small_images = (Decompose("small-images", select_small_image),) if is_exact else ()
        return (
            *tables,
            FoldTrainedScale(),
            SumRows(self.views),
            GatherLogSoftmax(),
            FlattenSoftmax(),
            # Before what they are picked from is written otherwise.
            Decompose("labels", select_label),
            Decompose("xnnpack", select),
            Decompose("numbers", select_number),
            Canonicalize(),
            # A convolution is written by whether its weight is a constant: fold first.
            FoldConstants(),
            EliminateCommon(),
            *small_images,
            Decompose("convolutions", select_convolution),
            # The products of a weight's gradient are there now.
            ScaleFactors(),
            Canonicalize(),
            Decompose("large-weights", select_large_weight),
        )

    def moves(self, node: fx.Node) -> bool:
        """Whether an operator runs; what is only cut again is not cut before."""
        return super().moves(node) and not is_cut_again(node)

    def lays_out(self, value: Tensor) -> bool:
        """XNNPACK reads images with their channels innermost."""
        return value.dim() == 4

    def overwritten(self, node: fx.Node, uses: Callable[[fx.Node], int]) -> fx.Node | None:
        """Returns what XNNPACK's planner, as `workspace` has it, lets a result lie in."""
        return overwritten(node, uses, self.views)

    def delegates(self, node: fx.Node, constants: Container[fx.Node]) -> bool:
        """Whether XNNPACK takes an operator, of whose inputs `constants` are frozen."""
        return refusal(node, constants) is None

    def lower(self, graph: JointGraph, *, method: str = "forward") -> LoweredMethod:
        """Returns the graph with its delegates compiled."""
        return lower_delegates(
            graph, refusal, lambda constants: compiler(constants, self.frozen_weights)
        )
