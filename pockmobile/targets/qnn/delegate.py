"""Compiles a delegate for QNN, with ExecuTorch's passes and builders."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from torch import Tensor, fx

from pockmobile.targets.delegate import Compile, Compiled
from pockmobile.targets.portable import hash_and_size
from pockmobile.targets.qnn.extraction import extract
from pockmobile.targets.qnn.quantization import quantize

if TYPE_CHECKING:
    from pockmobile.targets.qnn.target import Qnn

_BACKEND: Final = "QnnBackend"


def compiler(target: "Qnn", constants: Mapping[fx.Node, Tensor], method: str) -> Compile:
    """Returns what compiles a delegate of a method."""

    def compile_delegate(
        nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
    ) -> Compiled:
        module = extract(nodes, inputs, outputs, constants)
        frozen = dict(hash_and_size(value) for value in module.buffers())
        if not target.compiles:
            return Compiled(_BACKEND, b"", constant_bytes=frozen)
        from pockmobile.targets.qnn.compilation import compile_module

        is_rounded = target.precision == "int16"
        blob, options = compile_module(
            quantize(module) if is_rounded else module,
            inputs,
            soc=target.soc,
            method=method,
            is_rounded=is_rounded,
        )
        return Compiled(_BACKEND, blob, constant_bytes=frozen, options=options)

    return compile_delegate
