"""Writes the manifest of a program from what the compiler knows of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final, final

import torch

from pockmobile.artifact import manifest as m
from pockmobile.graph import JointGraph, Port, Role
from pockmobile.graph.joint import STATE
from pockmobile.loss import Loss, TargetRange
from pockmobile.optim import Optimizer
from pockmobile.passes import PassRun
from pockmobile.plan import PLAN_FORMAT, UpdatePlan
from pockmobile.targets.base import LoweredMethod, Target

_NUM_MOMENTS: Final = 72


@final
@dataclass(frozen=True)
class MethodDescription:
    """A method's graph, which names its inputs and outputs, and its lowered form."""

    graph: JointGraph
    lowered: LoweredMethod


@final
@dataclass(frozen=True, kw_only=True)
class Description:
    """All that a manifest tells but the bytes planned."""

    name: str
    sha256: str
    target: Target
    frozen_weights: str
    methods: Mapping[str, MethodDescription]
    input_limits: Mapping[str, int]
    target_range: TargetRange
    plan: UpdatePlan
    optimizer: Optimizer
    clip_norm: float | None
    loss: Loss
    num_captured: int
    num_pruned: int
    passes: Sequence[PassRun]

    @property
    def is_forecast(self) -> bool:
        """Whether the model is on the meta device: then there are no weights."""
        return any(v.is_meta for v in self.methods["train_step"].graph.initial.values())


def describe(description: Description, planned: Mapping[str, int]) -> m.Manifest:
    """Returns the manifest; `planned` is the bytes that the runtime plans for each method."""
    train = description.methods["train_step"].graph
    state = _state(train, description.plan)
    return m.Manifest(
        versions=m.Versions(
            pockmobile=version("pockmobile"),
            torch=version("torch"),
            executorch=version("executorch"),
        ),
        model=m.Model(description.name, description.sha256),
        target=description.target.name,
        methods={
            name: _method(description, method, planned[name], follows=name == "train_step")
            for name, method in description.methods.items()
        },
        state=state,
        plan=_plan(description.plan),
        optimizer=description.optimizer.constants(),
        clip_norm=description.clip_norm,
        loss=description.loss.name,
        metrics=description.loss.metrics,
        state_bytes=_state_bytes(train),
        frozen_bytes=_frozen_bytes(description),
        num_nodes=m.NumNodes(
            description.num_captured, description.num_pruned, train.num_operators
        ),
        passes=_passes(description),
        application={},
        target_options=description.target.options(),
    )


def _frozen_bytes(description: Description) -> int:
    lowered = [method.lowered for method in description.methods.values()]
    if description.is_forecast:
        # What methods make of weights that are not at hand cannot be compared: it counts as
        # the same, of which one method has most.
        return max(sum(method.frozen.values()) for method in lowered)
    frozen = {key: size for method in lowered for key, size in method.frozen.items()}
    return sum(frozen.values())


def _passes(description: Description) -> tuple[m.PassRecord, ...]:
    records = [m.PassRecord(run.name, run.options) for run in description.passes]
    if description.frozen_weights != "fp32":
        records.append(m.PassRecord(m.QUANTIZE, {"dtype": description.frozen_weights}))
    return tuple(records)


def _method(
    description: Description, method: MethodDescription, planned: int, *, follows: bool
) -> m.Method:
    graph, lowered = method.graph, method.lowered
    inputs = zip(graph.inputs, graph.placeholders, strict=True)
    outputs = zip(graph.outputs, graph.results, strict=True)
    groups = Counter(lowered.outside)
    return m.Method(
        inputs=tuple(_tensor(port, node.meta["val"], description) for port, node in inputs),
        outputs=tuple(_tensor(port, node.meta["val"], None) for port, node in outputs),
        planned_bytes=planned,
        workspace_bytes=lowered.workspace_bytes,
        num_partitions=lowered.num_partitions,
        num_operators=lowered.num_delegated + len(lowered.outside),
        num_delegated=lowered.num_delegated,
        outside=tuple(
            m.OutsideOperator(item.operator, item.module, count, item.reason)
            for item, count in groups.items()
        ),
        moments=_moments(lowered.memory) if follows else (),
        delegates=tuple(
            m.Delegate(item.backend, item.num_bytes, item.operators)
            for item in lowered.delegates
        ),
    )


def _moments(memory: Sequence[tuple[int, str]]) -> tuple[m.Moment, ...]:
    """Returns the worst of each run of operators, so many runs as a line of text has room."""
    size = -(-len(memory) // _NUM_MOMENTS) or 1
    runs = [memory[start : start + size] for start in range(0, len(memory), size)]
    return tuple(m.Moment(*max(run, key=lambda moment: moment[0])) for run in runs)


def _tensor(port: Port, value: torch.Tensor, description: Description | None) -> m.Tensor:
    low: int | float | None = None
    high: int | float | None = None
    ignored: Any = None
    if description and port.role is Role.INPUT and port.name in description.input_limits:
        low, high = 0, description.input_limits[port.name] - 1
    if description and port.role is Role.TARGET:
        target = description.target_range
        low, high, ignored = target.low, target.high, target.ignored
    role: Any = port.role.value
    return m.Tensor(port.name, role, _shape(value), _dtype(value), low, high, ignored)


def _state(train: JointGraph, plan: UpdatePlan) -> tuple[m.StateEntry, ...]:
    entries = []
    for port, node in zip(train.inputs, train.placeholders, strict=True):
        if port.role not in STATE:
            continue
        value = node.meta["val"]
        role: Any = "parameter" if port.role is Role.PARAMETER else port.slot
        part = plan.update.get(port.parameter)
        entries.append(
            m.StateEntry(port.name, port.parameter, role, part, _shape(value), _dtype(value))
        )
    return tuple(entries)


def _state_bytes(train: JointGraph) -> int:
    pairs = zip(train.inputs, train.placeholders, strict=True)
    values = [node.meta["val"] for port, node in pairs if port.role in STATE]
    return sum(value.numel() * value.element_size() for value in values)


def _plan(plan: UpdatePlan) -> m.Plan:
    return m.Plan(PLAN_FORMAT, plan.preset, plan.update, plan.adapters)


def _shape(value: torch.Tensor) -> tuple[int, ...]:
    return tuple(int(size) for size in value.shape)


def _dtype(value: torch.Tensor) -> Any:
    return str(value.dtype).removeprefix("torch.")
