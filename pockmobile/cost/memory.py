"""Follows the bytes alive during a step: those in the runtime's plan and in delegates."""

import sys
from collections import defaultdict
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, final

from pockmobile.targets.memory import Life, largest_first


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


_SMALL: Final = 64
"""A value so many times smaller than the peak finds a gap."""


@final
@dataclass
class Memory:
    """What is alive, operator by operator; `moments` tells its course."""

    peak: list[int] = field(default_factory=lambda: [0, 0])
    moments: list[Moment] = field(default_factory=list)
    _live: list[int] = field(default_factory=lambda: [0, 0])
    _lives: list[Life] = field(default_factory=list)
    _ending: dict[int, list[tuple[Arena, int, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _now: int = 0

    def hold(self, num_bytes: int, arena: Arena, last: int | None) -> None:
        """Keeps a value until operator number `last` has run, or (None) to the end."""
        self._live[arena] += num_bytes
        end = sys.maxsize if last is None else last
        self._ending[end].append((arena, num_bytes, self._now))

    def run(self, arena: Arena, transient: int, label: str, phase: str) -> None:
        """Notes that an operator runs, which holds `transient` bytes for itself."""
        self.pass_peak(arena, transient)
        self.moments.append(Moment(label, sum(self._live) + transient, phase))

    def pass_peak(self, arena: Arena, transient: int) -> None:
        """Notes that so many bytes more than what is held are alive for a while."""
        self._live[arena] += transient
        self.peak = [max(pair) for pair in zip(self.peak, self._live, strict=True)]
        self._live[arena] -= transient
        if arena is Arena.WORKSPACE:
            self._lives.append(Life(transient, self._now, self._now))
        self._now += 1

    def end(self, number: int) -> None:
        """Frees what was read last by operator `number`."""
        for arena, num_bytes, first in self._ending.pop(number, ()):
            self._live[arena] -= num_bytes
            if arena is Arena.WORKSPACE:
                self._lives.append(Life(num_bytes, first, self._now - 1))

    @property
    def workspace_bytes(self) -> int:
        """What a delegate plans that places the largest values first, gaps included."""
        peak = self.peak[Arena.WORKSPACE]
        kept = [
            Life(num_bytes, first, self._now)
            for items in self._ending.values()
            for arena, num_bytes, first in items
            if arena is Arena.WORKSPACE
        ]
        # In the order in which they are made, as the delegate knows them.
        lives = sorted([*self._lives, *kept], key=lambda life: life.first)
        large = (life for life in lives if life.num_bytes * _SMALL > peak)
        return max(peak, largest_first(large))
