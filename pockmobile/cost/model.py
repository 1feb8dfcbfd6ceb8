"""Predicts the memory and the time of a plan's training step, without lowering it."""

import operator
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor, fx

from pockmobile.cost.memory import Arena, Memory, Moment
from pockmobile.cost.option_graph import OptionGraph, Part
from pockmobile.cost.rates import seconds
from pockmobile.cost.template import Templates
from pockmobile.cost.work import Load, Work, num_bytes, root
from pockmobile.errors import PlanError
from pockmobile.graph import JointGraph, Role
from pockmobile.graph.rewrite import value_of
from pockmobile.optim import Optimizer
from pockmobile.plan import Slice
from pockmobile.targets import Target

_aten = torch.ops.aten

_UNFOLDED: Final = (
    _aten.view_copy.default,
    _aten.permute_copy.default,
    _aten.slice_copy.Tensor,
    _aten.expand_copy.default,
    _aten.full.default,
)

_SCALINGS: Final = (_aten.mul.Tensor, _aten.div.Tensor)

COUNTER_BYTES: Final = 4
"""The counter of steps that some optimizers share: float32 [1]."""


@final
@dataclass(frozen=True)
class Estimate:
    """What a training step is predicted to need.

    `planned_bytes` and `workspace_bytes` are those of the manifest: what the runtime plans,
    and what delegates need beside it. `state_bytes` are the trained tensors and the
    optimizer's, `seconds` the time of a step on one thread (see `rates`).
    """

    planned_bytes: int
    workspace_bytes: int
    state_bytes: int
    seconds: float
    work: Mapping[Work, float]
    moments: Sequence[Moment]

    @property
    def memory_bytes(self) -> int:
        """All bytes of a step beside frozen weights and the state that comes in."""
        return self.planned_bytes + self.workspace_bytes


