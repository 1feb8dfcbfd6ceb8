"""What a target is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from torch import Tensor, fx, nn

from pockmobile.errors import UsageError
from pockmobile.graph import JointGraph
from pockmobile.passes import Pass


@final
@dataclass(frozen=True)
class Outside:
    """An operator that no delegate took: its name, the module it came from, and why."""

    operator: str
    module: str
    reason: str


@final
@dataclass(frozen=True)
class DelegateInfo:
    """A compiled delegate: its backend, its bytes in the file, and what it computes.

    `operators` counts the graph's operators inside by name.
    """

    backend: str
    num_bytes: int
    operators: Mapping[str, int]


@final
@dataclass(frozen=True)
class LoweredMethod:
    """A module that `torch.export` can take, whose delegates are already compiled.

    `num_delegated` counts the operators inside `num_partitions` delegates; `outside` lists
    each of the others. `frozen` maps the hash of each constant to its size in bytes.
    `memory` follows what delegates need beside the runtime's plan: the bytes alive while each
    of their operators runs, one after the other, and the module that it is of. `arena_bytes`
    is what a backend plans for the largest of them, gaps included, where that is known.
    """

    module: nn.Module
    num_partitions: int
    num_delegated: int
    outside: tuple[Outside, ...]
    frozen: Mapping[str, int]
    memory: Sequence[tuple[int, str]] = ()
    delegates: Sequence[DelegateInfo] = ()
    arena_bytes: int = 0

    @property
    def workspace_bytes(self) -> int:
        """The most bytes that delegates need beside the runtime's plan."""
        return max([self.arena_bytes, *(num_bytes for num_bytes, _ in self.memory)])


_LARGEST_SCALE: Final = 32768.0


def check_loss_scale(scale: float) -> None:
    """Checks what a loss is multiplied by in float16, which ends at 65504.

    Raises:
        UsageError: it is out of range.
    """
    if not 1.0 <= scale <= _LARGEST_SCALE:
        raise UsageError(f"loss_scale is {scale!r}, expected 1 to {_LARGEST_SCALE:g}")


class Target(ABC):
    """Where a program runs: its decompositions, and how its operators are lowered."""

    name: str
    gradient_scale: float | None
    """What gradients are multiplied by while they are computed in float16; None in float32."""
    saves_memory: bool = False
    """Whether it needs less where operators run in parts, or again, to keep less alive.

    A delegate that plans its memory by itself does not.
    """
    packs_products: bool = False
    """Whether a product holds a copy of a right operand that comes at run time."""
    views: frozenset[Any]
    """The operators whose result lies where their input lies: they move nothing."""

    def moves(self, node: fx.Node) -> bool:
        """Whether an operator runs, and its result has a place of its own."""
        return node.target not in self.views

    def lays_out(self, value: Tensor) -> bool:
        """Whether an input is copied before it is read, into another order of dimensions."""
        return False

    def overwritten(self, node: fx.Node, uses: Callable[[fx.Node], int]) -> fx.Node | None:
        """Returns the value in whose place an operator writes its result; by default none.

        `uses` counts the operators that read a value.
        """
        return None

    @abstractmethod
    def options(self) -> Mapping[str, object]:
        """Returns what was chosen for the target, as the manifest tells it."""

    def check_ready(self) -> None:  # noqa: B027  (most compile with nothing of a vendor's)
        """Checks, before anything takes long, that what it compiles with is there.

        Raises:
            PockmobileError: it is not.
        """

    @abstractmethod
    def passes(self) -> Sequence[Pass]:
        """Returns the passes that write the graph in the target's own operators, in order."""

    @abstractmethod
    def delegates(self, node: fx.Node, constants: Container[fx.Node]) -> bool:
        """Whether a delegate takes an operator, of whose inputs `constants` are frozen."""

    def calibrated(self, graphs: Mapping[str, JointGraph]) -> "Target":
        """Returns the target with what it measures on each method's graph before lowering.

        By default it measures nothing.
        """
        return self

    @abstractmethod
    def lower(self, graph: JointGraph, *, method: str = "forward") -> LoweredMethod:
        """Returns the graph with its delegates compiled, as `method` of a program."""

    def share(self, methods: Mapping[str, LoweredMethod]) -> Mapping[str, LoweredMethod]:
        """Returns all of a program's methods, with what several of them hold in one place.

        By default they are as they were: the exporter itself finds what is named alike.
        """
        return methods
