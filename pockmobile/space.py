"""The update space: for each layer the ways to train it, of which a plan takes at most one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, final

from pockmobile.errors import PlanError
from pockmobile.plan import Kind, Layer, Slice, UpdatePlan, head_layers

SHARES: Final = (1 / 8, 1 / 4, 1 / 2)
"""The shares of a weight's channels that can be trained, beside none and all."""

_SLICEABLE: Final = ("convolution", "linear", "embedding")

Energy: TypeAlias = Callable[[str, int], Sequence[float]]
"""Returns one number for each channel of a weight along a dimension."""

Selection = tuple[int, ...]
"""For each layer of a space, in its order: 0 (frozen), or the number of an option, from 1."""


@final
@dataclass(frozen=True)
class Option:
    """One way to train a layer; what `update` does not name stays frozen.

    `share` is the part of the weight's channels that is trained: 0 for the bias alone.
    """

    layer: str
    share: float
    update: Mapping[str, Slice | None]

    @property
    def name(self) -> str:
        """The layer with the share that is trained, as people read it."""
        return f"{self.layer} {self.share_name}"

    @property
    def share_name(self) -> str:
        """The share, as people read it: `bias`, `1/8`, `whole`."""
        return _SHARE_NAMES.get(self.share, f"{self.share:.3g}")


_SHARE_NAMES: Final = {0.0: "bias", 1 / 8: "1/8", 1 / 4: "1/4", 1 / 2: "1/2", 1.0: "whole"}


@final
@dataclass(frozen=True)
class LayerOptions:
    """The ways to train one layer, by rising share: its bias, then shares of its weight."""

    layer: str
    options: tuple[Option, ...]


@final
@dataclass(frozen=True)
class UpdateSpace:
    """All plans that a search considers: `base` is always trained, `layers` by selection.

    Layers stand in execution order.
    """

    base: Mapping[str, Slice | None]
    layers: tuple[LayerOptions, ...]

    def plan(self, selection: Selection) -> UpdatePlan:
        """Returns the plan of a selection (one number for each layer)."""
        update = dict(self.base)
        for option in self.chosen(selection):
            update.update(option.update)
        return UpdatePlan(update)

    def chosen(self, selection: Selection) -> list[Option]:
        """Returns the options that a selection takes, in execution order."""
        pairs = zip(self.layers, selection, strict=True)
        return [layer.options[number - 1] for layer, number in pairs if number]

    @property
    def options(self) -> list[Option]:
        """All options, in execution order and by rising share."""
        return [option for layer in self.layers for option in layer.options]

    @property
    def frozen(self) -> Selection:
        """The selection that trains the base alone."""
        return (0,) * len(self.layers)


def update_space(
    layers: Sequence[Layer],
    shapes: Mapping[str, Sequence[int]],
    energy: Energy | None = None,
) -> UpdateSpace:
    """Returns the space of plans of a model.

    The head is the base, but for a weight that it shares with an embedding table. Every
    other layer can be trained by its bias alone, or by a share of its weight with its bias
    (the rule of PockEngine, section 4.1). A convolution's bias is that of the norm behind it
    if it has none of its own; the norm's scale stays frozen, since it folds into the
    convolution, which learns the same. Shares are slices of input channels, which also save
    activations, of a depthwise weight's only channels, and of an embedding table's rows: with
    tokens numbered by frequency a few of them are most of a text.

    Args:
        layers: the model's layers, in execution order.
        shapes: the shape of each parameter that can be trained, by name.
        energy: a slice is put where it is largest. Without it slices start at channel 0.

    Raises:
        PlanError: the model has no head.
    """
    tables = {layer.weight for layer in layers if layer.kind == "embedding"}
    heads = [name for head in head_layers(layers) for name in head.parameters]
    base = [name for name in heads if name in shapes and name not in tables]
    taken = set(base)
    found: list[LayerOptions] = []
    for before, layer, following in zip(
        [None, *layers[:-1]], layers, [*layers[1:], None], strict=True
    ):
        if layer.kind == "norm" and before is not None and before.kind == "convolution":
            continue
        weight = layer.weight if layer.weight in shapes and layer.weight not in taken else ""
        bias = _bias(layer, following)
        bias = bias if bias in shapes and bias not in taken else ""
        if not weight and not bias:
            continue
        taken |= {weight, bias}
        # Parameters of no layer of their own have a common owner, so no name in its path.
        name = (weight or bias) if layer.kind == "other" else layer.path
        options = _options(name, layer.kind, weight, bias, shapes, energy)
        found.append(LayerOptions(name, options))
    return UpdateSpace(dict.fromkeys(base), tuple(found))


def _bias(layer: Layer, following: Layer | None) -> str:
    if layer.bias or layer.kind != "convolution":
        return layer.bias
    return following.bias if following is not None and following.kind == "norm" else ""


def _options(
    name: str,
    kind: Kind,
    weight: str,
    bias: str,
    shapes: Mapping[str, Sequence[int]],
    energy: Energy | None,
) -> tuple[Option, ...]:
    biases: dict[str, Slice | None] = {bias: None} if bias else {}
    options = [Option(name, 0.0, biases)] if bias else []
    if weight:
        for share in SHARES:
            part = _slice(weight, shapes[weight], kind, share, energy)
            if part is not None:
                options.append(Option(name, share, {weight: part, **biases}))
        options.append(Option(name, 1.0, {weight: None, **biases}))
    return tuple(options)


def _slice(
    weight: str, shape: Sequence[int], kind: Kind, share: float, energy: Energy | None
) -> Slice | None:
    """Returns the share's channels, or None if the weight has too few."""
    if kind not in _SLICEABLE or len(shape) < 2:
        return None
    dim = 0 if kind == "embedding" or shape[1] == 1 else 1
    num_channels = shape[dim]
    width = round(num_channels * share)
    if width < 1 or width >= num_channels:
        return None
    # Slices start at multiples of their width: neighbours are never tried twice.
    starts = range(0, num_channels - width + 1, width)
    energies = energy(weight, dim) if energy is not None else (0.0,) * num_channels
    start = max(starts, key=lambda s: sum(energies[s : s + width]))
    return Slice(dim, start, start + width)


def selection_of(space: UpdateSpace, plan: UpdatePlan) -> Selection:
    """Returns the selection that trains the most of what `plan` trains, and nothing else.

    Raises:
        PlanError: the plan trains a part of the base only; a search always trains it all.
    """
    missing = [name for name in space.base if name not in plan.update]
    if missing:
        raise PlanError(f"the plan does not train {missing[0]}, which a search always trains")
    numbers = []
    for layer in space.layers:
        fitting = [
            number
            for number, option in enumerate(layer.options, start=1)
            if all(_covers(plan.update, name, part) for name, part in option.update.items())
        ]
        numbers.append(max(fitting, default=0))
    return tuple(numbers)


def _covers(update: Mapping[str, Slice | None], name: str, part: Slice | None) -> bool:
    """Whether the plan trains this very slice, or the whole parameter."""
    return name in update and update[name] in (None, part)
