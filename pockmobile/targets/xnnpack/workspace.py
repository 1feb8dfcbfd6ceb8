"""What a delegate's values take in memory, as XNNPACK plans them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema
from executorch.backends.xnnpack.utils.xnnpack_constants import XNN_INVALID_VALUE_ID

from pockmobile.targets.memory import Life, largest_first

_ALIGNMENT: Final = 64
_IN_PLACE: Final = (
    schema.XNNAbs,
    schema.XNNAdd,
    schema.XNNCeiling,
    schema.XNNClamp,
    schema.XNNCopy,
    schema.XNNCos,
    schema.XNNDiv,
    schema.XNNExp,
    schema.XNNFloor,
    schema.XNNGelu,
    schema.XNNHardswish,
    schema.XNNLeakyReLU,
    schema.XNNLog,
    schema.XNNMaximum,
    schema.XNNMinimum,
    schema.XNNMultiply,
    schema.XNNNegate,
    schema.XNNReciprocalSquareRoot,
    schema.XNNSigmoid,
    schema.XNNSin,
    schema.XNNSoftmax,
    schema.XNNSquare,
    schema.XNNSquareRoot,
    schema.XNNStaticReshape,
    schema.XNNSubtract,
    schema.XNNTanh,
)
_CLAMPING: Final = (
    schema.XNNConv2d,
    schema.XNNDepthwiseConv2d,
    schema.XNNConvTranspose2d,
    schema.XNNFullyConnected,
    schema.XNNMaxPooling2d,
)
"""Operators into which XNNPACK fuses the clamp behind them."""


def lives(
    operators: Sequence[Any], sizes: Mapping[int, int], inputs: Mapping[int, int]
) -> list[Life]:
    """Returns what XNNPACK keeps in its workspace.

    XNNPACK plans that when a program is loaded, as `runtime.c` and `memory-planner.c` of
    google/XNNPACK do. An elementwise operator writes over an argument that nothing else reads,
    if one operator reads its result; so do copies, softmaxes and reshapes. A product packs a
    right operand that comes at run time.

    Args:
        operators: what the delegate's nodes do, in order.
        sizes: bytes of the values that live inside the delegate, by their ids.
        inputs: those of the values that come in.
    """
    places = _places(operators, sizes)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    packed = []
    for step, item in enumerate(operators):
        used = [places.get(value, value) for value in (*_inputs(item), item.output_id)]
        for place in filter(sizes.__contains__, used):
            first.setdefault(place, step)
            last[place] = step
        right = _right(item)
        packed.append(Life(sizes.get(right, inputs.get(right, 0)), step, step))
    made = [Life(sizes[place], first[place], last[place]) for place in sorted(first)]
    return [*made, *(life for life in packed if life.num_bytes)]


def alive(values: Sequence[Life], num_operators: int) -> list[int]:
    """Returns the bytes that are needed while each operator runs."""
    changes = [0] * (num_operators + 1)
    for life in values:
        changes[life.first] += life.num_bytes
        changes[life.last + 1] -= life.num_bytes
    return list(accumulate(changes))[:-1]


def planned_bytes(values: Sequence[Life]) -> int:
    """Returns the size of the workspace in which XNNPACK places them, the largest first."""
    return largest_first(values, _ALIGNMENT)


def _right(item: Any) -> int:
    """Returns the id of a product's right operand."""
    if isinstance(item, schema.XNNFullyConnected):
        return int(item.filter_id)
    is_batch = isinstance(item, schema.XNNBatchMatrixMultiply)
    return int(item.input2_id) if is_batch else XNN_INVALID_VALUE_ID


def _places(operators: Sequence[Any], sizes: Mapping[int, int]) -> dict[int, int]:
    """Returns for each value the one in whose place it lies."""
    reads = Counter(used for item in operators for used in _inputs(item))
    makers = {item.output_id: item for item in operators}
    fused = {
        item.input_id: item.output_id
        for item in operators
        if isinstance(item, schema.XNNClamp)
        and isinstance(makers.get(item.input_id), _CLAMPING)
        and reads[item.input_id] == 1
        and item.input_id in sizes
    }
    places = dict(fused)
    for item in operators:
        result = item.output_id
        if not isinstance(item, _IN_PLACE) or reads[result] != 1 or result in fused.values():
            continue
        size = sizes.get(result)
        for value in _inputs(item):
            if reads[value] == 1 and value in sizes and sizes[value] == size:
                places[result] = places.get(value, value)
                break
    return places


def _inputs(item: Any) -> list[int]:
    fields = vars(item).items()
    ids = [value for name, value in fields if name.endswith("_id") and name != "output_id"]
    return [value for value in ids if value != XNN_INVALID_VALUE_ID]
