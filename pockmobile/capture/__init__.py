"""From a PyTorch model to its joint graph."""

from pockmobile.capture.adapters import with_adapters
from pockmobile.capture.forward import Forward, export_forward
from pockmobile.capture.interpreter import ForwardInterpreter
from pockmobile.capture.joint import (
    capture_joint,
    capture_predict,
    check_loss,
    model_output,
    named_targets,
)
from pockmobile.capture.layers import describe_layers
from pockmobile.capture.ranges import index_limits
from pockmobile.capture.split import split_forward

__all__ = [
    "Forward",
    "ForwardInterpreter",
    "capture_joint",
    "capture_predict",
    "check_loss",
    "describe_layers",
    "export_forward",
    "index_limits",
    "model_output",
    "named_targets",
    "split_forward",
    "with_adapters",
]
