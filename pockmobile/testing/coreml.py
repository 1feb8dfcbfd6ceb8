"""Core ML's delegates, taken out of a program and interpreted."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, final

import torch
from coremltools import proto
from coremltools.converters.mil.frontend.milproto.load import load_mil_proto
from executorch.backends.apple.coreml import executorchcoreml
from torch import Tensor

from pockmobile.testing.mil import run_mil

_MODEL: Final = "model.mlpackage/Data/com.apple.CoreML/model.mlmodel"
_WEIGHTS: Final = "model.mlpackage/Data/com.apple.CoreML/weights"


@final
@dataclass(frozen=True)
class CoreMLDelegate:
    """A model package as a program holds it: a MIL program, and the order of its values."""

    program: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """Reads a delegate's bytes."""
        with tempfile.TemporaryDirectory() as folder:
            assert executorchcoreml.unflatten_directory_contents(blob, folder)
            (root,) = Path(folder).iterdir()
            metadata = json.loads((root / "metadata.json").read_text(encoding="utf-8"))
            spec = proto.Model_pb2.Model()
            spec.ParseFromString((root / _MODEL).read_bytes())
            program = load_mil_proto(
                spec.mlProgram, spec.specificationVersion, str(root / _WEIGHTS)
            )
        return cls(program, tuple(metadata["inputNames"]), tuple(metadata["outputNames"]))

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Runs the delegate as the runtime would: int64 comes in as int32."""
        named = {
            name: _shaped(tensor) for name, tensor in zip(self.inputs, tensors, strict=True)
        }
        found = run_mil(self.program, named)
        return [found[name] for name in self.outputs]


def _shaped(tensor: Tensor) -> Tensor:
    tensor = tensor.to(torch.int32) if tensor.dtype == torch.int64 else tensor
    return tensor.reshape(1) if tensor.dim() == 0 else tensor
