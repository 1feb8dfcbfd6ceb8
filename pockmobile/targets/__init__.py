"""Targets: which rewrites each needs, and how it lowers a joint graph."""

from collections.abc import Mapping
from typing import Final

from pockmobile.errors import UsageError, nearest
from pockmobile.targets.base import Target
from pockmobile.targets.executorch import lower_program
from pockmobile.targets.portable import Portable
from pockmobile.targets.xnnpack import Xnnpack

TARGETS: Final[Mapping[str, Target]] = {
    target.name: target for target in (Portable(), Xnnpack())
}

__all__ = ["TARGETS", "Target", "lower_program", "resolve_target"]


def resolve_target(name: str) -> Target:
    """Returns the target of that name.

    Raises:
        UsageError: it is unknown.
    """
    if name not in TARGETS:
        raise UsageError(f"unknown target {name!r}: {nearest(name, TARGETS)}")
    return TARGETS[name]
