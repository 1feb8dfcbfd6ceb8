"""Update plans: which parameters are trained, whole or in part, and the presets for them.

The `sparse` preset is the hand scheme of PockEngine (MICRO 2023, section 4.1): biases of
the last blocks, and in some of them the weights of the first 1x1 convolution, or of
attention and the first feed-forward layer.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, final

from pockmobile.errors import PlanError, nearest

PLAN_FORMAT: Final = 1
ADAPTER_A: Final = "lora_a"
ADAPTER_B: Final = "lora_b"
_FACTORS: Final = (ADAPTER_A, ADAPTER_B)
_LARGE_VOCABULARY: Final = 16_384
"""Outputs of a head that is left frozen beside adapters and the weights of `sparse`."""
Kind = Literal["convolution", "linear", "norm", "embedding", "other"]


@final
@dataclass(frozen=True)
class Slice:
    """The channels `start` to `stop` (excluded) of a parameter's dimension `dim`."""

    dim: int
    start: int
    stop: int


@final
@dataclass(frozen=True)
class UpdatePlan:
    """What is trained: fully qualified parameter name -> None (whole) or a slice.

    What is not named is frozen. `adapters` maps the weights of linear layers to the rank of
    the low-rank adapter beside them, whose two factors (`<weight>.lora_a`, `<weight>.lora_b`)
    are parameters like others, and named in `update`.
    """

    update: Mapping[str, Slice | None]
    preset: str | None = None
    adapters: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as JSON holds it."""
        update = {name: asdict(part) if part else None for name, part in self.update.items()}
        plan = {"format": PLAN_FORMAT, "preset": self.preset, "update": update}
        return {**plan, "adapters": dict(self.adapters)} if self.adapters else plan

    @staticmethod
    def from_json(data: Any) -> "UpdatePlan":
        """Reads what `to_json` wrote.

        Raises:
            PlanError: it is no plan, or of another format.
        """
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        if not isinstance(data, dict) or found != PLAN_FORMAT:
            raise PlanError(
                f'a plan is a JSON object with "format": {PLAN_FORMAT}, found {found!r}'
            )
        update, preset = data.get("update"), data.get("preset")
        if not isinstance(update, dict) or not update:
            raise PlanError(
                f'a plan needs "update": {{"parameter name": null or a slice}}, '
                f"found {update!r}"
            )
        if not isinstance(preset, str | None):
            raise PlanError(f'the plan\'s "preset" must be null or a name, found {preset!r}')
        parts = {name: _read_slice(name, part) for name, part in update.items()}
        adapters = data.get("adapters", {})
        if not isinstance(adapters, dict) or not all(map(_is_rank, adapters.values())):
            raise PlanError(f'a plan\'s "adapters" are {{"weight": rank}}, found {adapters}')
        return UpdatePlan(parts, preset, adapters)

    @staticmethod
    def load(path: str | Path) -> "UpdatePlan":
        """Reads a plan file.

        Raises:
            PlanError: the file is missing, no JSON, or no plan.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"cannot read the plan {path}: {error.strerror}") from error
        except ValueError as error:
            raise PlanError(f"{path} is no JSON: {error}") from error
        try:
            return UpdatePlan.from_json(data)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None

    def to_text(self) -> str:
        """Returns what a plan file holds."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        """Writes a plan file."""
        Path(path).write_text(self.to_text(), encoding="utf-8")


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _read_slice(name: str, part: Any) -> Slice | None:
    if part is None:
        return None
    keys = ("dim", "start", "stop")
    if not isinstance(part, dict) or set(part) != set(keys):
        raise PlanError(
            f"the plan's {name} must be null or have dim, start and stop, found {part}"
        )
    if not all(type(part[key]) is int for key in keys):  # True is an int too.
        raise PlanError(f"the plan's {name} must have whole numbers, found {part}")
    return Slice(**part)


@final
@dataclass(frozen=True)
class Layer:
    """One use of parameters in the forward pass, in execution order.

    `block` is the repeated part of the model that it is in. `is_leading` marks the weights
    that `sparse` trains: the first full convolution of a block, or attention and the first
    feed-forward layer. `max_rank` is the highest rank of a low-rank adapter beside it, 0 where
    none fits: linear layers and 1x1 convolutions take one. `towers` are the heads, by number,
    that its outputs reach: a model has one, unless parts of it end side by side (CLIP's).
    `num_outputs` is that of a linear layer.
    """

    path: str
    block: str
    kind: Kind
    weight: str
    bias: str
    is_leading: bool = False
    max_rank: int = 0
    towers: frozenset[int] = frozenset({0})
    num_outputs: int = 0

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its parameters."""
        return tuple(name for name in (self.weight, self.bias) if name)


def check_plan(plan: UpdatePlan, shapes: Mapping[str, Sequence[int]]) -> None:
    """Checks that each name is a parameter and each slice lies inside it.

    Args:
        plan: what to train.
        shapes: the shape of each parameter that can be trained, by name.

    Raises:
        PlanError: naming the value found and what was expected.
    """
    if not plan.update:
        raise PlanError("the plan trains nothing; name at least one parameter")
    for name, part in plan.update.items():
        if name not in shapes:
            raise PlanError(
                f"the plan names {name!r}, which the model cannot train: "
                f"{nearest(name, shapes)}"
            )
        if part is not None:
            _check_slice(name, part, shapes[name])


def _check_slice(name: str, part: Slice, shape: Sequence[int]) -> None:
    if part.dim not in range(min(2, len(shape))):
        raise PlanError(
            f"the plan slices {name} along dim {part.dim}; a slice is along 0 or 1 of "
            f"{list(shape)}"
        )
    if not 0 <= part.start < part.stop <= shape[part.dim]:
        raise PlanError(
            f"the plan's slice {part.start}:{part.stop} of {name} is not inside "
            f"0:{shape[part.dim]}"
        )


def resolve_plan(plan: str | Path | UpdatePlan, layers: Sequence[Layer]) -> UpdatePlan:
    """Returns the plan of a preset's name, of a plan file, or the plan itself.

    Raises:
        PlanError: an unknown preset, or one that the model's blocks do not allow.
    """
    if isinstance(plan, UpdatePlan):
        return plan
    if isinstance(plan, Path) or plan.endswith(".json"):
        return UpdatePlan.load(plan)
    name, *arguments = plan.split(":")
    if (
        name not in _PRESETS
        or len(arguments) not in _PRESETS[name][0]
        or not all(argument.isdecimal() for argument in arguments)
    ):
        raise PlanError(
            f"unknown plan {plan!r}: expected {PRESET_SYNTAX}, or a plan file (.json)"
        )
    numbers = [int(argument) for argument in arguments]
    chosen = _PRESETS[name][1](list(layers), *numbers)
    known = [name for layer in layers for name in layer.parameters]
    update: dict[str, Slice | None] = {
        name: None for name in dict.fromkeys(known) if name in chosen
    }
    adapted = _adapted(list(layers), *numbers) if name == "lora" else []
    update |= {f"{weight}.{factor}": None for weight in adapted for factor in _FACTORS}
    return UpdatePlan(update, plan, dict.fromkeys(adapted, numbers[0]) if adapted else {})


def _full(layers: list[Layer]) -> set[str]:
    return {name for layer in layers for name in layer.parameters}


def _head(layers: list[Layer]) -> set[str]:
    return {name for head in head_layers(layers) for name in head.parameters}


def _small_heads(layers: list[Layer]) -> list[Layer]:
    """The heads but those of a large vocabulary, which would be most of what is trained."""
    return [head for head in head_layers(layers) if head.num_outputs < _LARGE_VOCABULARY]


def _bias(layers: list[Layer]) -> set[str]:
    return _head(layers) | {layer.bias for layer in layers if layer.bias}


def _last(layers: list[Layer], num_blocks: int) -> set[str]:
    """Everything from the first of the last blocks on, what follows the last one included."""
    chosen = _head(layers)
    for tower in _towers(layers):
        blocks = _last_blocks(layers, num_blocks, tower)
        inside = [layer for layer in layers if tower in layer.towers]
        starts = [index for index, layer in enumerate(inside) if layer.block in blocks]
        rest = inside[starts[0] :] if starts else []
        chosen |= {name for layer in rest for name in layer.parameters}
    return chosen


def _sparse(layers: list[Layer], num_bias_blocks: int, num_weight_blocks: int) -> set[str]:
    bias_blocks, weight_blocks = (
        set[str]().union(*(_last_blocks(layers, number, tower) for tower in _towers(layers)))
        for number in (num_bias_blocks, num_weight_blocks)
    )
    chosen = {name for head in _small_heads(layers) for name in head.parameters}
    chosen |= {layer.bias for layer in layers if layer.bias and layer.block in bias_blocks}
    for index, layer in enumerate(layers):
        if layer.is_leading and layer.block in weight_blocks:
            chosen |= {layer.weight} | _bias_of(layers, index)
    return chosen


def _lora(layers: list[Layer], rank: int, *num_blocks: int) -> set[str]:
    """The heads beside the adapters, unless they are large or tied to an embedding table."""
    if rank < 1 or not _adapted(layers, rank, *num_blocks):
        raise PlanError(
            f"lora:{rank} needs a rank of 1 or more, and linear layers or 1x1 convolutions "
            f"of at least {rank} channels beside the head"
        )
    tables = {layer.weight for layer in layers if layer.kind == "embedding"}
    heads = [head for head in _small_heads(layers) if head.weight not in tables]
    return {name for head in heads for name in head.parameters}


def _adapted(layers: list[Layer], rank: int, *num_blocks: int) -> list[str]:
    """The weights, but the heads', that adapters fit; in the last blocks if so many are told.

    What follows the last block counts as part of it.
    """
    heads = {head.weight for head in head_layers(layers)}
    inside = _last(layers, *num_blocks) if num_blocks else _full(layers)
    weights = [layer.weight for layer in layers if layer.max_rank >= max(rank, 1)]
    return [weight for weight in dict.fromkeys(weights) if weight in inside - heads]


def _bias_of(layers: list[Layer], index: int) -> set[str]:
    """The bias of a layer: its own, or that of the norm which follows it."""
    if layers[index].bias:
        return {layers[index].bias}
    following = layers[index + 1 : index + 2]
    return {layer.bias for layer in following if layer.kind == "norm" and layer.bias}


def head_layers(layers: Sequence[Layer]) -> list[Layer]:
    """Returns the last linear or convolution layer of each tower, whose outputs the loss reads.

    Raises:
        PlanError: the model has none.
    """
    ends = [
        layer for layer in layers if layer.kind in ("linear", "convolution") and layer.towers
    ]
    if not ends:
        raise PlanError(
            "the model has no linear or convolution layer, so no head; write a plan file"
        )
    return [
        next(layer for layer in reversed(ends) if tower in layer.towers)
        for tower in _towers(ends)
    ]


def _towers(layers: Sequence[Layer]) -> list[int]:
    return sorted(frozenset[int]().union(*(layer.towers for layer in layers)))


def _last_blocks(layers: list[Layer], num_blocks: int, tower: int) -> set[str]:
    """Returns the last blocks of a tower, but the heads'."""
    heads = {head.block for head in head_layers(layers)}
    inside = [layer.block for layer in layers if tower in layer.towers]
    blocks = list(dict.fromkeys(block for block in inside if block and block not in heads))
    if num_blocks > len(blocks):
        raise PlanError(
            f"the plan asks for the last {num_blocks} blocks, the model has {len(blocks)}"
        )
    return set(blocks[len(blocks) - num_blocks :])


_PRESETS: Final[Mapping[str, tuple[tuple[int, ...], Callable[..., set[str]]]]] = {
    "full": ((0,), _full),
    "head": ((0,), _head),
    "bias": ((0,), _bias),
    "last": ((1,), _last),
    "sparse": ((2,), _sparse),
    "lora": ((1, 2), _lora),
}
PRESET_SYNTAX: Final = "full, head, bias, last:N, sparse:B:W, lora:R, lora:R:B"
