"""Builds what XNNPACK's delegate executes: values, nodes, constants, and their bytes.

The stock lowering (`executorch/backends/xnnpack/xnnpack_preprocess.py`) makes the same
format from an edge graph. Writing it directly leaves out the physical transposes that the
stock lowering puts around each convolution, takes run-time weights as weights, and is
linear in the graph. The format is that of executorch 1.5, which this project pins.
"""

from collections.abc import Sequence
from typing import Any, Final, final

import torch
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import (
    ConstantDataOffset,
    OutputMinMax,
    PerChannelGroupQuant,
    PerChannelQuant,
    PerTokenDynamicQuant,
    XNNConvert,
    XNNDatatype,
    XNNGraph,
    XNNQuantizedTensorValue,
    XNNTensorValue,
    XNode,
    XValue,
)
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import (
    serialize_xnnpack_binary,
)
from executorch.backends.xnnpack.utils.xnnpack_constants import (
    UINT64_MAX,
    XNN_INVALID_VALUE_ID,
    XNN_VALUE_FLAG_EXTERNAL_INPUT,
    XNN_VALUE_FLAG_EXTERNAL_OUTPUT,
)
from executorch.exir._serialize._named_data_store import NamedDataStore
from torch import Tensor

from pockmobile.targets.memory import Life
from pockmobile.targets.xnnpack.content import Content
from pockmobile.targets.xnnpack.layout import product
from pockmobile.targets.xnnpack.quantize import Quantized
from pockmobile.targets.xnnpack.workspace import lives

NO_VALUE: Final[int] = XNN_INVALID_VALUE_ID
_ALIGNMENT: Final = 64
_WIDTHS: Final = {XNNDatatype.xnn_datatype_qdint8: 1}
"""Bytes of an element, where they are not those of float32."""


