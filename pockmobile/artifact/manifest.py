"""The manifest inside a program: what it computes, what it trains, and how it was made."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Self, TypeAlias

from pockmobile.artifact.codec import decode, encode
from pockmobile.errors import ArtifactError
from pockmobile.plan import Slice

FORMAT: Final = 1
QUANTIZE: Final = "quantize-frozen-weights"
"""The pass that is named where large frozen weights are not in float32 but in `dtype`."""

Role: TypeAlias = Literal[
    "parameter", "optimizer", "input", "target", "learning_rate", "loss", "metric", "output"
]
StateRole: TypeAlias = Literal["parameter", "momentum", "exp_avg", "exp_avg_sq", "step"]
Dtype: TypeAlias = Literal[
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
]


@dataclass(frozen=True)
class Versions:
    """The releases that made the program."""

    pockmobile: str
    torch: str
    executorch: str


@dataclass(frozen=True)
class Model:
    """The model that was exported; `sha256` is that of its weights."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Tensor:
    """One input or output of a method; dimension 0 of inputs and targets is the batch.

    `low` and `high` bound the values, both included; `ignored` is a label outside of them that
    counts for nothing (`"nan"` for float targets).
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    dtype: Dtype
    low: int | float | None = None
    high: int | float | None = None
    ignored: int | float | Literal["nan"] | None = None

    @property
    def ignored_value(self) -> int | float | None:
        """`ignored` as the number that a tensor holds."""
        return math.nan if self.ignored == "nan" else self.ignored


@dataclass(frozen=True)
class OutsideOperator:
    """An operator that the delegate did not take: `count` uses of it in `module`, and why."""

    operator: str
    module: str
    count: int
    reason: str


@dataclass(frozen=True)
class Moment:
    """Some operators in a row: the most bytes alive in a delegate, and the module where."""

    num_bytes: int
    module: str


@dataclass(frozen=True)
class Delegate:
    """What the runtime's `backend` computes: `num_bytes` of the file.

    `operators` counts the graph's operators inside by name.
    """

    backend: str
    num_bytes: int
    operators: Mapping[str, int]


@dataclass(frozen=True)
class Method:
    """One method of the program; `num_operators` run on each call, delegated or outside.

    The runtime plans `planned_bytes`; delegates need `workspace_bytes` beside them (XNNPACK's
    own plan; of Core ML and QNN an estimate from below). `moments` follow these
    over a training step.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    planned_bytes: int
    workspace_bytes: int
    num_partitions: int
    num_operators: int
    num_delegated: int
    outside: tuple[OutsideOperator, ...]
    moments: tuple[Moment, ...] = ()
    delegates: tuple[Delegate, ...] = ()

    def inputs_of(self, role: Role) -> tuple[Tensor, ...]:
        """Returns the inputs of that role, in order."""
        return tuple(tensor for tensor in self.inputs if tensor.role == role)

    def outputs_of(self, role: Role) -> tuple[Tensor, ...]:
        """Returns the outputs of that role, in order."""
        return tuple(tensor for tensor in self.outputs if tensor.role == role)


@dataclass(frozen=True)
class StateEntry:
    """One state tensor; `slice` says which part of `parameter` it is (None: all)."""

    name: str
    parameter: str
    role: StateRole
    slice: Slice | None
    shape: tuple[int, ...]
    dtype: Dtype


@dataclass(frozen=True)
class Plan:
    """The update plan: for each trained parameter its slice, or None for all of it.

    `adapters` maps weights to the rank of the low-rank adapter beside them.
    """

    format: int
    preset: str | None
    update: Mapping[str, Slice | None]
    adapters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class NumNodes:
    """Nodes of the joint graph as captured, after pruning, and as lowered."""

    captured: int
    pruned: int
    lowered: int


@dataclass(frozen=True)
class PassRecord:
    """A pass that ran, with its options."""

    name: str
    options: Mapping[str, object]


@dataclass(frozen=True)
class Manifest:
    """The manifest, format 1; fields are named and ordered as in its JSON.

    `optimizer` holds its `name` and its constants; `application` is free for the host;
    `target_options` is what was chosen for the target.
    """

    versions: Versions
    model: Model
    target: str
    methods: Mapping[str, Method]
    state: tuple[StateEntry, ...]
    plan: Plan
    optimizer: Mapping[str, object]
    clip_norm: float | None
    loss: str
    metrics: tuple[str, ...]
    state_bytes: int
    frozen_bytes: int
    num_nodes: NumNodes
    passes: tuple[PassRecord, ...]
    application: Mapping[str, object]
    target_options: Mapping[str, object] = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[StateEntry, ...]:
        """The state entries that are parameters; they come first in the state."""
        return tuple(entry for entry in self.state if entry.role == "parameter")

    @property
    def backends(self) -> tuple[str, ...]:
        """The runtime's backends that delegates are for, by name, in order."""
        found = {item.backend for method in self.methods.values() for item in method.delegates}
        return tuple(sorted(found))

    @property
    def is_split(self) -> bool:
        """Whether `encode` computes the latents that `train_step` and `evaluate` take."""
        return "encode" in self.methods

    @property
    def frozen_weights(self) -> str:
        """The type of large frozen weights: `fp32`, `int8` or `int4`."""
        found = [item.options.get("dtype") for item in self.passes if item.name == QUANTIZE]
        return str(found[0]) if found else "fp32"

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What an example is made of: the inputs of `encode`, or of `train_step`."""
        return self.methods["encode" if self.is_split else "train_step"].inputs_of("input")

    def to_json(self) -> str:
        """Returns the manifest as one line of JSON."""
        fields = encode(self)
        assert isinstance(fields, dict)
        return json.dumps({"format": FORMAT, **fields}, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads a manifest.

        Raises:
            ArtifactError: `text` is no JSON object, has another format number, or a field is
                missing or of another type.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ArtifactError(f"the manifest is not JSON ({error}); export again") from error
        if not isinstance(value, dict):
            raise ArtifactError("the manifest is not a JSON object; export the model again")
        if value.get("format") != FORMAT:
            raise ArtifactError(
                f"the manifest has format {value.get('format')!r}, this pockmobile reads "
                f"format {FORMAT}; export the model again, or use the pockmobile that did"
            )
        manifest: Self = decode(cls, value, "manifest")
        for method in ("train_step", "evaluate", "predict"):
            if method not in manifest.methods:
                raise ArtifactError(
                    f"manifest.methods has no {method!r}; export the model again"
                )
        return manifest
