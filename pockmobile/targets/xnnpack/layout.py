"""Values whose dimensions may lie in memory in another order than the graph says.

A permutation or a view in the graph costs nothing here: it only changes how the same memory is
read. Memory moves when an operator needs an order that it does not have. XNNPACK copies what
it reshapes, so a value keeps the shape with which it was defined for as long as its operators
get along with that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, final

from torch import Tensor

Order: TypeAlias = tuple[int, ...]
NHWC: Final[Order] = (0, 2, 3, 1)


@final
@dataclass(frozen=True)
class Value:
    """A value of the delegate: axis k of `storage` holds the graph's dimension `order[k]`.

    XNNPACK may know the same memory by other axes.
    """

    id: int
    storage: tuple[int, ...]
    order: Order

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the graph sees."""
        sizes = dict(zip(self.order, self.storage, strict=True))
        return tuple(sizes[dim] for dim in range(len(self.order)))

    @property
    def numel(self) -> int:
        """The number of elements."""
        return product(self.storage)


@final
@dataclass(frozen=True)
class Constant:
    """A constant; its tensor may be a strided view, which is laid out when it is used."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the graph sees."""
        return tuple(self.tensor.shape)

    @property
    def numel(self) -> int:
        """The number of elements."""
        return self.tensor.numel()


def product(sizes: Sequence[int]) -> int:
    """Returns the product, 1 if there are none."""
    result = 1
    for size in sizes:
        result *= size
    return result


def identity(rank: int) -> Order:
    """Returns the order in which memory and graph agree."""
    return tuple(range(rank))


def significant(order: Order, shape: Sequence[int]) -> list[int]:
    """Returns the dimensions in memory order, without those of size one."""
    return [dim for dim in order if shape[dim] != 1]


def lies_in(value: Value, order: Order) -> bool:
    """Whether the memory of `value` is the same in `order`; axes of size one move freely."""
    return significant(value.order, value.shape) == significant(order, value.shape)


def storage_in(shape: Sequence[int], order: Order) -> tuple[int, ...]:
    """Returns the shape in memory of a tensor that lies in `order`."""
    return tuple(shape[dim] for dim in order)


def permuted(value: Value, dims: Sequence[int]) -> Value:
    """Returns the same memory as the graph's `permute(dims)` reads it."""
    position = {dim: index for index, dim in enumerate(dims)}
    return Value(value.id, value.storage, tuple(position[dim] for dim in value.order))


def viewed(value: Value, shape: Sequence[int]) -> tuple[tuple[int, ...], Order] | None:
    """Returns storage and order in which the same memory is a view of `shape`, if there are.

    Dimensions that merge must lie beside one another in memory, and in the graph's order.
    Those of size one, which may grow, stay beside the one before, but channels stay innermost.
    """
    groups = matching_groups(value.shape, shape)
    positions = {dim: index for index, dim in enumerate(significant(value.order, value.shape))}
    placed: list[tuple[float, list[int]]] = []
    for old, new in groups:
        spots = [positions[dim] for dim in old if value.shape[dim] != 1]
        if spots != list(range(spots[0], spots[0] + len(spots))) if spots else False:
            return None
        placed.append((_spot(spots, placed, len(positions)), new))
    placed.sort(key=lambda item: item[0])
    order = tuple(dim for _, new in placed for dim in new)
    return tuple(shape[dim] for dim in order), order


def _spot(spots: Sequence[int], placed: Sequence[tuple[float, list[int]]], count: int) -> float:
    """Returns where dimensions go that lie at `spots`, behind those that are `placed`."""
    if spots:
        return spots[-1]
    before = placed[-1][0] if placed else -1
    return before - 0.5 if before == count - 1 else before


def regrouped(
    part: Sequence[int], whole: Sequence[int], seen: Sequence[int]
) -> tuple[int, ...] | None:
    """Returns the shape of what broadcasts to `whole` where that is seen by other axes.

    None if there is none: what were several axes broadcasts along some of them only.
    """
    result = [1] * len(seen)
    for old, new in matching_groups(whole, seen):
        if all(part[axis] == whole[axis] for axis in old):
            for axis in new:
                result[axis] = seen[axis]
        elif any(part[axis] != 1 for axis in old):
            return None
    return tuple(result)


def regrouped_permutation(
    perm: Sequence[int], storage: Sequence[int], seen: Sequence[int]
) -> list[int] | None:
    """Returns the permutation of a storage as one of the same memory seen by other axes.

    None if it parts what is one axis there.
    """
    blocks = {old[0]: (old, new) for old, new in matching_groups(storage, seen) if old}
    result: list[int] = []
    index = 0
    while index < len(perm):
        old, new = blocks.get(perm[index], ([], []))
        if not old or list(perm[index : index + len(old)]) != old:
            return None
        result += new
        index += len(old)
    return result if len(result) == len(seen) else None


def matching_groups(
    old: Sequence[int], new: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Splits two shapes of one size into the smallest runs of equal products."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left: list[int] = []
        right: list[int] = []
        a = b = 1
        while True:
            if a <= b and i < len(old) and (a < b or not left):
                left.append(i)
                a *= old[i]
                i += 1
            elif j < len(new) and (b < a or not right):
                right.append(j)
                b *= new[j]
                j += 1
            else:
                break
            if a == b and left and right:
                break
        groups.append((left, right))
    return groups
