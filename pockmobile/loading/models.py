"""Model files of every kind that is accepted -> one LoadedModel."""

import inspect
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pockmobile.errors import ModelFileError, UsageError
from pockmobile.loading.archive import load_archive
from pockmobile.loading.factory import parse_factory
from pockmobile.loading.files import FileKind, kind_of
from pockmobile.loading.tensors import damaged, listed, read_safetensors, read_torch_save

_PICKLE_REMEDY: Final = (
    "if you trust it add --trust-pickle, else save the model with torch.export.save"
)
_ADVICE: Final[Mapping[FileKind, str]] = {
    FileKind.TORCHSCRIPT: "save the original module with torch.export.save",
    FileKind.OLD_EXPORT_ARCHIVE: "save the module again with torch.export.save of this torch",
    FileKind.PROGRAM: "it is exported already; give the PyTorch model",
}


@final
@dataclass(frozen=True)
class LoadedModel:
    """A model, its name for the report, and the example inputs that its file holds, if any."""

    model: nn.Module | ExportedProgram
    name: str
    example_args: tuple[Tensor, ...] = ()
    example_kwargs: Mapping[str, Tensor] | None = None


def load_model(path: Path, *, model_factory: str | None, trust_pickle: bool) -> LoadedModel:
    """Reads a model file; nothing in it is executed unless `trust_pickle`.

    Args:
        path: a torch.export archive, a state dict (torch.save or safetensors), or a pickled
            module; told apart by content.
        model_factory: `package.module:function` that makes the module for a state dict.
        trust_pickle: may the file run code?

    Raises:
        ModelFileError: the file is not such a file, is refused, or does not fit the module.
        UsageError: `model_factory` names no function that can be called without arguments.
    """
    kind = kind_of(path)
    match kind:
        case FileKind.EXPORT_ARCHIVE:
            return _from_archive(path, model_factory)
        case FileKind.SAFETENSORS:
            return _from_state(path, read_safetensors(path), model_factory)
        case FileKind.TORCH_SAVE:
            return _from_torch_save(path, model_factory, trust_pickle)
        case _:
            advice = _ADVICE.get(kind, "expected a torch.export archive or a state dict")
            raise ModelFileError(f"{path} is {kind}, which cannot be exported: {advice}")


def _from_archive(path: Path, model_factory: str | None) -> LoadedModel:
    if model_factory is not None:
        raise UsageError(f"{path} holds the model itself; leave --model out")
    exported = load_archive(path)
    args, kwargs = exported.example_inputs or ((), {})
    for name, value in [*enumerate(args), *kwargs.items()]:
        if not isinstance(value, Tensor):
            raise ModelFileError(
                f"input {name} of {path} is a {type(value).__name__}; export the model with "
                f"tensors only"
            )
    return LoadedModel(exported, path.stem, tuple(args), kwargs or None)


def _from_torch_save(path: Path, model_factory: str | None, trust_pickle: bool) -> LoadedModel:
    content = _unpickle(path) if trust_pickle else read_torch_save(path, remedy=_PICKLE_REMEDY)
    if not isinstance(content, nn.Module):
        return _from_state(path, content, model_factory)
    if model_factory is not None:
        raise UsageError(f"{path} holds the model itself; leave --model out")
    return LoadedModel(content, type(content).__name__)


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ModelFileError(
            f"{path} needs code that cannot be imported here ({error}); run where the module "
            f"that defines its classes can be imported"
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise damaged(path) from error


def _from_state(path: Path, state: Any, model_factory: str | None) -> LoadedModel:
    _check_state(path, state)
    if model_factory is None:
        raise UsageError(
            f"{path} is a state dict, weights without the model: add --model "
            f"package.module:function, a function that returns the module"
        )
    module = _make(model_factory)
    _fill(path, module, state)
    return LoadedModel(module, type(module).__name__)


def _check_state(path: Path, state: Any) -> None:
    if not isinstance(state, Mapping):
        raise ModelFileError(
            f"{path} holds a {type(state).__name__}, expected a module or a state dict"
        )
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        raise ModelFileError(
            f"{path} is no state dict (no tensors: {listed(others)}); save model.state_dict() "
            f"alone"
        )


def _make(model_factory: str) -> nn.Module:
    factory = parse_factory(model_factory)
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise UsageError(
            f"--model {model_factory} cannot be called without arguments ({error}); name a "
            f"function that needs none"
        ) from error
    module = factory()
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"--model {model_factory} returned a {type(module).__name__}, expected a "
            f"torch.nn.Module"
        )
    return module


def _fill(path: Path, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    refusal = f"{path} does not fit {type(module).__name__}"
    expected = module.state_dict()
    for name, tensor in state.items():
        if name in expected and tensor.shape != expected[name].shape:
            raise ModelFileError(
                f"{refusal}: {name} is {list(tensor.shape)}, expected "
                f"{list(expected[name].shape)}"
            )
    result = module.load_state_dict(state, strict=False)
    # safetensors stores a tied weight once, under one of its names.
    filled = {expected[name].data_ptr() for name in state if name in expected}
    missing = [name for name in result.missing_keys if expected[name].data_ptr() not in filled]
    if missing or result.unexpected_keys:
        raise ModelFileError(
            f"{refusal}: missing {listed(missing)}; unexpected {listed(result.unexpected_keys)}"
        )
