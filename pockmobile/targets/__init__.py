"""Targets: which rewrites each needs, and how it lowers a joint graph."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, cast, get_args

from pockmobile.errors import UsageError, nearest
from pockmobile.targets.base import Target
from pockmobile.targets.coreml import CoreML
from pockmobile.targets.executorch import lower_program
from pockmobile.targets.portable import Portable
from pockmobile.targets.qnn import Qnn
from pockmobile.targets.xnnpack import Xnnpack
from pockmobile.targets.xnnpack.quantize import Precision

TARGETS: Final[Mapping[str, Target]] = {
    target.name: target for target in (Portable(), Xnnpack(), CoreML(), Qnn())
}

FROZEN_WEIGHTS: Final = get_args(Precision)

__all__ = [
    "FROZEN_WEIGHTS",
    "TARGETS",
    "CoreML",
    "Qnn",
    "Target",
    "lower_program",
    "resolve_target",
]


def resolve_target(target: str | Target, frozen_weights: str = "fp32") -> Target:
    """Returns the target of that name, or the target itself.

    Args:
        target: `xnnpack`, `coreml`, `qnn` or `portable`, or one with options of its own.
        frozen_weights: `fp32`, or `int8` or `int4` where products may hold frozen weights so.

    Raises:
        UsageError: it is unknown, or does not take frozen weights so.
    """
    if isinstance(target, str):
        if target not in TARGETS:
            raise UsageError(f"unknown target {target!r}: {nearest(target, TARGETS)}")
        target = TARGETS[target]
    if frozen_weights not in FROZEN_WEIGHTS:
        known = nearest(frozen_weights, FROZEN_WEIGHTS)
        raise UsageError(f"unknown frozen weights {frozen_weights!r}: {known}")
    if frozen_weights == "fp32":
        return target
    if not isinstance(target, Xnnpack):
        raise UsageError(
            f"target {target.name} takes frozen weights in fp32 only, found {frozen_weights}; "
            f"choose target xnnpack, or fp32"
        )
    return replace(target, frozen_weights=cast(Precision, frozen_weights))
