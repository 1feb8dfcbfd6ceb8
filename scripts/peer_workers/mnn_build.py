"""Converts a network into a training model of MNN: a static graph that writes its weights."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

# The operators themselves: MNN.expr's wrappers cast, and a cast has no gradient.
import _mnncengine._expr as f
import numpy as np
from _mnncengine import _optim
from numpy import ndarray

from scripts.peer_workers.network import Batch, Build, Network

Var = Any


def build(network: Network, batch: Batch, path: Path) -> None:
    """Writes the model; its inputs are `inputs`, `targets` and `rate`, its output `loss`."""
    f.lazy_eval(True)
    values = {name: _constant(tensor) for name, tensor in network.tensors.items()}
    parameters = [values[name] for name in network.trained]
    for name, parameter in zip(network.trained, parameters, strict=True):
        parameter.fix_as_trainable()
        parameter.name = name
    for name, array in (("inputs", batch.inputs), ("targets", batch.targets)):
        values[name] = _input(name, array.shape, f.float if array.ndim == 4 else f.int)
    loss = Build(_TABLE)(network, values)
    loss.name = "loss"
    optimizer = _optim.Grad()
    known, gradients = optimizer.grad([loss], [_constant(np.ones((), np.float32))], parameters)
    if len(known) != len(parameters):
        missing = {parameter.name for parameter in parameters} - {p.name for p in known}
        raise ValueError(f"MNN has no gradient of {', '.join(sorted(missing))}")
    rate = _input("rate", (), f.float)
    updates = [
        f.subtract(parameter, f.multiply(rate, gradient))
        for parameter, gradient in zip(known, gradients, strict=True)
    ]
    for parameter, update in zip(known, updates, strict=True):
        update.name = f"{parameter.name}.update"
    # MNN runs what is saved last first, and writes a weight as soon as it can: the weights that
    # the forward pass meets first are updated first, when all gradients behind are computed.
    optimizer.save_graph(str(path), [loss], known[::-1], updates[::-1])


def _constant(value: ndarray) -> Var:
    kind = f.int if value.dtype.kind == "i" else f.float
    return f.const(np.ascontiguousarray(value), list(value.shape), f.NCHW, kind)


def _input(name: str, shape: Sequence[int], kind: Any) -> Var:
    value = f.placeholder(list(shape), f.NCHW, kind)
    value.name = name
    return value


def _fold_weight(weight: Var, gamma: Var, scale: Var) -> Var:
    factor = f.reshape(f.multiply(gamma, scale), [-1, 1, 1, 1])
    return f.multiply(weight, factor)


def _convolution(
    x: Var, weight: Var, bias: Var, *, stride: int, padding: int, groups: int
) -> Var:
    channels = f.convert(x, f.NC4HW4)
    steps, pads = [stride, stride], [padding, padding]
    return f.conv2d(channels, weight, bias, steps, pads, [1, 1], groups, f.CAFFE)


def _embedding(tokens: Var, table: Var) -> Var:
    # A gather has no gradient, and its scattering would keep one of a token's several uses.
    chosen = f.one_hot(f.reshape(tokens, [-1]), table.shape[0], 1.0, 0.0, -1)
    return f.matmul(chosen, table, False, False)


def _add_positions(x: Var, positions: Var, *, length: int, width: int) -> Var:
    return f.reshape(f.add(f.reshape(x, [-1, length, width]), positions), [-1, width])


def _layer_norm(x: Var, weight: Var, bias: Var, *, epsilon: float) -> Var:
    centred = f.subtract(x, f.reduce_mean(x, [-1], True))
    variance = f.reduce_mean(f.square(centred), [-1], True)
    inverse = f.rsqrt(f.add(variance, _number(epsilon)))
    return f.add(f.multiply(f.multiply(centred, inverse), weight), bias)


def _causal_attention(
    query: Var, key: Var, value: Var, *, length: int, heads: int, width: int
) -> Var:
    def split(x: Var) -> Var:
        return f.transpose(f.reshape(x, [-1, length, heads, width]), [0, 2, 1, 3])

    scores = f.matmul(split(query), split(key), False, True)
    later = _constant(np.triu(np.full((length, length), -1e9, np.float32), 1))
    weights = f.softmax(f.add(f.multiply(scores, _number(width**-0.5)), later), -1)
    mixed = f.matmul(weights, split(value), False, False)
    return f.reshape(f.transpose(mixed, [0, 2, 1, 3]), [-1, heads * width])


def _gelu(x: Var) -> Var:
    half = f.multiply(x, _number(0.5))
    return f.multiply(half, f.add(f.erf(f.multiply(x, _number(0.5**0.5))), _number(1.0)))


def _cross_entropy(logits: Var, labels: Var) -> Var:
    num_classes = logits.shape[-1]
    chosen = f.one_hot(f.reshape(labels, [-1]), num_classes, 1.0, 0.0, -1)
    likely = f.reduce_sum(f.multiply(chosen, f.log(f.softmax(logits, -1))), [-1], False)
    return f.negative(f.reduce_mean(likely, [], False))


def _number(value: float) -> Var:
    return _constant(np.array(value, np.float32))


_TABLE: Final[Mapping[str, Callable[..., Var]]] = {
    "fold_weight": _fold_weight,
    "fold_bias": lambda beta, gamma, shift: f.subtract(beta, f.multiply(gamma, shift)),
    "convolution": _convolution,
    "relu6": lambda x: f.relu6(x, 0.0, 6.0),
    "add": f.add,
    "mean_pool": lambda x: f.reduce_mean(f.convert(x, f.NCHW), [2, 3], False),
    "linear": lambda x, weight, bias: f.add(f.matmul(x, weight, False, True), bias),
    "embedding": _embedding,
    "add_positions": _add_positions,
    "layer_norm": _layer_norm,
    "causal_attention": _causal_attention,
    "gelu": _gelu,
    "cross_entropy": _cross_entropy,
}
