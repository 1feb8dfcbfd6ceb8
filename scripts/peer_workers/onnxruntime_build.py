"""Converts a network into the training artifacts of ONNX Runtime."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import onnx
from numpy import ndarray
from onnx import helper, numpy_helper

from scripts.peer_workers.network import Batch, Build, Network
from scripts.peer_workers.onnxruntime_training import training_module

_OPSETS: Final = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]


def build(network: Network, batch: Batch, path: Path) -> None:
    """Writes a folder of artifacts."""
    artifacts = training_module("artifacts")
    path.mkdir(parents=True, exist_ok=True)
    artifacts.generate_artifacts(
        _model(network, batch),
        requires_grad=list(network.trained),
        # What is frozen is in neither list, and so constant: of `frozen_params`, ONNX Runtime
        # would make inputs, whose packing for the kernels it repeats in each step.
        frozen_params=[],
        optimizer=artifacts.OptimType.SGD,
        artifact_directory=str(path),
    )


def _model(network: Network, batch: Batch) -> onnx.ModelProto:
    graph = _Graph()
    tensors = [numpy_helper.from_array(t, name) for name, t in network.tensors.items()]
    values = {name: name for name in ("inputs", "targets", *network.tensors)}
    loss = Build(graph.table())(network, values)
    described = helper.make_graph(
        graph.nodes,
        "network",
        [_described("inputs", batch.inputs), _described("targets", batch.targets)],
        [helper.make_tensor_value_info(loss, onnx.TensorProto.FLOAT, [])],
        [*tensors, *graph.constants],
    )
    return onnx.shape_inference.infer_shapes(
        helper.make_model(described, opset_imports=_OPSETS, ir_version=9)
    )


def _described(name: str, value: ndarray) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, kind, value.shape)


@final
@dataclass
class _Graph:
    """An ONNX graph as it grows; a value is a name."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def call(self, kind: str, *inputs: str, extra: int = 0, **attributes: Any) -> str:
        """Adds a node, and returns its first result of `1 + extra`."""
        output = f"{kind}.{len(self.nodes)}"
        outputs = [output, *(f"{output}.{index}" for index in range(extra))]
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return output

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"constant.{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def reshape(self, x: str, *shape: int) -> str:
        return self.call("Reshape", x, self.constant(shape))

    def table(self) -> Mapping[str, Callable[..., str]]:
        """Returns what builds each operator."""
        return {
            "fold_weight": self.fold_weight,
            "fold_bias": lambda b, g, s: self.call("Sub", b, self.call("Mul", g, s)),
            "convolution": self.convolution,
            "relu6": self.relu6,
            "add": lambda x, y: self.call("Add", x, y),
            "mean_pool": lambda x: self.call("Flatten", self.call("GlobalAveragePool", x)),
            "linear": self.linear,
            "embedding": lambda ids, table: self.call("Gather", table, self.reshape(ids, -1)),
            "add_positions": self.add_positions,
            "layer_norm": self.layer_norm,
            "causal_attention": self.causal_attention,
            "gelu": lambda x: self.call("Gelu", x, domain="com.microsoft"),
            "cross_entropy": self.cross_entropy,
        }

    def fold_weight(self, weight: str, gamma: str, scale: str) -> str:
        factor = self.reshape(self.call("Mul", gamma, scale), -1, 1, 1, 1)
        return self.call("Mul", weight, factor)

    def convolution(
        self, x: str, weight: str, bias: str, *, stride: int, padding: int, groups: int
    ) -> str:
        pads, strides = [padding] * 4, [stride] * 2
        return self.call("Conv", x, weight, bias, pads=pads, strides=strides, group=groups)

    def relu6(self, x: str) -> str:
        return self.call(
            "Clip", x, self.constant(0.0, np.float32), self.constant(6.0, np.float32)
        )

    def linear(self, x: str, weight: str, bias: str) -> str:
        return self.call("Gemm", x, weight, bias, transB=1)

    def layer_norm(self, x: str, weight: str, bias: str, *, epsilon: float) -> str:
        # Its gradient reads the mean and the deviation, too.
        return self.call("LayerNormalization", x, weight, bias, extra=2, epsilon=epsilon)

    def add_positions(self, x: str, positions: str, *, length: int, width: int) -> str:
        rows = self.call("Add", self.reshape(x, -1, length, width), positions)
        return self.reshape(rows, -1, width)

    def causal_attention(
        self, query: str, key: str, value: str, *, length: int, heads: int, width: int
    ) -> str:
        def split(x: str, order: tuple[int, ...]) -> str:
            return self.call("Transpose", self.reshape(x, -1, length, heads, width), perm=order)

        scores = self.call("MatMul", split(query, (0, 2, 1, 3)), split(key, (0, 2, 3, 1)))
        scaled = self.call("Mul", scores, self.constant(width**-0.5, np.float32))
        later = np.triu(np.full((length, length), -1e9), 1)
        masked = self.call("Add", scaled, self.constant(later, np.float32))
        weights = self.call("Softmax", masked, axis=-1)
        mixed = self.call("MatMul", weights, split(value, (0, 2, 1, 3)))
        return self.reshape(self.call("Transpose", mixed, perm=(0, 2, 1, 3)), -1, heads * width)

    def cross_entropy(self, logits: str, labels: str) -> str:
        flat = self.reshape(labels, -1)
        return self.call("SoftmaxCrossEntropyLoss", logits, flat, reduction="mean")
