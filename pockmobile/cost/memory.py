"""Follows the bytes alive during a step: those in the runtime's plan and in delegates."""

from collections import defaultdict
from dataclasses import dataclass, field
from enum import IntEnum
from typing import final


class Arena(IntEnum):
    """Where a value lies: a delegate's workspace, or the runtime's own plan."""

    WORKSPACE = 0
    PLAN = 1


@final
@dataclass(frozen=True)
class Moment:
    """The bytes alive while one operator runs; `phase` is forward, backward or update."""

    label: str
    live_bytes: int
    phase: str


@final
@dataclass
class Memory:
    """What is alive, operator by operator; `moments` tells its course."""

    peak: list[int] = field(default_factory=lambda: [0, 0])
    moments: list[Moment] = field(default_factory=list)
    _live: list[int] = field(default_factory=lambda: [0, 0])
    _ending: dict[int, list[tuple[Arena, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def hold(self, num_bytes: int, arena: Arena, last: int | None) -> None:
        """Keeps a value until operator number `last` has run, or (None) to the end."""
        self._live[arena] += num_bytes
        if last is not None:
            self._ending[last].append((arena, num_bytes))

    def run(self, arena: Arena, transient: int, label: str, phase: str) -> None:
        """Notes that an operator runs, which holds `transient` bytes for itself."""
        self.pass_peak(arena, transient)
        self.moments.append(Moment(label, sum(self._live) + transient, phase))

    def pass_peak(self, arena: Arena, transient: int) -> None:
        """Notes that so many bytes more than what is held are alive for a while."""
        self._live[arena] += transient
        self.peak = [max(pair) for pair in zip(self.peak, self._live, strict=True)]
        self._live[arena] -= transient

    def end(self, number: int) -> None:
        """Frees what was read last by operator `number`."""
        for arena, num_bytes in self._ending.pop(number, ()):
            self._live[arena] -= num_bytes
