"""A `.pte` run instruction by instruction, its delegates by interpreters of ours."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, final

import torch
from executorch.exir import schema
from executorch.exir._serialize._program import deserialize_pte_binary
from torch import Tensor

from pockmobile.artifact.manifest import Manifest
from pockmobile.testing.coreml import CoreMLDelegate, package_of


class Delegate(Protocol):
    """What computes in the place of a delegate."""

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns the outputs for these inputs."""


_READERS: Final[Mapping[str, Callable[[bytes, str], Delegate]]] = {
    "CoreMLBackend": CoreMLDelegate.from_bytes
}


@final
class InterpretedProgram:
    """A program whose delegates need hardware that is not here.

    Operators outside the delegates are PyTorch's of the same name. It shows whether the
    program computes the right thing, neither how fast nor how exactly a phone does.
    """

    def __init__(self, buffer: bytes) -> None:
        """Reads a program: ExecuTorch's bytes, with or without pockmobile's seal."""
        file = deserialize_pte_binary(buffer)
        self._program, self._data = file.program, file.named_data
        self._plans = {plan.name: plan for plan in file.program.execution_plan}
        self._delegates: dict[tuple[str, int], Delegate] = {}

    @property
    def manifest(self) -> Manifest:
        """What the program computes and how it was made."""
        return Manifest.from_json(self.run("manifest", [])[0])

    def run(self, method: str, inputs: Sequence[Tensor]) -> list[Any]:
        """Returns the outputs of a method."""
        plan = self._plans[method]
        values: dict[int, Any] = dict(zip(plan.inputs, inputs, strict=True))
        (chain,) = plan.chains
        for instruction in chain.instructions:
            self._step(plan, instruction.instr_args, values)
        return [self._value(plan, index, values) for index in plan.outputs]

    def delegate(self, method: str, index: int = 0) -> Delegate:
        """Returns a method's delegate, which is read once."""
        key = method, index
        if key not in self._delegates:
            found = self._plans[method].delegates[index]
            blob = self.blob(method, index)
            self._delegates[key] = _READERS[found.id](blob, method)
        return self._delegates[key]

    def replace_delegate(self, method: str, delegate: Delegate, index: int = 0) -> None:
        """Puts something else in the place of a method's delegate."""
        self._delegates[method, index] = delegate

    def blob(self, method: str, index: int = 0) -> bytes:
        """Returns the bytes of a method's delegate, or of what they refer to."""
        place = self._plans[method].delegates[index].processed
        assert place.location == schema.DataLocation.INLINE
        inline = bytes(self._program.backend_delegate_data[place.index].data)
        return package_of(inline, self._data)

    def _step(self, plan: schema.ExecutionPlan, step: Any, values: dict[int, Any]) -> None:
        if isinstance(step, schema.KernelCall):
            self._call(plan, step, values)
        elif isinstance(step, schema.DelegateCall):
            self._delegate(plan, step, values)
        else:
            assert isinstance(step, schema.FreeCall), f"{type(step).__name__} is not known here"

    def _delegate(
        self, plan: schema.ExecutionPlan, step: schema.DelegateCall, values: dict[int, Any]
    ) -> None:
        delegate = self.delegate(plan.name, step.delegate_index)
        num_inputs = len(step.args) - _num_outputs(delegate)
        inputs = [self._value(plan, index, values) for index in step.args[:num_inputs]]
        targets = step.args[num_inputs:]
        for index, result in zip(targets, delegate.run(inputs), strict=True):
            place = self._new(plan, index)
            assert place.numel() == result.numel(), f"{place.shape} for {result.shape}"
            values[index] = result.reshape(place.shape).to(place.dtype)

    def _call(
        self, plan: schema.ExecutionPlan, step: schema.KernelCall, values: dict[int, Any]
    ) -> None:
        described = plan.operators[step.op_index]
        namespace, name = described.name.split("::")
        if name == "et_view":
            source, shape, target = step.args
            sizes = self._value(plan, shape, values)
            values[target] = self._value(plan, source, values).reshape(sizes).clone()
            return
        operator = getattr(getattr(torch.ops, namespace), name)
        overload = getattr(operator, described.overload or "default")
        arguments = {}
        # The runtime's convention repeats the result behind the arguments.
        for argument, index in zip(overload._schema.arguments, step.args, strict=False):
            if argument.is_out:
                values[index] = self._new(plan, index)
            arguments[argument.name] = self._value(plan, index, values)
        overload(**arguments)

    def _value(self, plan: schema.ExecutionPlan, index: int, values: dict[int, Any]) -> Any:
        if index in values:
            return values[index]
        item = plan.values[index].val
        match item:
            case schema.Null():
                return None
            case schema.Int(number) | schema.Double(number) | schema.Bool(number):
                return float(number) if isinstance(number, str) else number
            case schema.String(text):
                return text
            case schema.IntList(indices) | schema.TensorList(indices):
                return [self._value(plan, place, values) for place in indices]
            case schema.OptionalTensorList(indices):
                return [
                    None if place < 0 else self._value(plan, place, values) for place in indices
                ]
            case schema.DoubleList(numbers) | schema.BoolList(numbers):
                return list(numbers)
            case schema.Tensor():
                return (
                    self._constant(item)
                    if item.data_buffer_idx
                    else self._view(plan, item, values)
                )
        raise NotImplementedError(f"a value of type {type(item).__name__}")

    def _view(
        self, plan: schema.ExecutionPlan, tensor: schema.Tensor, values: Mapping[int, Any]
    ) -> Tensor:
        """Returns what was last written where a tensor lies: views are no instructions."""
        place = tensor.allocation_info
        for index in reversed(values):
            other = plan.values[index].val
            if isinstance(other, schema.Tensor) and other.allocation_info == place is not None:
                source: Tensor = values[index]
                return source.reshape(list(tensor.sizes))
        raise AssertionError("a tensor that nothing has computed")

    def _constant(self, tensor: schema.Tensor) -> Tensor:
        data = self._program.constant_buffer[tensor.data_buffer_idx].storage
        flat = torch.frombuffer(bytearray(data), dtype=_dtype(tensor))
        return flat[: math.prod(tensor.sizes)].reshape(list(tensor.sizes))

    def _new(self, plan: schema.ExecutionPlan, index: int) -> Tensor:
        tensor = plan.values[index].val
        assert isinstance(tensor, schema.Tensor)
        return torch.zeros(list(tensor.sizes), dtype=_dtype(tensor))


def _num_outputs(delegate: Delegate) -> int:
    outputs = getattr(delegate, "outputs", ())
    return len(outputs)


def _dtype(tensor: schema.Tensor) -> torch.dtype:
    return _DTYPES[tensor.scalar_type.name]


_DTYPES: Final = {
    "BOOL": torch.bool,
    "INT": torch.int32,
    "LONG": torch.int64,
    "HALF": torch.float16,
    "FLOAT": torch.float32,
}
