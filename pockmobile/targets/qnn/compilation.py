"""From a module to bytes for the Hexagon processor: all that touches ExecuTorch's backend."""

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import executorch.backends.qualcomm.python.PyQnnManagerAdaptor as PyQnnManagerAdaptor
import torch
from executorch.backends.qualcomm._passes import (
    RecomposePadMaxPool2d,
    RecomposePixelUnshuffle,
    RecomposeRmsNorm,
)
from executorch.backends.qualcomm._passes.backends.htp.qnn_htp_pass_manager import (
    QnnHtpPassManager,
)
from executorch.backends.qualcomm.builders.node_visitor_manager import get_node_visitors
from executorch.backends.qualcomm.serialization.qc_schema import QnnExecuTorchBackendType
from executorch.backends.qualcomm.utils.constants import QCOM_AXIS_ORDER, QCOM_PASS_ACTIVATE_KEY
from executorch.backends.qualcomm.utils.qnn_manager_lifecycle import (
    QnnManagerContext,
    get_current_qnn_manager,
)
from executorch.backends.qualcomm.utils.utils import (
    generate_htp_compiler_spec,
    generate_qnn_executorch_compiler_spec,
    qnn_edge_config,
)
from executorch.exir import to_edge
from executorch.exir.backend.compile_spec_schema import CompileSpec
from torch import fx, nn
from torch.export import ExportedProgram

from pockmobile import qualcomm
from pockmobile.errors import UnsupportedOperatorError
from pockmobile.graph.rewrite import value_of
from pockmobile.targets.qnn.depthwise import Convolution
from pockmobile.targets.qnn.extraction import input_shape
from pockmobile.targets.qnn.guards import (
    Signature,
    check_rounded,
    check_signature,
    order_outputs,
)
from pockmobile.targets.qnn.quiet import quiet
from pockmobile.targets.qnn.socs import chipset_of

_CONVOLUTION: Final = "aten.convolution.default"
_MISTAKEN: Final = (RecomposeRmsNorm, RecomposePadMaxPool2d, RecomposePixelUnshuffle)
"""Passes that recognise patterns; the first takes a layer norm for an RMS norm."""


def compile_module(
    module: nn.Module, inputs: Sequence[fx.Node], *, soc: str, method: str, is_rounded: bool
) -> tuple[bytes, Mapping[str, bytes]]:
    """Returns the delegate's bytes, and the options that the runtime gets beside them.

    `is_rounded` says that the module's values are to be whole numbers.

    Raises:
        MissingLibraryError: Qualcomm's libraries are missing.
        UnsupportedOperatorError: QNN does not take the module after all.
    """
    qualcomm.load_libraries()
    backend = generate_htp_compiler_spec(use_fp16=True)
    specs = generate_qnn_executorch_compiler_spec(chipset_of(soc), backend)
    examples = tuple(
        torch.zeros(input_shape(node), dtype=value_of(node).dtype) for node in inputs
    )
    with torch.no_grad():
        exported = torch.export.export(module, examples, strict=False)
    with quiet() as errors, QnnManagerContext({method: specs}):
        try:
            program = _in_qnn_dialect(exported, specs)
            order_outputs(program)
            if is_rounded:
                check_rounded(program)
            blob = _build(program, specs, method)
        except UnsupportedOperatorError:
            raise
        # Whatever its passes and builders stumble upon: AssertionError, KeyError and others.
        except Exception as error:
            raise UnsupportedOperatorError(
                f"QNN does not compile {method} ({type(error).__name__}: {error})"
            ) from error
        if not blob:
            raise UnsupportedOperatorError(f"QNN does not compile {method} ({errors()})")
    with quiet():
        check_signature(program, signature_of(blob, specs, method))
    return blob, {spec.key: spec.value for spec in specs}


def _in_qnn_dialect(exported: ExportedProgram, specs: Sequence[CompileSpec]) -> ExportedProgram:
    manager = QnnHtpPassManager()
    lifted = manager.transform_for_export_pipeline(exported)
    edge = to_edge(lifted, compile_config=qnn_edge_config())
    wanted = QnnHtpPassManager.get_capture_program_passes()
    for mistaken in _MISTAKEN:
        wanted[mistaken][QCOM_PASS_ACTIVATE_KEY] = False
    passes = manager.get_to_edge_transform_passes(
        edge.exported_program(), passes_job=wanted, compiler_specs=specs
    )
    program: ExportedProgram = edge.transform(passes).exported_program()
    for node in program.graph.nodes:
        node.meta.pop(QCOM_AXIS_ORDER, None)  # Else the layout counts as decided.
    end = program.graph.output_node()
    end.args = ([*end.args[0]],)  # Among a tuple, outputs are not put back into our layout.
    manager.transform_for_preprocess_pipeline(program)
    return program


def _build(program: ExportedProgram, specs: Sequence[CompileSpec], method: str) -> bytes:
    manager = get_current_qnn_manager(QnnExecuTorchBackendType.kHtpBackend, specs)
    manager.InitContext([method])
    visitors = get_node_visitors(program)
    visitors[_CONVOLUTION] = Convolution(visitors[_CONVOLUTION])
    wrappers: Any = defaultdict(dict)
    built: list[Any] = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        made = visitors[node.target.__name__].define_node(node, wrappers)
        # A builder that does not like its operator warns and leaves it out.
        assert made is not None or node.target is operator.getitem, f"no {node.format_node()}"
        built.extend(made if isinstance(made, list) else [made] if made else [])
    binary = manager.Compile([method], [[item.GetOpWrapper() for item in built]])
    manager.DestroyContext()
    return bytes(binary)


def signature_of(blob: bytes, specs: Sequence[CompileSpec], method: str) -> Signature:
    """Returns the names and sizes of a blob's inputs and outputs, as the runtime sees them."""
    manager = PyQnnManagerAdaptor.QnnManager(specs[0].value, blob)
    manager.InitBackend()
    manager.InitContextCache()
    manager.AllocateTensor(method)
    sides = (manager.GetGraphInputs(method), manager.GetGraphOutputs(method))
    found = [
        [(item.GetName(), tuple(map(int, item.GetDims()))) for item in side] for side in sides
    ]
    manager.Destroy()
    return Signature(*found)
