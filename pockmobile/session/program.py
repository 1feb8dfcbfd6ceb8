"""A program file opened in the ExecuTorch runtime, checked against its own manifest."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final
from weakref import WeakSet

import torch
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Program, Runtime, Verification

from pockmobile import qualcomm
from pockmobile.artifact.manifest import Manifest, Method, StateEntry, Tensor
from pockmobile.artifact.program import check_program
from pockmobile.errors import ArtifactError, UsageError

# ExecuTorch names dtypes by the number of torch's ScalarType.
_DTYPES: Final = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "float16",
    6: "float32",
    7: "float64",
    11: "bool",
    15: "bfloat16",
}


_QNN: Final = "QnnBackend"

_open: "WeakSet[LoadedProgram]" = WeakSet()


@final
class LoadedProgram:
    """A program whose seal holds and whose methods are those that its manifest says.

    Methods are loaded at their first call, so that a host that only predicts never allocates
    the memory of a training step.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens a program file.

        Raises:
            ArtifactError: the file is missing, damaged, or not written by pockmobile.
        """
        file = check_program(path)
        self.path: Final[Path] = file.path
        self.sha256: Final[str] = file.sha256
        self.num_bytes: Final[int] = file.num_bytes
        # The runtime frees what Python no longer holds, although methods still point to it.
        self._runtime = Runtime.get()
        self._program = self._load()
        if "manifest" not in self._program.method_names:
            raise self._unreadable("it has no method 'manifest'")
        (text,) = self._execute("manifest", ())
        try:
            self.manifest: Final[Manifest] = Manifest.from_json(text)
        except ArtifactError as error:
            raise ArtifactError(f"{self.path}: {error}") from error
        self._check_methods()
        _open.add(self)

    def check_backends(self) -> None:
        """Checks that the runtime has what the program's delegates need.

        Raises:
            MissingLibraryError: Qualcomm's libraries are missing.
            UsageError: it has not.
        """
        known = self._runtime.backend_registry.registered_backend_names
        missing = [name for name in self.manifest.backends if name not in known]
        if missing:
            raise UsageError(
                f"{self.path} is for target {self.manifest.target} and runs on "
                f"{', '.join(missing)}, which this machine's ExecuTorch has not (it has "
                f"{', '.join(sorted(known)) or 'none'}); run it on a device that has it, or "
                "export for xnnpack"
            )
        if _QNN in self.manifest.backends:
            # It looks for them when it loads a method.
            qualcomm.load_libraries()

    def release(self) -> None:
        """Frees the memory of all methods; each is loaded again at its next call."""
        self._program = self._load()

    def run(self, name: str, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs a method; the tensors returned are copies.

        Raises:
            ArtifactError: the runtime cannot load or run the method.
        """
        found = self.borrow(name, tensors)
        return [tensor.clone(memory_format=torch.contiguous_format) for tensor in found]

    def borrow(self, name: str, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Runs a method; the tensors returned are its own memory, until any method runs next.

        Raises:
            ArtifactError: the runtime cannot load or run the method.
        """
        return self._execute(name, tensors)

    def _load(self) -> Program:
        try:
            return self._runtime.load_program(
                self.path, verification=Verification.InternalConsistency
            )
        except RuntimeError as error:
            raise self._unreadable(str(error)) from error

    def _execute(self, name: str, tensors: Sequence[torch.Tensor]) -> Sequence[Any]:
        try:
            method = self._program.load_method(name)
            # `execute` would copy what it returns, to memory which is new each time.
            outputs: Sequence[Any] = method._method.call(tensors, clone_outputs=False)
        except RuntimeError as error:
            raise ArtifactError(
                f"{self.path}: the runtime failed in method {name!r} ({error}); its own lines "
                "above say why; check that this ExecuTorch is the release that exported it"
            ) from error
        return outputs

    def _check_methods(self) -> None:
        names = self._program.method_names
        for name in ("initial_state", *self.manifest.methods):
            if name not in names:
                raise self._unreadable(f"it has no method {name!r}")
        for name, method in self.manifest.methods.items():
            self._check_method(name, method)
        self._check_tensors(
            "initial_state", self._program.metadata("initial_state"), (), self.manifest.state
        )

    def _check_method(self, name: str, method: Method) -> None:
        self._check_tensors(name, self._program.metadata(name), method.inputs, method.outputs)
        batched = method.inputs_of("input") + method.inputs_of("target")
        if not batched or len({tensor.shape[:1] for tensor in batched}) != 1:
            shapes = {tensor.name: list(tensor.shape) for tensor in batched}
            raise self._unreadable(f"method {name!r} has no common batch dimension in {shapes}")

    def _check_tensors(
        self,
        name: str,
        metadata: Any,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor | StateEntry],
    ) -> None:
        found = (metadata.num_inputs(), metadata.num_outputs())
        if found != (len(inputs), len(outputs)):
            raise self._unreadable(
                f"method {name!r} has {found[0]} inputs and {found[1]} outputs, its manifest "
                f"says {len(inputs)} and {len(outputs)}"
            )
        infos = [metadata.input_tensor_meta(i) for i in range(found[0])]
        infos += [metadata.output_tensor_meta(i) for i in range(found[1])]
        for info, tensor in zip(infos, (*inputs, *outputs), strict=True):
            shape, dtype = tuple(info.sizes()), _DTYPES.get(int(info.dtype()), "unknown")
            if (shape, dtype) != (tensor.shape, tensor.dtype):
                raise self._unreadable(
                    f"tensor {tensor.name!r} of method {name!r} is {dtype} {list(shape)}, its "
                    f"manifest says {tensor.dtype} {list(tensor.shape)}"
                )

    def _unreadable(self, reason: str) -> ArtifactError:
        return ArtifactError(
            f"{self.path} is not a program that this pockmobile can run ({reason}); "
            "export the model again"
        )


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keeps torch to one thread: its others would spin on the cores that a program runs on."""
    num_threads = torch.get_num_threads()
    if num_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def set_num_threads(num_threads: int) -> None:
    """Sets the threads of ExecuTorch's pool, which all programs of this process share.

    Loaded methods hold the pool that there was, and would hang or crash with another one: so
    those of all open programs are released.

    Raises:
        UsageError: `num_threads` is not a positive whole number.
    """
    if isinstance(num_threads, bool) or not isinstance(num_threads, int) or num_threads < 1:
        raise UsageError(f"threads is {num_threads!r}, expected a whole number from 1")
    if portable_lib._threadpool_get_thread_count() != num_threads:
        for program in list(_open):
            program.release()
        portable_lib._unsafe_reset_threadpool(num_threads)
