"""Compiles a delegate for XNNPACK."""

from collections.abc import Mapping, Sequence

from torch import Tensor, fx

from pockmobile.targets.delegate import Compile, Compiled
from pockmobile.targets.xnnpack.emitter import Emitter
from pockmobile.targets.xnnpack.quantize import Precision
from pockmobile.targets.xnnpack.support import EMITTERS
from pockmobile.targets.xnnpack.workspace import planned_bytes


def compiler(constants: Mapping[fx.Node, Tensor], frozen_weights: Precision) -> Compile:
    """Returns what compiles a delegate; `frozen_weights` is how products may hold those."""

    def compile_delegate(
        nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
    ) -> Compiled:
        emitter = Emitter(EMITTERS, constants, frozen_weights=frozen_weights)
        for node in inputs:
            emitter.add_input(node)
        for node in nodes:
            emitter.add(node)
        for node in outputs:
            emitter.add_output(node)
        return Compiled(
            backend="XnnpackBackend",
            blob=emitter.blob.serialize(),
            named_data=emitter.blob.store.get_named_data_store_output(),
            constant_bytes=emitter.blob.constant_bytes,
            memory=emitter.memory(),
            arena_bytes=planned_bytes(emitter.blob.lives()),
        )

    return compile_delegate
