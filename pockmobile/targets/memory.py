"""Plans the memory of values that the runtime holds, with hardly a gap between them.

ExecuTorch's own algorithm puts values into buckets that never grow; on a training step of
MobileNetV2 it takes 1.3 times the most bytes alive. Greedy by size (Pisarchyk & Lee,
Efficient Memory Management for Deep Neural Net Inference, 2020, section 5.2) places each
value, the largest first, into the smallest gap that is free during its life; greedy by breadth
(section 5.3) first those that are alive when most is.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

from executorch.exir.memory_planning import (
    MemoryAlgoResult,
    MemoryPlanningAlgorithmSuite,
    SpecAllocResult,
    greedy,
)
from torch.utils._pytree import tree_leaves

_ARENA = 1
"""ExecuTorch's number for the memory of ordinary values; 0 stands for constants."""


def memory_planner() -> MemoryPlanningAlgorithmSuite:
    """Returns the planner of ExecuTorch's memory pass: the best of its own and ours."""
    return MemoryPlanningAlgorithmSuite([greedy_in_order, greedy_by_size, greedy_by_breadth])


def greedy_in_order(
    alignment: int, specs: set[Any], graph_module: Any, graph_signature: Any, padding: int = 0
) -> MemoryAlgoResult:
    """Runs ExecuTorch's algorithm on values in the graph's order, for the same plan always."""
    ordered: Any = _in_order(specs, graph_module)
    return greedy(alignment, ordered, graph_module, graph_signature, padding)


def greedy_by_size(
    alignment: int, specs: set[Any], graph_module: Any, graph_signature: Any, padding: int = 0
) -> MemoryAlgoResult:
    """Places each value in the smallest gap; the interface is ExecuTorch's.

    Values that share storage, or have a place already, are left to ExecuTorch's algorithm.
    """
    return _planned(_by_size, alignment, specs, graph_module, graph_signature, padding)


def greedy_by_breadth(
    alignment: int, specs: set[Any], graph_module: Any, graph_signature: Any, padding: int = 0
) -> MemoryAlgoResult:
    """Places what is alive at the peak first; otherwise as `greedy_by_size`."""
    return _planned(_by_breadth, alignment, specs, graph_module, graph_signature, padding)


def _planned(
    arrange: Callable[[Sequence[Any]], Iterable[Any]],
    alignment: int,
    specs: set[Any],
    graph_module: Any,
    graph_signature: Any,
    padding: int,
) -> MemoryAlgoResult:
    if any(spec.storage_base is not None or spec.mem_id is not None for spec in specs):
        return greedy_in_order(alignment, specs, graph_module, graph_signature, padding)
    ordered = _in_order(specs, graph_module)
    for spec in ordered:
        spec.realign(alignment)
    arena = Arena()
    result = MemoryAlgoResult({}, [])
    for number, spec in enumerate(arrange(ordered)):
        offset = arena.place(spec.allocated_memory, *spec.lifetime)
        result.spec_dict[spec] = SpecAllocResult(_ARENA, number, offset)
    result.bufsizes = [0, arena.size + padding] if specs else [0, 0]
    return result


def _by_size(specs: Sequence[Any]) -> list[Any]:
    return sorted(specs, key=lambda spec: (-spec.allocated_memory, *spec.lifetime))


def _by_breadth(specs: Sequence[Any]) -> list[Any]:
    breadth = Counter[int]()
    for spec in specs:
        first, last = spec.lifetime
        breadth.update(dict.fromkeys(range(first, last + 1), spec.allocated_memory))
    widest = {time: place for place, (time, _) in enumerate(breadth.most_common())}

    def first_met(spec: Any) -> int:
        first, last = spec.lifetime
        return min(widest[time] for time in range(first, last + 1))

    return sorted(_by_size(specs), key=first_met)


def _in_order(specs: Iterable[Any], graph_module: Any) -> list[Any]:
    """Returns the values in the graph's order; that of a set differs from run to run."""
    specs_of_nodes = tree_leaves([node.meta.get("spec") for node in graph_module.graph.nodes])
    places = {id(spec): place for place, spec in enumerate(specs_of_nodes)}
    return sorted(specs, key=lambda spec: places.get(id(spec), len(places)))


@final
class Arena:
    """Memory in which values lie during their lives, from `first` to `last` inclusive."""

    def __init__(self) -> None:
        """Starts empty; `size` is in bytes."""
        self.size = 0
        self._placed: list[tuple[int, int, int, int]] = []  # start, stop, first, last

    def place(self, num_bytes: int, first: int, last: int) -> int:
        """Returns the start of the smallest gap that fits, or of the free end."""
        taken = sorted(
            (start, stop)
            for start, stop, begin, end in self._placed
            if begin <= last and first <= end
        )
        best: tuple[int, int] | None = None
        end = 0
        for start, stop in taken:
            gap = start - end
            if gap >= num_bytes and (best is None or gap < best[0]):
                best = gap, end
            end = max(end, stop)
        offset = best[1] if best else end
        self._placed.append((offset, offset + num_bytes, first, last))
        self.size = max(self.size, offset + num_bytes)
        return offset


@final
@dataclass(frozen=True)
class Life:
    """A value: its bytes, and the first and the last operator that need it."""

    num_bytes: int
    first: int
    last: int


def largest_first(values: Iterable[Life], alignment: int = 1) -> int:
    """Returns the bytes in which values lie that are placed by size, as XNNPACK does."""
    arena = Arena()
    for life in sorted(values, key=lambda life: -life.num_bytes):
        arena.place(-(-life.num_bytes // alignment) * alignment, life.first, life.last)
    return arena.size
