"""What a delegate's values take while each of its operators runs, as XNNPACK plans them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema
from executorch.backends.xnnpack.utils.xnnpack_constants import XNN_INVALID_VALUE_ID

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


def workspace(
    operators: Sequence[Any], sizes: Mapping[int, int], inputs: Mapping[int, int]
) -> list[int]:
    """Returns the bytes that are alive while each operator runs.

    XNNPACK plans its workspace when a program is loaded, as `runtime.c` and
    `memory-planner.c` of google/XNNPACK do; this is the least that it can be in the order of
    the operators, without alignment. An elementwise operator writes over an argument that
    nothing else reads, if one operator reads its result; so do copies, softmaxes and reshapes.
    A product packs a right operand that comes at run time.

    Args:
        operators: what the delegate's nodes do, in order.
        sizes: bytes of the values that live inside the delegate, by their ids.
        inputs: those of the values that come in.
    """
    places = _places(operators, sizes)
    last = {
        places.get(used, used): step
        for step, item in enumerate(operators)
        for used in (*_inputs(item), item.output_id)
    }
    live: dict[int, int] = {}
    sums: list[int] = []
    for step, item in enumerate(operators):
        for used in (*_inputs(item), item.output_id):
            place = places.get(used, used)
            live.update({place: sizes[place]} if place in sizes else {})
        right = _right(item)
        packed = sizes.get(right, inputs.get(right, 0))
        sums.append(sum(live.values()) + packed)
        live = {place: size for place, size in live.items() if last[place] > step}
    return sums


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
