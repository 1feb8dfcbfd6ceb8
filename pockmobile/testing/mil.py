"""Computes what a MIL program says with PyTorch, operator by operator."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import torch
import torch.nn.functional as func
from torch import Tensor

Arguments: TypeAlias = Mapping[str, Any]
"""The inputs of an operator by name: tensors, lists of them, or constants of numpy."""


def run_mil(function: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the outputs of a program's function by name.

    Args:
        function: as coremltools reads it from a model package.
        inputs: by name, in the types that the function declares.

    Raises:
        NotImplementedError: an operator that is not known here.
    """
    values: dict[Any, Tensor] = {
        variable: inputs[name] for name, variable in function.inputs.items()
    }

    def read(argument: Any) -> Any:
        if isinstance(argument, (list, tuple)):
            return [read(item) for item in argument]
        if argument in values:
            return values[argument]
        return argument.val

    for operation in function.operations:
        if operation.op_type == "const":
            continue
        if operation.op_type not in _OPERATORS:
            raise NotImplementedError(f"MIL operator {operation.op_type} is not known here")
        arguments = {name: read(value) for name, value in operation.inputs.items()}
        result = _OPERATORS[operation.op_type](arguments)
        (output,) = operation.outputs
        expected = tuple(output.shape)
        assert tuple(result.shape) == expected, f"{operation}: {result.shape}"
        values[output] = result
    return {output.name: read(output) for output in function.outputs}


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))


def _ints(arguments: Arguments, name: str) -> list[int]:
    return [int(item) for item in np.asarray(arguments[name]).reshape(-1)]


def _int(arguments: Arguments, name: str, default: int = 0) -> int:
    return int(np.asarray(arguments[name])) if name in arguments else default


def _flag(arguments: Arguments, name: str) -> bool:
    return name in arguments and bool(np.asarray(arguments[name]))


def _unary(operator: Callable[[Tensor], Tensor]) -> Callable[[Arguments], Tensor]:
    return lambda arguments: operator(_tensor(arguments["x"]))


def _binary(operator: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Arguments], Tensor]:
    return lambda arguments: operator(_tensor(arguments["x"]), _tensor(arguments["y"]))


def _with_epsilon(
    operator: Callable[[Tensor], Tensor], default: float
) -> Callable[[Arguments], Tensor]:
    """`log`, `rsqrt` and `inverse` add a number to what they are given."""

    def run(arguments: Arguments) -> Tensor:
        x = _tensor(arguments["x"])
        epsilon = arguments.get("epsilon", default)
        return operator(x + torch.tensor(float(np.asarray(epsilon)), dtype=x.dtype))

    return run


_DTYPES: Final = {
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int32": torch.int32,
    "bool": torch.bool,
}


def _cast(arguments: Arguments) -> Tensor:
    return _tensor(arguments["x"]).to(_DTYPES[str(arguments["dtype"])])


def _select(arguments: Arguments) -> Tensor:
    condition, a, b = (_tensor(arguments[name]) for name in ("cond", "a", "b"))
    return torch.where(condition, a, b)


def _matmul(arguments: Arguments) -> Tensor:
    x, y = _tensor(arguments["x"]), _tensor(arguments["y"])
    x = x.transpose(-1, -2) if _flag(arguments, "transpose_x") else x
    y = y.transpose(-1, -2) if _flag(arguments, "transpose_y") else y
    return x @ y


def _linear(arguments: Arguments) -> Tensor:
    bias = arguments.get("bias")
    weight = _tensor(arguments["weight"])
    return func.linear(_tensor(arguments["x"]), weight, None if bias is None else _tensor(bias))


def _symmetric(arguments: Arguments) -> list[int]:
    """Returns the padding of each dimension, which is the same before and after here."""
    if "pad" not in arguments:
        return []
    pads = _ints(arguments, "pad")
    assert pads[::2] == pads[1::2], f"pads {pads} differ before and after"
    return pads[::2]


