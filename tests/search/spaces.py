"""Spaces with costs like real ones: memory peaks, and the backward pass reaches a depth."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from pockmobile.search import Cost
from pockmobile.space import LayerOptions, Option, Selection, UpdateSpace

SHARES = (0.0, 1 / 8, 1 / 4, 1 / 2, 1.0)


def space_of(sizes: list[int], *, has_head: bool = True) -> UpdateSpace:
    """Layers `layer0`, `layer1`, ... with so many options each, and a head."""
    layers = []
    for index, size in enumerate(sizes):
        name = f"layer{index}"
        options = [Option(name, share, {f"{name}.weight": None}) for share in SHARES[:size]]
        layers.append(LayerOptions(name, tuple(options)))
    return UpdateSpace({"head.weight": None} if has_head else {}, tuple(layers))


@dataclass(frozen=True)
class Instance:
    """A space, contributions, and a cost that is not additive."""

    space: UpdateSpace
    contributions: dict[str, float]
    cost: Callable[[Selection], Cost]

    @property
    def full(self) -> Cost:
        """The cost of training everything whole."""
        return self.cost(tuple(len(layer.options) for layer in self.space.layers))


def instance(seed: int, sizes: list[int], *, has_head: bool = True) -> Instance:
    """A random instance; about one contribution of six is negative."""
    rng = random.Random(seed)
    space = space_of(sizes, has_head=has_head)
    contributions = {}
    for layer in space.layers:
        gain = rng.uniform(-0.2, 1.0)
        for option in layer.options:
            noise = rng.gauss(0.0, 0.05)
            contributions[option.name] = gain * (0.4 + 0.6 * option.share**0.5) + noise
    return Instance(space, contributions, _cost(rng, len(sizes)))


def _cost(rng: random.Random, num_layers: int) -> Callable[[Selection], Cost]:
    """Time: forward, what the backward pass reaches, weight gradients. Memory: a peak."""
    work = [rng.uniform(1.0, 5.0) for _ in range(num_layers)]
    kept = [rng.randint(10, 200) for _ in range(num_layers)]
    masks = [rng.randint(0, 10) for _ in range(num_layers)]
    states = [rng.randint(1, 120) for _ in range(num_layers)]
    spaces = [rng.randint(50, 600) for _ in range(num_layers)]

    def cost(selection: Selection) -> Cost:
        depth = next((i for i, number in enumerate(selection) if number), num_layers)
        shares = [SHARES[number - 1] if number else 0.0 for number in selection]
        time = sum(work) + sum(work[depth:])
        time += sum(part * share for part, share in zip(work, shares, strict=True))
        peak, live = 100.0, 0.0
        for index in range(depth, num_layers):
            live += kept[index] * shares[index] + masks[index]
            peak = max(peak, live + spaces[index])
        state = sum(size * share for size, share in zip(states, shares, strict=True))
        state += 4 * sum(number > 0 for number in selection)
        return Cost(round(peak + state), time / (3 * sum(work)))

    return cost
