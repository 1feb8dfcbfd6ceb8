"""What a pass is, and the runner that verifies after each."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from enum import StrEnum
from typing import Any, final

from torch import fx

from pockmobile.errors import PockmobileError
from pockmobile.graph import JointGraph, verify
from pockmobile.graph.rewrite import value_of


class Numerics(StrEnum):
    """What a pass does to numbers: nothing at all, or no more than rounding."""

    EXACT = "exact"
    CLOSE = "close"


class Pass(ABC):
    """A rewrite of the joint graph; a final frozen dataclass whose fields are its options.

    `apply` leaves its argument untouched, and returns that very object if nothing is to do.
    """

    name: str
    numerics: Numerics = Numerics.EXACT

    @abstractmethod
    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the rewritten graph."""

    def options(self) -> dict[str, Any]:
        """Returns the options, as the manifest holds them."""
        return asdict(self) if is_dataclass(self) else {}


@final
@dataclass(frozen=True)
class PassRun:
    """What one pass did: operators before and after, and the time it took in seconds."""

    name: str
    options: dict[str, Any]
    num_before: int
    num_after: int
    seconds: float


def run_passes(
    graph: JointGraph, passes: Sequence[Pass], report: Callable[[str], None] = lambda _: None
) -> tuple[JointGraph, list[PassRun]]:
    """Runs `passes` in order, verifying the result of each.

    Raises:
        AssertionError: a pass broke the graph; the message names it and those before it.
    """
    verify(graph)
    runs: list[PassRun] = []
    for item in passes:
        report(item.name)
        start = time.perf_counter()
        try:
            result = item.apply(graph)
            if result is not graph:
                verify(result)
        except PockmobileError:
            raise
        except Exception as error:
            done = ", ".join(run.name for run in runs) or "none"
            raise AssertionError(
                f"pass {item.name} failed (passes before it: {done}): {error}"
            ) from error
        seconds = time.perf_counter() - start
        runs.append(
            PassRun(
                item.name, item.options(), graph.num_operators, result.num_operators, seconds
            )
        )
        graph = result
    return graph, runs


def finish(graph: JointGraph) -> JointGraph:
    """Drops dead nodes from a graph that a pass has changed, and returns it."""
    graph.module.graph.eliminate_dead_code()
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    for name in [name for name in graph.module._buffers if name not in used]:
        del graph.module._buffers[name]
    graph.module.recompile()
    return graph


def pays_to_scale(weight: Any, result: fx.Node) -> bool:
    """Whether to scale a convolution's weight rather than its result, or their gradients.

    A constant is scaled once, a trained weight at each step: then the smaller one is.
    """
    is_constant = weight.op == "get_attr"
    return is_constant or value_of(weight).numel() <= value_of(result).numel()
