"""Compiles a delegate for Core ML."""

from collections.abc import Container, Mapping, Sequence

import coremltools as ct
import torch
from coremltools.converters.mil.mil import Builder, Function, Program, types
from torch import Tensor, fx

from pockmobile.graph.rewrite import value_of
from pockmobile.targets.coreml.emitter import Emitter, Var, sizes
from pockmobile.targets.coreml.package import write_package
from pockmobile.targets.coreml.support import EMITTERS
from pockmobile.targets.coreml.workspace import workspace
from pockmobile.targets.delegate import Compile, Compiled
from pockmobile.targets.portable import hash_and_size


def compiler(
    constants: Mapping[fx.Node, Tensor],
    *,
    half: Container[fx.Node],
    ios: int,
    compute_units: str,
) -> Compile:
    """Returns what compiles a delegate for that release of iOS and those units.

    The nodes `half` are computed in float16.
    """

    def compile_delegate(
        nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
    ) -> Compiled:
        names = [f"input_{index}" for index in range(len(inputs))]
        results = [f"output_{index}" for index in range(len(outputs))]
        emitter = Emitter(EMITTERS, constants, half=half)
        placeholders = dict(zip(names, map(_placeholder, inputs), strict=True))
        with Function(placeholders, opset_version=getattr(ct.target, f"iOS{ios}")) as function:
            for name, node in zip(names, inputs, strict=True):
                emitter.add_input(node, function.inputs[name])
            for node in nodes:
                emitter.add(node)
            named = zip(outputs, results, strict=True)
            function.set_outputs([emitter.output(node, name) for node, name in named])
        program = Program()
        program.add_function("main", function)
        return Compiled(
            backend="CoreMLBackend",
            blob=write_package(program, names, results, ios),
            options={"compute_units": compute_units.encode()},
            constant_bytes=_constant_bytes(nodes, constants),
            memory=workspace(nodes, outputs, half),
        )

    return compile_delegate


def _placeholder(node: fx.Node) -> Var:
    is_float = value_of(node).is_floating_point()
    return Builder.placeholder(shape=sizes(node), dtype=types.fp32 if is_float else types.int32)


def _constant_bytes(
    nodes: Sequence[fx.Node], constants: Mapping[fx.Node, Tensor]
) -> dict[str, int]:
    """Returns the sizes, by hash, of the constants that are read."""
    read = dict.fromkeys(parent for node in nodes for parent in node.all_input_nodes)
    return dict(
        hash_and_size(constants[node])
        for node in read
        if node in constants and node.target is not torch.ops.aten.full.default
    )
