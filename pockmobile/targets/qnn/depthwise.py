"""Builds depthwise convolutions whose weight comes at run time, which ExecuTorch has not."""

from typing import Any, Final

import executorch.backends.qualcomm.python.PyQnnManagerAdaptor as PyQnnManager
import numpy as np
from executorch.backends.qualcomm.builders import qnn_constants as qnn
from executorch.backends.qualcomm.builders.node_visitor import NodeVisitor
from executorch.backends.qualcomm.builders.utils import is_parameter
from torch import fx

_NATIVE: Final = PyQnnManager.Qnn_TensorType_t.QNN_TENSOR_TYPE_NATIVE
_NUMBERS: Final = PyQnnManager.Qnn_DataType_t.QNN_DATATYPE_UINT_32
_TURN: Final = (1, 2, 3, 0)
"""From the layout that ExecuTorch's passes give a weight, as if it were an image."""


class Convolution(NodeVisitor):  # type: ignore[misc]
    """Gives a run-time weight the layout of a filter; leaves frozen ones to ExecuTorch."""

    def __init__(self, frozen: Any) -> None:
        """Takes ExecuTorch's own builder of convolutions."""
        super().__init__(frozen.external_ids, frozen.edge_program, frozen.enable_tensor_dump)
        self._frozen = frozen

    def define_node(self, node: fx.Node, wrappers: Any) -> Any:
        """Returns the operators of a convolution: of a run-time weight, two."""
        if is_parameter(node.args[1], self.edge_program):
            return self._frozen.define_node(node, wrappers)
        x, weight = node.args[:2]
        given = self.get_tensor(weight, node)
        turned = given.permute(_TURN)
        encoding, encoded = self.get_quant_encoding_conf(weight, node)
        kernel = self.define_custom_tensor_wrapper(
            node_name=f"{node.name}_filter",
            tensor_type=_NATIVE,
            dtype=self.get_data_type(given, encoded),
            quant_encoding=encoding,
            quant_configs=encoded,
            dims=turned.size(),
            tensor=turned,
            is_fake_tensor=True,
            nodes_to_wrappers=wrappers,
        )
        turn = self._operator(f"{node.name}_turn", qnn.OpTranspose)
        turn.AddInputTensors([self._tensor(weight, node, wrappers)])
        turn.AddOutputTensors([kernel])
        _add_numbers(turn, qnn.OpTranspose.param_perm, _TURN)
        convolution = self._operator(node.name, qnn.OpDepthWiseConv2d)
        convolution.AddInputTensors([self._tensor(x, node, wrappers), kernel])
        convolution.AddOutputTensors([self._tensor(node, node, wrappers)])
        stride, padding, dilation = node.args[3:6]
        _add_numbers(convolution, qnn.OpDepthWiseConv2d.param_stride, stride)
        both_sides = [[size, size] for size in padding]  # type: ignore[union-attr]
        _add_numbers(convolution, qnn.OpDepthWiseConv2d.param_pad_amount, both_sides)
        _add_numbers(convolution, qnn.OpDepthWiseConv2d.param_dilation, dilation)
        return [turn, convolution]

    def _tensor(self, source: Any, node: fx.Node, wrappers: Any) -> Any:
        value = self.get_tensor(source, node)
        return self.define_tensor(source, node, value, _NATIVE, wrappers)

    def _operator(self, name: str, kind: Any) -> Any:
        package = qnn.QNN_OP_PACKAGE_NAME_QTI_AISW
        return PyQnnManager.PyQnnOpWrapper(name, package, kind.op_name)


def _add_numbers(operator: Any, name: str, numbers: Any) -> None:
    array = np.array(numbers, dtype=np.uint32)
    operator.AddTensorParam(name, _NUMBERS, array.ndim, list(array.shape), array, True)
