"""Finds the blocks of a model, its repeated parts, by the numbers in parameters' names."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from pockmobile.plan import Layer

_NUMBERED: Final = re.compile(r"(?:[^.]+\.)*?\d+(?=\.|$)")
_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)")


def blocks_of(layers: Sequence[Layer]) -> list[str]:
    """Returns each layer's block: the path to the first number in its name, or "".

    In a stage, which is made of numbered blocks itself (`stages.1.layers.0`), it is the path to
    the second number; what else a stage holds is in none. Numbers may also count what is no
    block. A norm that stands alone (`1` between the convolutions `0` and `3`) belongs to the
    block before it, and a single layer among blocks of several (MobileNetV2's first and last
    convolution) is in none. Without any number each layer is a block.
    """
    numbered = _numbered(layers)
    if not any(numbered):
        numbered = [layer.path for layer in layers]
    pairs = zip(numbered, layers, strict=True)
    num_weights = Counter(block for block, layer in pairs if _has_weight(layer))
    blocks: list[str] = []
    for block in numbered:
        alone = bool(block) and not num_weights[block]
        blocks.append(blocks[-1] if alone and blocks else block)
    beside = Counter(_owner(block) for block in num_weights if num_weights[block] > 1)
    return [
        "" if num_weights[block] < 2 and beside[_owner(block)] else block for block in blocks
    ]


def _numbered(layers: Sequence[Layer]) -> list[str]:
    firsts = [_prefix(layer.path, 1) for layer in layers]
    seconds = [_prefix(layer.path, 2) for layer in layers]
    repeated = _repeated(layers, seconds)
    blocks = [
        second if second in repeated else first
        for first, second in zip(firsts, seconds, strict=True)
    ]
    stages = {first for first, block in zip(firsts, blocks, strict=True) if block != first}
    return ["" if block in stages else block for block in blocks]


def _repeated(layers: Sequence[Layer], parts: Sequence[str]) -> set[str]:
    """Returns the parts of stages that are blocks.

    Parts whose paths differ in numbers alone are, where each is made of several layers, of
    which one at least is in all of them. So a T5 block's attention and its feed-forward layer,
    numbered too, are none.
    """
    families: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for layer, part in zip(layers, parts, strict=True):
        if part and _has_weight(layer):
            families[_NUMBER.sub("#", part)][part].add(layer.path.removeprefix(part))
    return {part for family in families.values() if _is_alike(family) for part in family}


def _is_alike(family: Mapping[str, set[str]]) -> bool:
    common = set.intersection(*family.values())
    return len(family) > 1 and bool(common) and min(map(len, family.values())) > 1


def _has_weight(layer: Layer) -> bool:
    return layer.kind not in ("norm", "other")


def _prefix(path: str, count: int) -> str:
    """Returns the path up to its number of that count, or "" if it has fewer."""
    end = 0
    for _ in range(count):
        match = _NUMBERED.match(path, end)
        if match is None:
            return ""
        end = min(match.end() + 1, len(path))
    return path[:end].removesuffix(".")


def _owner(path: str) -> str:
    return path.rpartition(".")[0]