@final
class BlobBuilder:
    """One delegate under construction.

    `constant_bytes` maps the hash of each constant to its size.
    """

    def __init__(self) -> None:
        """Starts an empty delegate."""
        self._graph = XNNGraph("0", [], [], 0, [], [], [ConstantDataOffset(0, 0)])
        self._constants: dict[tuple[str, tuple[int, ...], object], int] = {}
        self._quantized: dict[tuple[int, int], int] = {}
        # Held, so that what tells them apart stays theirs.
        self._absent: list[Content] = []
        self.store = NamedDataStore()
        self.constant_bytes: dict[str, int] = {}

    @property
    def num_nodes(self) -> int:
        """The number of operators so far."""
        return len(self._graph.xnodes)

    def value(self, shape: Sequence[int]) -> int:
        """Adds a value that lives inside the delegate."""
        return self._add_value(shape, 0)

    def input(self, shape: Sequence[int]) -> int:
        """Adds the delegate's next input."""
        identifier = self._add_value(shape, 0)
        self._mark_external(identifier, XNN_VALUE_FLAG_EXTERNAL_INPUT)
        self._graph.input_ids.append(identifier)
        return identifier

    def mark_output(self, identifier: int) -> None:
        """Makes a value the delegate's next output."""
        self._mark_external(identifier, XNN_VALUE_FLAG_EXTERNAL_OUTPUT)
        self._graph.output_ids.append(identifier)

    def is_external(self, identifier: int) -> bool:
        """Whether the value is an input or an output already, or a constant."""
        tensor = self._tensor(identifier)
        return bool(tensor.flags or tensor.constant_buffer_idx)

    def shape(self, identifier: int) -> tuple[int, ...]:
        """Returns the shape with which a value was defined."""
        return tuple(self._tensor(identifier).dims)

    def weight(self, value: Tensor) -> int:
        """Adds a filter or bias, which XNNPACK packs into memory of its own."""
        return self._add_constant(value, is_packed=True)

    def constant(self, value: Tensor) -> int:
        """Adds a constant that operators read where it lies."""
        return self._add_constant(value, is_packed=False)

    def quantized_weight(self, weight: Quantized, channel_dim: int = 0) -> int:
        """Adds a filter of whole numbers; in int8, `channel_dim` is that of its scales."""
        scales = weight.scale_bytes()
        # A name of its own: the runtime frees it once the delegate is compiled.
        name = f"scales_{scales.key}"
        shape = tuple(weight.values.shape)
        identifier, is_new = self._stored(weight.value_bytes(), shape, (name, channel_dim))
        if is_new:
            place, num_scales = self._store(name, scales), weight.scales.numel()
            if weight.group:
                params = PerChannelGroupQuant(
                    [], channel_dim, weight.group, None, place, num_scales
                )
                self._quantize(identifier, XNNDatatype.xnn_datatype_qbint4, params)
            else:
                params = PerChannelQuant([], channel_dim, place, num_scales)
                self._quantize(identifier, XNNDatatype.xnn_datatype_qcint8, params)
        return identifier

    def quantized_rows(self, source: int, num_dims: int) -> int:
        """Quantises a value as the program runs: a scale for each item of its leading dims.

        The last `num_dims` dimensions share one. What was quantised before is not again.
        """
        key = source, num_dims
        if key not in self._quantized:
            identifier = self._add_value(self.shape(source), 0)
            self._quantize(
                identifier, XNNDatatype.xnn_datatype_qdint8, PerTokenDynamicQuant(num_dims)
            )
            self.node(XNNConvert(source, identifier, 0))
            self._quantized[key] = identifier
        return self._quantized[key]

    def _quantize(self, identifier: int, datatype: XNNDatatype, params: Any) -> None:
        tensor = self._tensor(identifier)
        tensor.datatype = datatype
        value = XNNQuantizedTensorValue(tensor, params)
        self._graph.xvalues[identifier] = XValue(value)

    def _add_constant(self, value: Tensor, *, is_packed: bool) -> int:
        """Adds a constant, stored once in the file by its hash.

        The runtime frees the delegate's own bytes once it is compiled, so constants are
        stored by name. It also frees each named one that is a filter or a bias: equal bytes
        that are read in place must be another value.
        """
        content = Content.of(value.detach().to(torch.float32))
        return self._stored(content, tuple(value.shape), is_packed)[0]

    def _stored(
        self, content: Content, shape: tuple[int, ...], kind: object
    ) -> tuple[int, bool]:
        """Returns the value with this constant, and whether it is new.

        `kind` sets apart equal bytes that are read otherwise.
        """
        key = content.key, shape, kind
        if key in self._constants:
            return self._constants[key], False
        self._constants[key] = self._add_value(shape, self._store(content.key, content))
        return self._constants[key], True

    def _store(self, name: str, content: Content) -> int:
        """Stores bytes by name; returns their number in the delegate."""
        num_bytes = content.num_bytes
        self.constant_bytes[name] = num_bytes
        if content.data is None:
            self._absent.append(content)
        else:
            self.store.add_named_data(name, content.data, alignment=_ALIGNMENT)
        self._graph.constant_data.append(ConstantDataOffset(UINT64_MAX, num_bytes, name))
        return len(self._graph.constant_data) - 1

    def node(
        self, operator: Any, bounds: tuple[float | str, float | str] | None = None
    ) -> None:
        """Adds an operator; `bounds` clamp its output."""
        limits = OutputMinMax(*bounds) if bounds else None
        self._graph.xnodes.append(XNode(operator, self.num_nodes, limits))

    def lives(self) -> list[Life]:
        """Returns what lies in the workspace while operators run."""
        sizes = {
            identifier: _WIDTHS.get(self._tensor(identifier).datatype, 4)
            * product(self.shape(identifier))
            for identifier in range(len(self._graph.xvalues))
        }
        inside = {key: size for key, size in sizes.items() if not self.is_external(key)}
        inputs = {key: sizes[key] for key in self._graph.input_ids}
        return lives([node.xnode_union for node in self._graph.xnodes], inside, inputs)

    def serialize(self) -> bytes:
        """Returns the delegate's bytes."""
        return bytes(serialize_xnnpack_binary(self._graph, bytearray()))

    def _add_value(self, shape: Sequence[int], buffer: int) -> int:
        identifier = len(self._graph.xvalues)
        dims = [int(size) for size in shape] or [1]
        tensor = XNNTensorValue(
            XNNDatatype.xnn_datatype_fp32, len(dims), dims, buffer, NO_VALUE, 0, identifier
        )
        self._graph.xvalues.append(XValue(tensor))
        return identifier

    def _mark_external(self, identifier: int, flag: int) -> None:
        tensor = self._tensor(identifier)
        assert tensor.flags == 0, "a value that is an input or output already"
        tensor.flags = flag
        tensor.external_id = self._graph.num_externs
        self._graph.num_externs += 1

    def _tensor(self, identifier: int) -> XNNTensorValue:
        tensor = self._graph.xvalues[identifier].xvalue_union
        if isinstance(tensor, XNNQuantizedTensorValue):
            tensor = tensor.tensor_value
        assert isinstance(tensor, XNNTensorValue)
        return tensor