def _convolution(arguments: Arguments) -> Tensor:
    assert str(arguments["pad_type"]) == "custom"
    x, weight = _tensor(arguments["x"]), _tensor(arguments["weight"])
    bias = _tensor(arguments["bias"]) if "bias" in arguments else None
    run = {3: func.conv1d, 4: func.conv2d}[x.dim()]
    strides, dilations = _ints(arguments, "strides"), _ints(arguments, "dilations")
    groups = _int(arguments, "groups", 1)
    return run(x, weight, bias, strides, _symmetric(arguments), dilations, groups)


def _transposed_convolution(arguments: Arguments) -> Tensor:
    assert str(arguments["pad_type"]) == "custom"
    x, weight = _tensor(arguments["x"]), _tensor(arguments["weight"])
    bias = _tensor(arguments["bias"]) if "bias" in arguments else None
    run = {3: func.conv_transpose1d, 4: func.conv_transpose2d}[x.dim()]
    strides, dilations = _ints(arguments, "strides"), _ints(arguments, "dilations")
    groups = _int(arguments, "groups", 1)
    return run(x, weight, bias, strides, _symmetric(arguments), 0, groups, dilations)


def _max_pool(arguments: Arguments) -> Tensor:
    assert str(arguments["pad_type"]) == "custom"
    return func.max_pool2d(
        _tensor(arguments["x"]),
        _ints(arguments, "kernel_sizes"),
        _ints(arguments, "strides"),
        _symmetric(arguments),
        ceil_mode=_flag(arguments, "ceil_mode"),
    )


def _reduction(operator: Callable[..., Tensor]) -> Callable[[Arguments], Tensor]:
    def run(arguments: Arguments) -> Tensor:
        x = _tensor(arguments["x"])
        dims = _ints(arguments, "axes") if "axes" in arguments else list(range(x.dim()))
        return operator(x, dims, keepdim=_flag(arguments, "keep_dims"))

    return run


def _argmax(arguments: Arguments) -> Tensor:
    dim, keep = _int(arguments, "axis", -1), _flag(arguments, "keep_dims")
    return _tensor(arguments["x"]).argmax(dim, keepdim=keep).to(torch.int32)


def _softmax(arguments: Arguments) -> Tensor:
    return _tensor(arguments["x"]).softmax(_int(arguments, "axis", -1))


def _gelu(arguments: Arguments) -> Tensor:
    approximate = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[str(arguments["mode"])]
    return func.gelu(_tensor(arguments["x"]), approximate=approximate)


def _leaky_relu(arguments: Arguments) -> Tensor:
    return func.leaky_relu(_tensor(arguments["x"]), float(np.asarray(arguments["alpha"])))


def _slice(arguments: Arguments) -> Tensor:
    begin, end = _ints(arguments, "begin"), _ints(arguments, "end")
    stride = _ints(arguments, "stride") if "stride" in arguments else [1] * len(begin)
    masks = {"begin_mask", "end_mask", "squeeze_mask"} & set(arguments)
    assert not any(np.any(arguments[name]) for name in masks), "a slice with masks"
    places = tuple(slice(*numbers) for numbers in zip(begin, end, stride, strict=True))
    return _tensor(arguments["x"])[places]


def _concat(arguments: Arguments) -> Tensor:
    assert not _flag(arguments, "interleave")
    parts = [_tensor(value) for value in arguments["values"]]
    return torch.cat(parts, _int(arguments, "axis"))


def _pad(arguments: Arguments) -> Tensor:
    assert str(arguments.get("mode", "constant")) == "constant"
    pads = _ints(arguments, "pad")
    last_first = [size for i in range(len(pads) - 2, -1, -2) for size in pads[i : i + 2]]
    value = float(np.asarray(arguments.get("constant_val", 0.0)))
    return func.pad(_tensor(arguments["x"]), last_first, value=value)