@final
class CostModel:
    """The cost of any plan whose parts the option graph has.

    The operators that a plan needs are found by reachability; those that depend on frozen
    weights alone cost nothing; what is alive is followed operator by operator. What one
    operator costs is read off the target's own rewrite of it.
    """

    def __init__(
        self, options: OptionGraph, optimizer: Optimizer, target: Target, *, clips: bool = False
    ) -> None:
        """Finds what each operator depends on, and what each gradient needs.

        `clips` says that gradients are clipped by their joint norm.
        """
        self.optimizer = optimizer
        self.clips = clips
        self.target = target
        self.templates = Templates(target)
        self.nodes = [node for node in options.graph.nodes if node.op != "output"]
        self.index = index = {node: number for number, node in enumerate(self.nodes)}
        self.parents = [[index[p] for p in node.all_input_nodes] for node in self.nodes]
        self.roots = [index[root(node, target)] for node in self.nodes]
        self.reads = [[index[p] for p in _read(node)] for node in self.nodes]
        self.sizes = [self._size(number) for number in range(len(self.nodes))]
        parameters = options.graph.input_nodes(Role.PARAMETER)
        self.parameters = {name: index[node] for name, node in parameters.items()}
        self.gradients = {part: index[node] for part, node in options.gradients.items()}
        self.reads_data, self.depends = self._dependencies()
        self.unfolded = self._unfolded()
        self._needs = {part: self._ancestors(n) for part, n in self.gradients.items()}
        self.loss_needs = self._ancestors(index[_loss(options.graph)])
        self._loads: dict[Any, Load] = {}

    def estimate(self, update: Mapping[str, Slice | None]) -> Estimate:
        """Predicts the cost of training `update`: parameter -> None (whole) or a slice.

        Raises:
            PlanError: a part that the option graph does not have, or none at all.
        """
        parts = list(update.items())
        unknown = [part for part in parts if part not in self.gradients]
        if unknown or not parts:
            found = unknown[0] if unknown else "nothing"
            raise PlanError(f"the cost of training {found} is unknown: it is not in the space")
        needed = np.logical_or.reduce([self.loss_needs, *(self._needs[p] for p in parts)])
        return _Step(self, parts, np.flatnonzero(needed).tolist()).estimate()

    def load(self, number: int, frozen: tuple[int, ...], dying: tuple[int, ...]) -> Load:
        """Returns the load of a node of whose inputs some are frozen and some die with it."""
        key = (number, frozen, dying)
        if key not in self._loads:
            parts = (frozenset(self.nodes[p] for p in group) for group in (frozen, dying))
            self._loads[key] = self.templates.operator(self.nodes[number], *parts)
        return self._loads[key]

    def value(self, part: Part) -> Tensor:
        """Returns the meta tensor of a part's gradient."""
        return value_of(self.nodes[self.gradients[part]])

    def _size(self, number: int) -> int:
        """Returns the bytes of a node's value.

        What is expanded in a delegate stays as small as it was, and so does it times a number.
        """
        node, parents = self.nodes[number], self.parents[number]
        if node.target in _SCALINGS and len(parents) == 1:
            return min(num_bytes(node), num_bytes(self.nodes[self.roots[parents[0]]]))
        return num_bytes(node)

    def _dependencies(self) -> tuple[list[bool], list[int]]:
        """Returns of each node whether it reads the batch, and (as bits) which parameters."""
        reads_data: list[bool] = []
        depends: list[int] = []
        bits = {number: 1 << place for place, number in enumerate(self.parameters.values())}
        for number, node in enumerate(self.nodes):
            parents = self.parents[number]
            is_data = node.op == "placeholder" and number not in bits
            reads_data.append(is_data or any(reads_data[p] for p in parents))
            own = bits.get(number, 0)
            for parent in parents:
                own |= depends[parent]
            depends.append(own)
        return reads_data, depends

    def _unfolded(self) -> set[int]:
        """Returns the nodes that stay operators, whatever is frozen."""
        found: set[int] = set()
        for number, node in enumerate(self.nodes):
            whole = {p for p in self.parents[number] if self.nodes[p].op != "call_function"}
            if node.target in _UNFOLDED and found | whole >= set(self.parents[number]):
                found.add(number)
        return found

    def _ancestors(self, number: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        found = np.zeros(len(self.nodes), dtype=bool)
        pending = [number]
        while pending:
            node = pending.pop()
            if not found[node]:
                found[node] = True
                pending.extend(self.parents[node])
        return found


def _read(node: fx.Node) -> list[fx.Node]:
    """Returns the nodes whose values a node reads: of some it needs the shape alone."""
    if node.target is not _aten.convolution_backward.default:
        return node.all_input_nodes
    grad, x, weight, *_ = node.args
    results = {user.args[1] for user in node.users}
    read = [grad, *([x] if 1 in results else []), *([weight] if 0 in results else [])]
    return [value for value in read if isinstance(value, fx.Node)]


def _loss(graph: JointGraph) -> fx.Node:
    (loss,) = graph.output_nodes(Role.LOSS).values()
    return loss


@final
class _Step:
    """One plan's training step."""

    def __init__(self, model: CostModel, parts: list[Part], needed: list[int]) -> None:
        self._model = model
        self._parts = parts
        trained = 0
        for name, _ in parts:
            trained |= model.depends[model.parameters[name]]
        is_constant = [
            not (reads or depends & trained)
            for reads, depends in zip(model.reads_data, model.depends, strict=True)
        ]
        self._is_constant = is_constant
        self._copied = self._copies(needed)
        for number in self._copied:
            is_constant[number] = False
        self._order = self._host_first([n for n in needed if not is_constant[n]])
        self._places = self._overwritten()
        self._last = self._last_reads()
        self._loads = {
            number: self._load(number)
            for number in self._order
            if model.nodes[number].op == "call_function" and model.roots[number] == number
        }
        self._planned = self._planned_values()
        self._work: Counter[Work] = Counter()
        self._memory = Memory()
        self._written = 0

    def estimate(self) -> Estimate:
        """Runs the step."""
        model = self._model
        joined = {model.parameters[name] for name, part in self._parts if part is not None}
        updates: defaultdict[int, list[Part]] = defaultdict(list)
        for part in self._parts:
            # Biases of summed layers share one gradient.
            updates[model.gradients[part]].append(part)
        for number in self._order:
            if number in self._loads:
                self._run(number)
            elif number in joined:
                self._join(number)
            if not model.clips:
                self._update_all(updates[number])
            self._memory.end(number)
        if model.clips:
            self._update_all(self._parts)
        peak = self._memory.peak
        state = sum(map(self._state_bytes, self._parts))
        state += COUNTER_BYTES if model.optimizer.counts_steps else 0
        return Estimate(
            peak[Arena.PLAN] + self._written,
            peak[Arena.WORKSPACE],
            state,
            seconds(self._work, model.target.name),
            dict(self._work),
            self._memory.moments,
        )

    def _host_first(self, order: list[int]) -> list[int]:
        """Moves up what the host does before it calls the first delegate."""
        model = self._model
        early: set[int] = set()
        for number in order:
            node, parents = model.nodes[number], model.parents[number]
            frozen = tuple(p for p in parents if self._is_constant[p])
            is_view = model.roots[number] != number or node.target is operator.getitem
            if node.op != "call_function" or (
                all(parent in early or parent in frozen for parent in parents)
                and (
                    is_view or number in self._copied or model.load(number, frozen, ()).is_host
                )
            ):
                early.add(number)
        return sorted(order, key=lambda number: number not in early)

    def _update_all(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self._update(part, is_last=part == parts[-1])

    def _copies(self, needed: list[int]) -> set[int]:
        """Returns the copies of frozen weights, and fills, that are made at each step.

        They are not folded (see `FoldConstants`), since delegates read a frozen weight in any
        layout; where the host reads them, they are made.
        """
        model = self._model
        found: set[int] = set()
        for number in reversed(needed):
            frozen = tuple(p for p in model.parents[number] if self._is_constant[p])
            sources = model.unfolded.intersection(frozen)
            if sources and (
                number in found
                if self._is_constant[number]
                else model.load(number, frozen, ()).is_host
            ):
                found |= sources
        return found

    def _overwritten(self) -> dict[int, int]:
        """Returns where each value lies: a view's source, or what an operator writes over."""
        model = self._model
        uses = Counter(parent for number in self._order for parent in model.parents[number])
        uses.update(model.gradients[part] for part in self._parts)
        places = {number: model.roots[number] for number in range(len(model.nodes))}
        for number in sorted(self._order):
            if model.roots[number] != number:
                places[number] = places[model.roots[number]]
            elif model.nodes[number].op == "call_function":
                value = model.target.overwritten(
                    model.nodes[number], lambda node: uses[model.index[node]]
                )
                if value is not None and not self._is_constant[model.index[value]]:
                    places[number] = places[model.index[value]]
        return places

    def _last_reads(self) -> dict[int, int]:
        """Returns which operator reads each value last."""
        last: dict[int, int] = {}
        for number in self._order:
            sources = (self._places[parent] for parent in self._model.reads[number])
            last.update(dict.fromkeys(sources, number))
        if self._model.clips:
            # Their joint norm is known when the last one is: until then all are kept.
            gradients = (self._model.gradients[part] for part in self._parts)
            end = len(self._model.nodes)
            last.update((self._places[number], end) for number in gradients)
        return last

    def _load(self, number: int) -> Load:
        model = self._model
        parents = model.parents[number]
        is_frozen = number not in self._copied
        frozen = tuple(p for p in parents if is_frozen and self._is_constant[p])
        dying = tuple(
            parent
            for parent in parents
            # What comes in from outside is not counted, so it does not die either.
            if self._last.get(self._places[parent]) == number
            and model.nodes[self._places[parent]].op == "call_function"
            and parent not in frozen
        )
        return model.load(number, frozen, dying)

    def _planned_values(self) -> set[int]:
        """Returns which values lie in the runtime's plan: those that the host touches."""
        planned: set[int] = set()
        for number, load in self._loads.items():
            if load.is_host:
                planned.add(number)
                planned.update(self._places[p] for p in self._model.parents[number])
        return planned

    def _run(self, number: int) -> None:
        load = self._loads[number]
        self._work.update(load.work)
        if self._places[number] == number:
            self._hold(number)
        phase = "forward" if self._model.loss_needs[number] else "backward"
        arena = Arena.PLAN if load.is_host else Arena.WORKSPACE
        name = str(self._model.nodes[number].meta.get("module", ""))
        self._memory.run(arena, load.transient_bytes, name, phase)

    def _join(self, number: int) -> None:
        """Counts a weight whose trained channels are joined with its frozen ones."""
        size = num_bytes(self._model.nodes[number])
        self._work.update({Work.BYTES: 2 * size, Work.OPERATORS: 1})
        self._hold(number)

    def _hold(self, number: int) -> None:
        arena = Arena.PLAN if number in self._planned else Arena.WORKSPACE
        size = self._model.sizes[number]
        self._memory.hold(size, arena, self._last.get(number, number))

    def _update(self, part: Part, *, is_last: bool) -> None:
        """Runs an update; `is_last` says that no other one reads the same gradient."""
        model, number = self._model, self._model.gradients[part]
        load = model.templates.update(
            model.optimizer, model.value(part), grad_dies=is_last and self._dies(number)
        )
        self._work.update(load.work)
        arena = Arena.PLAN if load.is_host else Arena.WORKSPACE
        if load.is_host:
            self._memory.hold(self._state_bytes(part), arena, None)
        else:
            # A delegate's outputs are in the plan as long as the delegate runs.
            self._written += self._state_bytes(part)
        self._memory.run(arena, load.transient_bytes, part[0], "update")

    def _dies(self, number: int) -> bool:
        """Whether no operator reads a value after this one has run."""
        place = self._places[number]
        is_made = self._model.nodes[place].op == "call_function"
        return is_made and self._last.get(place, number) == number

    def _state_bytes(self, part: Part) -> int:
        value = self._model.value(part)
        num_tensors = 1 + len(self._model.optimizer.slots)
        return value.numel() * value.element_size() * num_tensors
