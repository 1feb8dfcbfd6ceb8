"""QNN: float16 or 16-bit numbers on the Hexagon processor (HTP) of Qualcomm's SoCs."""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

import torch
from torch import fx

from pockmobile import qualcomm
from pockmobile.errors import MissingLibraryError, UsageError
from pockmobile.graph import JointGraph
from pockmobile.passes import (
    Canonicalize,
    Decompose,
    EliminateCommon,
    FoldConstants,
    Pass,
    computed_in_half,
    is_rounding,
)
from pockmobile.targets.base import LoweredMethod, Target, check_loss_scale
from pockmobile.targets.delegate import lower_delegates
from pockmobile.targets.qnn.calibration import Ranges, as_batches, check_batches, measure
from pockmobile.targets.qnn.decompositions import select
from pockmobile.targets.qnn.delegate import compiler
from pockmobile.targets.qnn.encodings import RANGE_KEY
from pockmobile.targets.qnn.guards import check_one_delegate
from pockmobile.targets.qnn.socs import chipset_of
from pockmobile.targets.qnn.support import refusal, refusal_in_int16
from pockmobile.targets.rewrites.convolutions import select_at_once

_aten = torch.ops.aten

_OPTIMIZER: Final = "16 bits are too coarse for the optimizer, which stays on the CPU"
_ROUNDED: Final = "gradients leave the delegate in float32"
PRECISIONS: Final = ("fp16", "int16")


@final
@dataclass(frozen=True)
class Qnn(Target):
    """Delegates forward and backward pass to the Hexagon processor, in 16 bits, as a whole.

    The optimizer's arithmetic stays on the CPU, in float32: in 16 bits small updates vanish.
    `soc` is a system on a chip that ExecuTorch names. `loss_scale` keeps small gradients from
    vanishing in float16. Without `compiles` the delegate is cut out but left empty, which
    needs none of Qualcomm's libraries: for a report.

    `precision` is `fp16`, or, as an experiment, `int16`: whole numbers, 65,536 of them between
    the least and the largest number that a value had while the program trained on the
    `calibration`, a step on each batch, with the learning rate `calibration_lr`. Its batches
    are pairs (inputs, targets), each a tensor or a tuple of tensors, of the example's size.
    `ranges` is what was measured.

    Raises:
        UsageError: the SoC is unknown or has not the precision, the scale is out of range, or
            batches are missing, too few, or of no use.
    """

    soc: str = "SM8650"
    loss_scale: float = 256.0
    compiles: bool = True
    precision: str = "fp16"
    calibration: Sequence[Any] = field(default=(), repr=False, compare=False)
    calibration_lr: float = 0.01
    ranges: Mapping[str, Ranges] = field(default_factory=dict, repr=False, compare=False)
    name = "qnn"
    views = frozenset({_aten.view_copy.default})

    def __post_init__(self) -> None:
        """Checks the options."""
        if self.precision not in PRECISIONS:
            expected = " or ".join(PRECISIONS)
            raise UsageError(f"precision is {self.precision!r}, expected {expected}")
        chipset_of(self.soc, self.precision)
        check_loss_scale(self.loss_scale)
        check_batches(self.precision == "int16", self.calibration, self.compiles)
        if not 0.0 < self.calibration_lr < math.inf:
            raise UsageError(
                f"calibration_lr is {self.calibration_lr!r}, expected a positive number"
            )

    @property
    def gradient_scale(self) -> float | None:  # type: ignore[override]
        """The loss scale."""
        return self.loss_scale

    def options(self) -> Mapping[str, object]:
        """Returns the system on a chip, the precision, the scale, and what calibrated it."""
        chosen = {"soc": self.soc, "precision": self.precision, "loss_scale": self.loss_scale}
        if self.precision == "fp16":
            return chosen
        return {
            **chosen,
            "experimental": True,
            "calibration_batches": len(self.calibration),
            "calibration_lr": self.calibration_lr,
        }

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

    def calibrated(self, graphs: Mapping[str, JointGraph]) -> "Qnn":
        """Returns the target with the ranges of all values, if it needs any.

        Raises:
            UsageError: a batch of the calibration does not fit, or training on it diverges.
        """
        if not self.calibration:
            return self
        batches = as_batches(self.calibration)
        return replace(self, ranges=measure(graphs, batches, self.calibration_lr))

    def lower(self, graph: JointGraph, *, method: str = "forward") -> LoweredMethod:
        """Returns the graph with its delegate compiled.

        Raises:
            MissingLibraryError: Qualcomm's libraries are missing.
            UnsupportedOperatorError: operators in the way of a single delegate.
        """
        graph = self._with_ranges(graph, method)
        half = computed_in_half(graph)

        def refuse(node: fx.Node, constants: Container[fx.Node]) -> str | None:
            if node not in half:
                return _OPTIMIZER
            reason = refusal(node, constants)
            if self.precision == "fp16":
                return reason
            return _ROUNDED if is_rounding(node) else reason or refusal_in_int16(node)

        return lower_delegates(
            graph,
            refuse,
            lambda constants: compiler(self, constants, method),
            check=check_one_delegate,
        )

    def _with_ranges(self, graph: JointGraph, method: str) -> JointGraph:
        """Returns a copy whose nodes know their ranges."""
        ranges = self.ranges.get(method)
        if ranges is None:
            return graph
        copy = graph.copy()
        for original, node in zip(graph.nodes, copy.nodes, strict=True):
            if original.name in ranges:
                node.meta[RANGE_KEY] = ranges[original.name]
        return copy
