"""Core ML: an iPhone's or a Mac's CPU, GPU and Neural Engine."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, final, get_args

import torch
from torch import fx

from pockmobile.errors import UsageError
from pockmobile.graph import JointGraph
from pockmobile.passes import (
    Canonicalize,
    Decompose,
    EliminateCommon,
    FoldConstants,
    Pass,
    SpreadPowers,
    computed_in_half,
)
from pockmobile.targets.base import LoweredMethod, Target, check_loss_scale
from pockmobile.targets.coreml.decompositions import select, select_transposed
from pockmobile.targets.coreml.tools import import_coremltools
from pockmobile.targets.delegate import lower_delegates
from pockmobile.targets.rewrites.convolutions import select_convolution

_aten = torch.ops.aten

Precision: TypeAlias = Literal["fp32", "fp16"]
ComputeUnits: TypeAlias = Literal["all", "cpu_only", "cpu_and_gpu", "cpu_and_ne"]
RELEASES: Final = (15, 16, 17, 18)
_SEVERAL_FUNCTIONS: Final = 18
"""The first release whose model packages hold several functions."""


@final
@dataclass(frozen=True, kw_only=True)
class CoreML(Target):
    """Delegates a training step to Core ML; in fp16, but for the optimizer's arithmetic.

    Args:
        precision: `fp32`, which the CPU and the GPU take, or `fp16`, which the Neural Engine
            takes, too.
        ios: the oldest release of iOS that runs it, 15 to 18. From 18 on the methods share
            their frozen weights.
        compute_units: `all`, `cpu_only`, `cpu_and_gpu` or `cpu_and_ne`.
        loss_scale: what the loss is multiplied by in fp16, so that small gradients do not
            vanish; the optimizer gets the gradients divided by it, in fp32.

    Raises:
        UsageError: one of them is not among these.
    """

    precision: Precision = "fp32"
    ios: int = 17
    compute_units: ComputeUnits = "all"
    loss_scale: float = 256.0
    name = "coreml"
    views = frozenset({_aten.view_copy.default})

    def __post_init__(self) -> None:
        """Checks the options."""
        _check("precision", self.precision, get_args(Precision))
        _check("ios", self.ios, RELEASES)
        _check("compute_units", self.compute_units, get_args(ComputeUnits))
        check_loss_scale(self.loss_scale)

    @property
    def gradient_scale(self) -> float | None:  # type: ignore[override]
        """The loss scale, in fp16."""
        return self.loss_scale if self.precision == "fp16" else None

    def options(self) -> Mapping[str, object]:
        """Returns precision, release and units, and the scale if it counts."""
        chosen: dict[str, object] = {
            "precision": self.precision,
            "ios": self.ios,
            "compute_units": self.compute_units,
        }
        scale = self.gradient_scale
        return chosen if scale is None else {**chosen, "loss_scale": scale}

    def passes(self) -> Sequence[Pass]:
        """Returns the rewrites into operators that Core ML takes."""
        return (
            # Before powers are written as products.
            SpreadPowers(),
            Decompose("coreml", select),
            Canonicalize(),
            # A convolution is written by whether its weight is a constant: fold first.
            FoldConstants(),
            EliminateCommon(),
            Decompose("convolutions", select_convolution),
            Decompose("transposed", select_transposed),
            # What convolutions became has more dimensions than Core ML takes.
            Canonicalize(),
            Decompose("rank", select),
        )

    def delegates(self, node: fx.Node, constants: Container[fx.Node]) -> bool:
        """Whether Core ML takes an operator, of whose inputs `constants` are frozen."""
        import_coremltools()
        from pockmobile.targets.coreml.support import refusal

        return refusal(node, constants) is None

    def lower(self, graph: JointGraph, *, method: str = "forward") -> LoweredMethod:
        """Returns the graph with its delegates compiled.

        Raises:
            UsageError: coremltools is missing.
        """
        import_coremltools()
        from pockmobile.targets.coreml.delegate import compiler
        from pockmobile.targets.coreml.support import refusal

        # float16 is too coarse for the optimizer, which stays in float32.
        half = computed_in_half(graph) if self.precision == "fp16" else frozenset[fx.Node]()
        return lower_delegates(
            graph,
            refusal,
            lambda constants: compiler(
                constants, half=half, ios=self.ios, compute_units=self.compute_units
            ),
        )

    def share(self, methods: Mapping[str, LoweredMethod]) -> Mapping[str, LoweredMethod]:
        """Puts the methods into one model package, if the release takes one of several."""
        if self.ios < _SEVERAL_FUNCTIONS:
            return methods
        from pockmobile.targets.coreml.sharing import share

        return share(methods)


def _check(name: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        expected = ", ".join(map(str, known))
        raise UsageError(f"{name} is {value!r}, expected one of {expected}")
