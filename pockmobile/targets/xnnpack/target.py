"""XNNPACK: float32 on the CPU of phones and of Arm Linux."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import MODULE_KEY
from pockmobile.passes import (
    Canonicalize,
    Decompose,
    EliminateCommon,
    FlattenSoftmax,
    FoldConstants,
    GatherLogSoftmax,
    Pass,
    SumRows,
)
from pockmobile.targets.base import LoweredMethod, Outside, Target
from pockmobile.targets.delegate import insert_delegates
from pockmobile.targets.partition import constant_tensors, partition
from pockmobile.targets.portable import hash_and_size
from pockmobile.targets.rewrites.convolutions import select_convolution
from pockmobile.targets.xnnpack.decompositions import select
from pockmobile.targets.xnnpack.delegate import compiler
from pockmobile.targets.xnnpack.quantize import Precision
from pockmobile.targets.xnnpack.support import refusal

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class Xnnpack(Target):
    """Delegates nearly all of a training step to XNNPACK, on the stock runtime.

    `frozen_weights` is how products may hold frozen weights.
    """

    frozen_weights: Precision = "fp32"
    name = "xnnpack"
    views = frozenset(
        {_aten.view_copy.default, _aten.permute_copy.default, _aten.expand_copy.default}
    )

    def passes(self) -> Sequence[Pass]:
        """Returns the rewrites into XNNPACK's operators."""
        return (
            SumRows(self.views),
            GatherLogSoftmax(),
            FlattenSoftmax(),
            Decompose("xnnpack", select),
            Canonicalize(),
            # A convolution is written by whether its weight is a constant: fold first.
            FoldConstants(),
            EliminateCommon(),
            Decompose("convolutions", select_convolution),
        )

    def delegates(self, node: fx.Node, constants: Container[fx.Node]) -> bool:
        """Whether XNNPACK takes an operator, of whose inputs `constants` are frozen."""
        return refusal(node, constants) is None

    def lower(self, graph: JointGraph) -> LoweredMethod:
        """Returns the graph with its delegates compiled."""
        constants = constant_tensors(graph)
        cut = partition(graph, constants, refusal)
        delegated = insert_delegates(
            graph, cut, constants, compiler(constants, self.frozen_weights)
        )
        outside = tuple(
            Outside(str(node.target), node.meta.get(MODULE_KEY, ""), reason)
            for node, reason in cut.refusals.items()
            if "getitem" not in str(node.target)
        )
        used = {str(name) for name, _ in delegated.module.named_buffers()}
        frozen = dict(hash_and_size(delegated.module.get_buffer(name)) for name in used)
        return LoweredMethod(
            delegated.module,
            len(cut.delegates),
            sum(len(group) for group in cut.delegates),
            outside,
            {**frozen, **delegated.constant_bytes},
            delegated.memory,
        )
