"""Follows the memory and the work of one plan's training step, operator by operator."""

import operator
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, final

import torch

from pockmobile.cost.arrangement import Arrangement
from pockmobile.cost.estimate import Estimate
from pockmobile.cost.memory import Arena, Memory
from pockmobile.cost.operators import Operators, read
from pockmobile.cost.option_graph import Part
from pockmobile.cost.rates import seconds
from pockmobile.cost.work import Load, Work, num_bytes
from pockmobile.graph.liveness import Liveness
from pockmobile.graph.order import made_late
from pockmobile.graph.rewrite import value_of

COUNTER_BYTES: Final = 4
"""The counter of steps that some optimizers share: float32 [1]."""


@final
class Step:
    """One plan's training step."""

    def __init__(self, model: Operators, parts: list[Part], needed: list[int]) -> None:
        """Finds the order of the `needed` operators, and what each of them costs here."""
        self._model = model
        self._parts = parts
        self._joined = {model.parameters[name] for name, part in parts if part is not None}
        trained = 0
        for name, _ in parts:
            trained |= model.depends[model.parameters[name]]
        self._is_constant = [
            not (reads or depends & trained)
            for reads, depends in zip(model.reads_data, model.depends, strict=True)
        ]
        self._copied = self._copies(needed)
        for number in self._copied:
            self._is_constant[number] = False
        self._order = self._ordered(needed)
        self._places = self._overwritten()
        self._last = self._last_reads()
        self._loads = {
            number: self._load(number)
            for number in self._order
            if model.nodes[number].op == "call_function" and model.roots[number] == number
        }
        self._planned = self._planned_values()
        self._arranged = self._arrange()
        self._work: Counter[Work] = Counter(self._arranged.work)
        self._memory = Memory()
        self._written = 0

    def estimate(self) -> Estimate:
        """Runs the step."""
        model = self._model
        updates: defaultdict[int, list[Part]] = defaultdict(list)
        for part in self._parts:
            # Biases of summed layers share one gradient.
            updates[model.gradients[part]].append(part)
        for number in self._order:
            for size, last in self._arranged.held.get(model.nodes[number], ()):
                self._memory.hold(size, Arena.WORKSPACE, model.index[last])
            if number in self._loads:
                self._run(number)
            elif number in self._joined:
                self._join(number)
            if not model.clips:
                self._update_all(updates[number])
            self._memory.end(number)
            if beside := self._arranged.joined.get(model.nodes[number]):
                self._memory.pass_peak(Arena.WORKSPACE, beside)
        if model.clips:
            self._update_in_the_end()
        peak = self._memory.peak
        state = sum(map(self._state_bytes, self._parts))
        state += COUNTER_BYTES if model.optimizer.counts_steps else 0
        return Estimate(
            peak[Arena.PLAN] + self._written,
            self._memory.workspace_bytes,
            state,
            seconds(self._work, model.target.name),
            dict(self._work),
            self._memory.moments,
        )

    def _ordered(self, needed: list[int]) -> list[int]:
        """Returns the operators that run, in order."""
        model = self._model
        order = self._host_first(
            [n for n in needed if not (self._is_constant[n] or self._is_given(n))]
        )
        # What is trained in part is joined where it is first read.
        joined = {model.nodes[number] for number in self._joined}
        late = made_late([model.nodes[number] for number in order], joined)
        return [model.index[node] for node in late]

    def _is_given(self, number: int) -> bool:
        """Whether a value comes in: the trained part of a parameter."""
        is_slice = self._model.nodes[number].target is torch.ops.aten.slice_copy.Tensor
        return is_slice and self._joined.issuperset(self._model.parents[number])

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

    def _update_in_the_end(self) -> None:
        for time, part in enumerate(self._parts, len(self._model.nodes)):
            place = self._places[self._model.gradients[part]]
            self._update(part, grad_dies=self._dies(place, time))
            self._memory.end(time)

    def _update_all(self, parts: Sequence[Part]) -> None:
        for part in parts:
            number = self._model.gradients[part]
            self._update(part, grad_dies=part == parts[-1] and self._dies(number, number))

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
        inside = set(self._order)
        for number in sorted(self._order):
            if model.roots[number] != number:
                places[number] = places[model.roots[number]]
            elif model.nodes[number].op == "call_function":
                value = model.target.overwritten(
                    model.nodes[number], lambda node: uses[model.index[node]]
                )
                if value is not None and model.index[value] in inside:
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
            for time, part in enumerate(self._parts, len(self._model.nodes)):
                last[self._places[self._model.gradients[part]]] = time
        return last

    def _arrange(self) -> Arrangement:
        """Returns what the target's last passes do, and ends some values' lives by it."""
        model = self._model
        if not model.target.saves_memory:
            return Arrangement()
        nodes = [model.nodes[number] for number in self._order]
        owners = {model.nodes[n]: model.nodes[self._places[n]] for n in self._order}
        inside = owners.keys()
        owners = {node: own if own in inside else node for node, own in owners.items()}
        joined = {model.nodes[number] for number in self._joined}
        live = Liveness.along(nodes, owners, read, joined)
        transient = [
            self._loads[n].transient_bytes if n in self._loads else 0 for n in self._order
        ]
        alive = tuple(map(sum, zip(live.alive, transient, strict=True)))
        pairs = zip(model.nodes, self._is_constant, strict=True)
        constants = {node for node, is_constant in pairs if is_constant}
        found = Arrangement.of(replace(live, alive=alive), constants)
        self._last.update({model.index[a]: model.index[b] for a, b in found.last.items()})
        return found

    def _share(self, number: int) -> int:
        """Returns how many parts of a value are alive one after another."""
        return self._arranged.shares.get(self._model.nodes[self._places[number]], 1)

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
            and not (parent in frozen or self._is_given(parent))
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
        self._hold_laid_out(number)
        if self._places[number] == number:
            self._hold(number)
        phase = "forward" if self._model.loss_needs[number] else "backward"
        arena = Arena.PLAN if load.is_host else Arena.WORKSPACE
        name = str(self._model.nodes[number].meta.get("module", ""))
        self._memory.run(arena, load.transient_bytes // self._share(number), name, phase)

    def _hold_laid_out(self, number: int) -> None:
        """Keeps the copies that a delegate makes of what comes in while they are read."""
        model = self._model
        for parent in model.parents[number]:
            is_input = model.nodes[parent].op == "placeholder" and model.reads_data[parent]
            if is_input and model.target.lays_out(value_of(model.nodes[parent])):
                size = model.sizes[parent] // self._share(number)
                self._memory.hold(size, Arena.WORKSPACE, number)

    def _join(self, number: int) -> None:
        """Counts a weight whose trained channels are joined with its frozen ones."""
        size = num_bytes(self._model.nodes[number])
        self._work.update({Work.BYTES: 2 * size, Work.OPERATORS: 1})
        self._hold(number)

    def _hold(self, number: int) -> None:
        arena = Arena.PLAN if number in self._planned else Arena.WORKSPACE
        size = self._model.sizes[number] // self._share(number)
        self._memory.hold(size, arena, self._last.get(number, number))

    def _update(self, part: Part, *, grad_dies: bool) -> None:
        """Runs an update; `grad_dies` says that nothing else reads the same gradient later."""
        model = self._model
        load = model.templates.update(model.optimizer, model.value(part), grad_dies=grad_dies)
        self._work.update(load.work)
        arena = Arena.PLAN if load.is_host else Arena.WORKSPACE
        if load.is_host:
            self._memory.hold(self._state_bytes(part), arena, None)
        else:
            # A delegate's outputs are in the plan as long as the delegate runs.
            self._written += self._state_bytes(part)
        self._memory.run(arena, load.transient_bytes, part[0], "update")

    def _dies(self, number: int, time: int) -> bool:
        """Whether nothing reads a value after operator number `time` has run."""
        place = self._places[number]
        is_made = self._model.nodes[place].op == "call_function"
        return is_made and self._last.get(place, number) == time

    def _state_bytes(self, part: Part) -> int:
        value = self._model.value(part)
        num_tensors = 1 + len(self._model.optimizer.slots)
        return value.numel() * value.element_size() * num_tensors
