"""Computes once what comes before the first layer that learns.

A task is cut in front of that layer: what its forward pass has computed until there is
stored for each example, and becomes the inputs of another task, whose forward pass is the
rest. So nothing else knows of the cache, and a task that was cut can be cut again further
down.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, final

import torch
from torch import Tensor, fx

from pockmobile.capture import Forward, ForwardInterpreter
from pockmobile.capture.cut import after, before, crossing, first_use
from pockmobile.sensitivity.task import Data, Task, in_order

CACHE_BYTES: Final = 1 << 30
"""The most that is stored for a task, training and evaluation examples together."""


@final
class PrefixCache:
    """Cuts a task for one layer after another, and keeps the last cut alone.

    Layers in execution order are cheapest: each cut goes on where the one before it ended.
    """

    def __init__(self, task: Task, limit_bytes: int = CACHE_BYTES) -> None:
        """Starts without a cut."""
        self._task = self._cut = task
        self._depth = 0
        self._limit_bytes = limit_bytes

    def task_for(self, names: Iterable[str]) -> Task:
        """Returns the task, cut for training these parameters."""
        wanted = frozenset(names)
        depth = first_use(self._task.forward, wanted)
        if depth < self._depth:
            self._cut = self._task
        if depth != self._depth:
            self._cut = cut_task(self._cut, wanted, self._limit_bytes)
        self._depth = depth
        return self._cut


def cut_task(task: Task, names: Iterable[str], limit_bytes: int = CACHE_BYTES) -> Task:
    """Returns a task that gives the same when these parameters are trained, but sooner.

    Returns the task itself where nothing can be stored: no operator comes before, the values
    are not one for each example (dim 0 is not the batch), or exceed the limit everywhere.
    """
    place = _place(task, first_use(task.forward, names), limit_bytes)
    if place is None:
        return task
    prefix = replace(task.forward, graph=before(task.forward, place))
    rest = after(task.forward, place)
    stored = [node.name for node in rest.graph.nodes if node.op == "placeholder"]
    train, evaluation = (_stored(prefix, stored, data) for data in (task.train, task.eval))
    size = task.forward.batch_size
    inputs = {name: value[:size].clone() for name, value in train.inputs.items()}
    forward = replace(prefix, graph=rest, inputs=inputs, leaves=tuple(inputs.values()))
    cut = Task(forward, task.loss, train, evaluation)
    return cut if _agree(task, cut) else task


def _place(task: Task, first: int, limit_bytes: int) -> int | None:
    """Returns the last place up to `first` where the values that cross can be stored."""
    forward = task.forward
    nodes = list(forward.graph.graph.nodes)
    bytes_of = _bytes_of(forward)
    num_examples = task.train.num_examples + task.eval.num_examples
    for place in range(min(first, len(nodes) - 1), 0, -1):
        if nodes[place].op in ("placeholder", "get_attr"):
            continue
        values = crossing(forward, place)
        if all(node.op == "placeholder" for node in values):
            return None
        is_storable = all(node in bytes_of for node in values)
        if is_storable and sum(bytes_of[node] for node in values) * num_examples <= limit_bytes:
            return place
    return None


@torch.no_grad()
def _bytes_of(forward: Forward) -> dict[fx.Node, int]:
    """Returns the bytes for each example, of the nodes whose dim 0 has a batch's length."""
    observer = _Observer(forward, _tensors(forward))
    observer.outputs({name: value.clone() for name, value in forward.inputs.items()})
    return {
        node: shape.numel() * width // forward.batch_size
        for node, (shape, width) in observer.shapes.items()
        if shape and shape[0] == forward.batch_size
    }


@final
class _Observer(ForwardInterpreter):
    """Notes the shape and the bytes of an element of each tensor that it computes."""

    def __init__(self, forward: Forward, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(forward, tensors)
        self.shapes: dict[fx.Node, tuple[torch.Size, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = (result.shape, result.element_size())
        return result


@torch.no_grad()
def _stored(prefix: Forward, names: Sequence[str], data: Data) -> Data:
    """Returns what crosses the cut for each example, beside its targets."""
    interpreter = ForwardInterpreter(prefix, _tensors(prefix))
    stored: dict[str, Tensor] = {}
    start = 0
    for batch, num_real in in_order(data, prefix.batch_size):
        for name, value in zip(names, interpreter.outputs(batch.inputs), strict=True):
            if name not in stored:
                stored[name] = value.new_empty((data.num_examples, *value.shape[1:]))
            stored[name][start : start + num_real] = value[:num_real]
        start += num_real
    return Data(stored, data.targets)


@torch.no_grad()
def _agree(task: Task, cut: Task) -> bool:
    """Whether both give the same for a batch other than those that were stored.

    They do not where dim 0 only happens to have a batch's length, or where an operator writes
    into memory that crosses the cut twice.
    """
    rows = torch.arange(task.train.num_examples).flip(0)[: task.forward.batch_size]
    expected, found = (
        ForwardInterpreter(side.forward, _tensors(side.forward)).outputs(
            side.train.select(rows).inputs
        )[0]
        for side in (task, cut)
    )
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def _tensors(forward: Forward) -> dict[str, Tensor]:
    return {**forward.parameters, **forward.buffers}
