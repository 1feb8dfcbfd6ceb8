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
from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
from torch import Tensor

from pockmobile.testing.mil import run_mil

_MODEL: Final = "model.mlpackage/Data/com.apple.CoreML/model.mlmodel"
_MAIN: Final = "main"
_REFERENCE: Final = b"CMJR"
"""What a delegate's bytes begin with that only name a package among the program's data."""
_WEIGHTS: Final = "model.mlpackage/Data/com.apple.CoreML/weights"


@final
@dataclass(frozen=True)
class CoreMLDelegate:
    """A model package as a program holds it: a MIL function, and the order of its values."""

    function: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def from_bytes(cls, blob: bytes, method: str = _MAIN) -> Self:
        """Reads a delegate's bytes; of a package of several functions, the method's."""
        with tempfile.TemporaryDirectory() as folder:
            assert executorchcoreml.unflatten_directory_contents(blob, folder)
            (root,) = Path(folder).iterdir()
            metadata = json.loads((root / "metadata.json").read_text(encoding="utf-8"))
            spec = proto.Model_pb2.Model()
            spec.ParseFromString((root / _MODEL).read_bytes())
            program = load_mil_proto(
                spec.mlProgram, spec.specificationVersion, str(root / _WEIGHTS)
            )
        name = method if "methods" in metadata else _MAIN
        names = metadata["methods"][method] if "methods" in metadata else metadata
        function = program.functions[name]
        return cls(function, tuple(names["inputNames"]), tuple(names["outputNames"]))

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Runs the delegate as the runtime would: int64 comes in as int32."""
        named = {
            name: _shaped(tensor) for name, tensor in zip(self.inputs, tensors, strict=True)
        }
        found = run_mil(self.function, named)
        return [found[name] for name in self.outputs]


def package_of(blob: bytes, data: NamedDataStoreOutput | None) -> bytes:
    """Returns the model package that a delegate's bytes are, or that they refer to."""
    if not blob.startswith(_REFERENCE):
        return blob
    assert data is not None, "the program holds no package to refer to"
    entry = data.pte_data[json.loads(blob.removeprefix(_REFERENCE))["key"]]
    return bytes(data.buffers[entry.buffer_index])


def _shaped(tensor: Tensor) -> Tensor:
    tensor = tensor.to(torch.int32) if tensor.dtype == torch.int64 else tensor
    return tensor.reshape(1) if tensor.dim() == 0 else tensor