def _gather(arguments: Arguments) -> Tensor:
    assert _int(arguments, "batch_dims") == 0
    x, indices = _tensor(arguments["x"]), _tensor(arguments["indices"])
    axis = _int(arguments, "axis") % x.dim()
    found = x.index_select(axis, indices.reshape(-1).long())
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _scatter(arguments: Arguments) -> Tensor:
    x, indices = _tensor(arguments["data"]), _tensor(arguments["indices"])
    assert _int(arguments, "axis") == 0
    rows = _tensor(arguments["updates"]).reshape(-1, *x.shape[1:])
    mode, places = str(arguments["mode"]), indices.reshape(-1).long()
    assert mode in ("add", "update"), mode
    return x.index_put((places,), rows, accumulate=mode == "add")


def _cumsum(arguments: Arguments) -> Tensor:
    assert not _flag(arguments, "exclusive")
    assert not _flag(arguments, "reverse")
    x = _tensor(arguments["x"])
    return x.cumsum(_int(arguments, "axis"), dtype=x.dtype)


def _reshape(arguments: Arguments) -> Tensor:
    return _tensor(arguments["x"]).reshape(_ints(arguments, "shape"))


def _transpose(arguments: Arguments) -> Tensor:
    return _tensor(arguments["x"]).permute(_ints(arguments, "perm")).contiguous()


def _tile(arguments: Arguments) -> Tensor:
    return _tensor(arguments["x"]).repeat(_ints(arguments, "reps"))


def _reverse(arguments: Arguments) -> Tensor:
    return _tensor(arguments["x"]).flip(_ints(arguments, "axes"))


def _amax(x: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    return x.amax(list(dims), keepdim)


def _amin(x: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    return x.amin(list(dims), keepdim)


def _sum(x: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    return x.sum(list(dims), keepdim, dtype=x.dtype)


_OPERATORS: Final[Mapping[str, Callable[[Arguments], Tensor]]] = {
    "abs": _unary(torch.abs),
    "add": _binary(torch.add),
    "cast": _cast,
    "ceil": _unary(torch.ceil),
    "concat": _concat,
    "conv": _convolution,
    "conv_transpose": _transposed_convolution,
    "cos": _unary(torch.cos),
    "cumsum": _cumsum,
    "equal": _binary(torch.eq),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "floor": _unary(torch.floor),
    "gather": _gather,
    "gelu": _gelu,
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "identity": _unary(torch.clone),
    "inverse": _with_epsilon(torch.reciprocal, 1e-4),
    "leaky_relu": _leaky_relu,
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "linear": _linear,
    "log": _with_epsilon(torch.log, 1e-45),
    "logical_and": _binary(torch.logical_and),
    "logical_not": _unary(torch.logical_not),
    "logical_or": _binary(torch.logical_or),
    "matmul": _matmul,
    "max_pool": _max_pool,
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mul": _binary(torch.mul),
    "not_equal": _binary(torch.ne),
    "pad": _pad,
    "real_div": _binary(torch.div),
    "reduce_argmax": _argmax,
    "reduce_max": _reduction(_amax),
    "reduce_mean": _reduction(torch.mean),
    "reduce_min": _reduction(_amin),
    "reduce_sum": _reduction(_sum),
    "relu": _unary(torch.relu),
    "reshape": _reshape,
    "reverse": _reverse,
    "rsqrt": _with_epsilon(torch.rsqrt, 1e-12),
    "scatter": _scatter,
    "select": _select,
    "sigmoid": _unary(torch.sigmoid),
    "sign": _unary(torch.sign),
    "silu": _unary(func.silu),
    "sin": _unary(torch.sin),
    "slice_by_index": _slice,
    "softmax": _softmax,
    "sqrt": _unary(torch.sqrt),
    "sub": _binary(torch.sub),
    "tanh": _unary(torch.tanh),
    "tile": _tile,
    "transpose": _transpose,
}
