"""Targets: which rewrites each needs, and how it lowers a joint graph."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, cast, get_args

from pockmobile.errors import UsageError, nearest
from pockmobile.targets.base import Target
from pockmobile.targets.executorch import lower_program
from pockmobile.targets.portable import Portable
from pockmobile.targets.xnnpack import Xnnpack
from pockmobile.targets.xnnpack.quantize import Precision

TARGETS: Final[Mapping[str, Target]] = {
    target.name: target for target in (Portable(), Xnnpack())
}

FROZEN_WEIGHTS: Final = get_args(Precision)

__all__ = ["FROZEN_WEIGHTS", "TARGETS", "Target", "lower_program", "resolve_target"]


def resolve_target(name: str, frozen_weights: str = "fp32") -> Target:
    """Returns the target of that name.

    Args:
        name: `xnnpack` or `portable`.
        frozen_weights: `fp32`, or `int8` or `int4` where products may hold frozen weights so.

    Raises:
        UsageError: it is unknown, or does not take frozen weights so.
    """
    if name not in TARGETS:
        raise UsageError(f"unknown target {name!r}: {nearest(name, TARGETS)}")
    if frozen_weights not in FROZEN_WEIGHTS:
        known = nearest(frozen_weights, FROZEN_WEIGHTS)
        raise UsageError(f"unknown frozen weights {frozen_weights!r}: {known}")
    target = TARGETS[name]
    if frozen_weights == "fp32":
        return target
    if not isinstance(target, Xnnpack):
        raise UsageError(
            f"target {name} takes frozen weights in fp32 only, found {frozen_weights}; "
            f"choose target xnnpack, or fp32"
        )
    return replace(target, frozen_weights=cast(Precision, frozen_weights))
