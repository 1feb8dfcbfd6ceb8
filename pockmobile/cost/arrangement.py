"""What a target's last passes do to the memory of a step: `ScaleAgain` and `SplitBatch`."""

from collections import Counter, defaultdict
from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import final

from torch import fx

from pockmobile.cost.work import Work, num_bytes
from pockmobile.graph.again import Again, values_again
from pockmobile.graph.batches import Parts, best_parts
from pockmobile.graph.liveness import Liveness

Held = tuple[int, fx.Node]
"""Bytes, and the node until which they are held."""


@final
@dataclass
class Arrangement:
    """How the lives of a step's values differ from what its graph says.

    `last` says of some values that they are read last earlier; `held` what is held beside
    from a node on; `shares` how many parts of a value are alive one after another; `joined`
    what lies beside the parts of a value while they are joined.
    """

    last: dict[fx.Node, fx.Node] = field(default_factory=dict)
    held: defaultdict[fx.Node, list[Held]] = field(default_factory=lambda: defaultdict(list))
    shares: dict[fx.Node, int] = field(default_factory=dict)
    joined: dict[fx.Node, int] = field(default_factory=dict)
    work: Counter[Work] = field(default_factory=Counter)

    @staticmethod
    def of(live: Liveness, constants: Container[fx.Node]) -> "Arrangement":
        """Returns what the passes would do to what is alive."""
        found, alive = Arrangement(), list(live.alive)
        for item in values_again(live, constants):
            found._make_again(item, live, alive)
        parts = best_parts(replace(live, alive=tuple(alive)), constants)
        if parts is not None:
            found._split(parts, live)
        return found

    def _make_again(self, item: Again, live: Liveness, alive: list[int]) -> None:
        size, late = num_bytes(item.value), item.late
        self.last[item.value] = item.last_early
        self.held[late[0]].append((size, late[-1]))
        self.work.update({Work.OPERATORS: 1, Work.BYTES: 2 * size})
        for place in range(live.place[item.last_early] + 1, live.place[late[0]]):
            alive[place] -= size

    def _split(self, parts: Parts, live: Liveness) -> None:
        start, stop = live.place[parts.operators[0]], live.place[parts.result]
        into, whole, count = live.owner[parts.result], num_bytes(parts.result), parts.num_parts
        inner = {live.owner[node] for node in parts.operators} - {into}
        self.shares.update(dict.fromkeys(inner, count))
        held = self.held[parts.operators[0]]
        # The parts that are made, until the whole has its place.
        held.append((whole - whole // count, live.nodes[max(start, live.place[into] - 1)]))
        for entry in parts.entries:
            reads = [node for node in parts.operators if entry in node.all_input_nodes]
            own = live.owner[entry]
            if own.op == "call_function":  # Of what comes in, the copy is counted.
                held.append((num_bytes(entry) // count, reads[-1]))
                self.last[own] = live.nodes[max(live.last[own], stop)]
        self.joined[parts.result] = whole
        copied = whole + sum(map(num_bytes, parts.entries))
        calls = len(parts.operators) * (count - 1) + len(parts.entries) * count + 1
        self.work.update({Work.OPERATORS: calls, Work.BYTES: 2 * copied})
