"""Converts a network into a LiteRT model with a train signature, by TensorFlow."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import tensorflow as tf
from numpy import ndarray

from scripts.peer_workers.litert import channels_last
from scripts.peer_workers.network import Batch, Build, Network

Value = Any


def build(network: Network, batch: Batch, path: Path) -> None:
    """Writes the model, whose signature `train` takes a step."""
    module = tf.Module()
    tensors = {name: _laid_out(name, value, network) for name, value in network.tensors.items()}
    module.variables_of = {
        name: tf.Variable(tensors[name], name=f"parameter{index}")
        for index, name in enumerate(network.trained)
    }
    inputs = channels_last(batch.inputs)
    signature = [
        tf.TensorSpec(inputs.shape, inputs.dtype, name="inputs"),
        tf.TensorSpec(batch.targets.shape, batch.targets.dtype, name="targets"),
        tf.TensorSpec((), tf.float32, name="rate"),
    ]

    @tf.function(input_signature=signature)
    def train(inputs: Value, targets: Value, rate: Value) -> Mapping[str, Value]:
        frozen = {n: tf.constant(t) for n, t in tensors.items() if n not in network.trained}
        # Read once: a value that is read again behind an update would be the new one.
        read = {name: variable.read_value() for name, variable in module.variables_of.items()}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(read.values()))
            values = {**frozen, **read, "inputs": inputs, "targets": targets}
            loss = Build(_TABLE)(network, values)
        for name, gradient in zip(read, tape.gradient(loss, list(read.values())), strict=True):
            module.variables_of[name].assign_sub(rate * tf.convert_to_tensor(gradient))
        return {"loss": loss}

    with TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"train": train})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        # What has no operator of LiteRT's own runs as TensorFlow's, as its guide advises.
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS,
            tf.lite.OpsSet.SELECT_TF_OPS,
        ]
        converter.experimental_enable_resource_variables = True
        path.write_bytes(converter.convert())


def _laid_out(name: str, value: ndarray, network: Network) -> ndarray:
    """Returns a weight as TensorFlow's convolutions want it, and anything else as it is."""
    if value.ndim != 4:
        return value
    is_depthwise = value.shape[1] == 1
    order = (2, 3, 0, 1) if is_depthwise else (2, 3, 1, 0)
    return np.ascontiguousarray(value.transpose(order))


def _fold_weight(weight: Value, gamma: Value, scale: Value) -> Value:
    # Of a depthwise weight, [H, W, O, 1], the channels are the third dimension.
    shape = (-1, 1) if weight.shape[3] == 1 else (-1,)
    return weight * tf.reshape(gamma * scale, shape)


def _convolution(
    x: Value, weight: Value, bias: Value, *, stride: int, padding: int, groups: int
) -> Value:
    kind = "SAME" if padding and stride == 1 else "VALID"
    if padding and stride > 1:
        # "SAME" would pad the end only.
        sides = (padding, padding)
        x = tf.pad(x, ((0, 0), sides, sides, (0, 0)))
    if groups == 1:
        return tf.nn.conv2d(x, weight, stride, kind) + bias
    return tf.nn.depthwise_conv2d(x, weight, (1, stride, stride, 1), kind) + bias


def _add_positions(x: Value, positions: Value, *, length: int, width: int) -> Value:
    return tf.reshape(tf.reshape(x, (-1, length, width)) + positions, (-1, width))


def _layer_norm(x: Value, weight: Value, bias: Value, *, epsilon: float) -> Value:
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), -1, keepdims=True)
    return centred * tf.math.rsqrt(variance + epsilon) * weight + bias


def _causal_attention(
    query: Value, key: Value, value: Value, *, length: int, heads: int, width: int
) -> Value:
    def split(x: Value) -> Value:
        return tf.transpose(tf.reshape(x, (-1, length, heads, width)), (0, 2, 1, 3))

    scores = tf.matmul(split(query), split(key), transpose_b=True) * width**-0.5
    later = tf.constant(np.triu(np.full((length, length), -1e9, np.float32), 1))
    mixed = tf.matmul(tf.nn.softmax(scores + later), split(value))
    return tf.reshape(tf.transpose(mixed, (0, 2, 1, 3)), (-1, heads * width))


def _cross_entropy(logits: Value, labels: Value) -> Value:
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(labels, (-1,)), logits)
    return tf.reduce_mean(losses)


_TABLE: Final[Mapping[str, Callable[..., Value]]] = {
    "fold_weight": _fold_weight,
    "fold_bias": lambda beta, gamma, shift: beta - gamma * shift,
    "convolution": _convolution,
    "relu6": tf.nn.relu6,
    "add": tf.add,
    "mean_pool": lambda x: tf.reduce_mean(x, (1, 2)),
    "linear": lambda x, weight, bias: tf.matmul(x, weight, transpose_b=True) + bias,
    "embedding": lambda ids, table: tf.gather(table, tf.reshape(ids, (-1,))),
    "add_positions": _add_positions,
    "layer_norm": _layer_norm,
    "causal_attention": _causal_attention,
    "gelu": lambda x: 0.5 * x * (1.0 + tf.math.erf(x * 0.5**0.5)),
    "cross_entropy": _cross_entropy,
}
