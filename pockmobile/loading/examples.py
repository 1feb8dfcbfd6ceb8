"""Example inputs and targets of one batch: from a file, from shapes, or from the archive."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.export import ExportedProgram

from pockmobile.errors import ModelFileError, UsageError, nearest
from pockmobile.loading.files import FileKind, kind_of
from pockmobile.loading.models import LoadedModel
from pockmobile.loading.shapes import InputShape
from pockmobile.loading.tensors import read_numpy, read_safetensors, read_torch_save

TARGET_NAMES: Final = ("target", "targets", "label", "labels")
DEFAULT_BATCH_SIZE: Final = 8
_SEED: Final = 0


@final
@dataclass(frozen=True)
class ExampleBatch:
    """Inputs by position and by name, and targets (None: the loss makes them up).

    Dimension 0 of each is the batch, of the same size everywhere.
    """

    args: tuple[Tensor, ...]
    kwargs: Mapping[str, Tensor]
    targets: tuple[Tensor, ...] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by a name for error messages."""
        inputs = {f"input {index}": tensor for index, tensor in enumerate(self.args)}
        targets = {f"target {index}": tensor for index, tensor in enumerate(self.targets or ())}
        return {**inputs, **self.kwargs, **targets}


def example_batch(
    loaded: LoadedModel,
    *,
    file: Path | None = None,
    shapes: Sequence[InputShape] = (),
    batch_size: int | None = None,
) -> ExampleBatch:
    """Returns one batch that the model can be exported with.

    Args:
        loaded: the model; the example inputs of its archive are taken if nothing else is given.
        file: read as `read_batch` says.
        shapes: shapes of the inputs without the batch; floats are drawn from a normal
            distribution, whole numbers are 0, bools are true.
        batch_size: examples are repeated or cut to it; None keeps the examples' own, or is
            8 for shapes.

    Raises:
        ModelFileError: the file is damaged or does not fit the model.
        UsageError: there are no example inputs, or the batch size is fixed in the archive.
    """
    if shapes:
        batch = _from_shapes(shapes, batch_size or DEFAULT_BATCH_SIZE)
    elif file is not None:
        batch = read_batch(file)
    else:
        batch = ExampleBatch((), {})
    if not batch.args and not batch.kwargs:
        batch = replace(batch, args=loaded.example_args, kwargs=loaded.example_kwargs or {})
    batch = _ordered(loaded, _fit(batch, batch_size))
    _check_shapes(loaded, batch)
    return batch


def all_examples(loaded: LoadedModel, file: Path, batch_size: int) -> ExampleBatch:
    """Returns all rows of a file, as the model takes them in batches of `batch_size`.

    Raises:
        ModelFileError: the file is damaged or does not fit the model.
    """
    batch = _ordered(loaded, _fit(read_batch(file), None))
    _check_shapes(loaded, _fit(batch, batch_size))
    return batch


def own_batch_size(loaded: LoadedModel) -> int:
    """Returns the batch size of the archive's example inputs, or 8 if it has none."""
    own = (*loaded.example_args, *(loaded.example_kwargs or {}).values())
    return len(own[0]) if own and own[0].dim() else DEFAULT_BATCH_SIZE


def _from_shapes(shapes: Sequence[InputShape], batch_size: int) -> ExampleBatch:
    generator = torch.Generator().manual_seed(_SEED)
    args, kwargs = [], {}
    for shape in shapes:
        tensor = _filled((batch_size, *shape.shape), getattr(torch, shape.dtype), generator)
        if shape.name is None:
            args.append(tensor)
        else:
            kwargs[shape.name] = tensor
    return ExampleBatch(tuple(args), kwargs)


def _filled(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=dtype, generator=generator)
    # A mask of False everywhere would leave attention nothing to look at.
    return torch.full(shape, dtype == torch.bool, dtype=dtype)


def read_batch(path: Path) -> ExampleBatch:
    """Reads inputs and targets, of any number of rows.

    Args:
        path: `.safetensors`, `.npz` or `.pt` with a tensor, a sequence of tensors, or tensors
            by name; `target`, `targets`, `label` or `labels` hold the targets.

    Raises:
        ModelFileError: the file is damaged, of another kind, or holds more than tensors.
    """
    content = _read(path)
    if isinstance(content, Tensor):
        content = [content]
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = {f"arr_{index}": value for index, value in enumerate(content)}
    if not isinstance(content, Mapping):
        raise ModelFileError(
            f"{path} holds a {type(content).__name__}; expected a tensor, a list of tensors, "
            f"or tensors by name"
        )
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ModelFileError(f"{name} in {path} is a {type(value).__name__}, not a tensor")
    targets = tuple(content[name] for name in content if name in TARGET_NAMES)
    inputs = {name: value for name, value in content.items() if name not in TARGET_NAMES}
    # NumPy's savez names arrays without a name arr_0, arr_1 and so on.
    args = tuple(inputs.pop(name) for name in list(inputs) if str(name).startswith("arr_"))
    return ExampleBatch(args, inputs, targets or None)


def _read(path: Path) -> Any:
    match kind_of(path):
        case FileKind.SAFETENSORS:
            return read_safetensors(path)
        case FileKind.NUMPY:
            return read_numpy(path)
        case FileKind.TORCH_SAVE:
            return read_torch_save(path, remedy="save plain tensors, or a dict of them")
        case kind:
            raise ModelFileError(
                f"{path} is {kind}; tensors are read from .safetensors, .npz or .pt files"
            )


def _fit(batch: ExampleBatch, batch_size: int | None) -> ExampleBatch:
    """Repeats or cuts every tensor to the batch size."""
    if not batch.args and not batch.kwargs:
        raise UsageError(
            "there are no example inputs: add --example-inputs FILE, or --input-shape with the "
            "shape of one example, like 3,224,224"
        )
    sizes = {
        name: tensor.shape[0] if tensor.dim() else 0 for name, tensor in batch.tensors.items()
    }
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        found = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ModelFileError(
            f"the example inputs and targets are no batch of one size: dimension 0 is {found}"
        )
    size = next(iter(sizes.values()))
    if batch_size is None or batch_size == size:
        return batch
    rows = torch.arange(batch_size) % size
    return ExampleBatch(
        tuple(tensor[rows] for tensor in batch.args),
        {name: tensor[rows] for name, tensor in batch.kwargs.items()},
        tuple(tensor[rows] for tensor in batch.targets) if batch.targets else None,
    )


def _check_signature(signature: inspect.Signature, batch: ExampleBatch) -> None:
    parameters = signature.parameters.values()
    names = [parameter.name for parameter in parameters]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    for name in batch.kwargs:
        if name not in names and not takes_any:
            raise ModelFileError(f"forward() has no parameter {name!r}: {nearest(name, names)}")
    try:
        signature.bind(*batch.args, **batch.kwargs)
    except TypeError as error:
        raise ModelFileError(
            f"the example inputs do not fit forward({', '.join(names)}): {error}"
        ) from error


def _ordered(loaded: LoadedModel, batch: ExampleBatch) -> ExampleBatch:
    """Orders the inputs as an archive takes them; those of a module must fit `forward`."""
    if not isinstance(loaded.model, ExportedProgram):
        _check_signature(inspect.signature(loaded.model.forward), batch)
        return batch
    model, names = loaded.name, _input_names(loaded.model)
    for name in batch.kwargs:
        if name not in names:
            raise ModelFileError(f"{model} has no input {name!r}: {nearest(name, names)}")
    inputs = dict(zip(names, batch.args, strict=False)) | dict(batch.kwargs)
    num_found = len(batch.args) + len(batch.kwargs)
    if not len(inputs) == num_found == len(names):
        raise ModelFileError(
            f"{model} takes {len(names)} inputs ({', '.join(names)}), found {num_found}"
        )
    keywords = _keywords(loaded.model)
    args = tuple(inputs[name] for name in names[: len(names) - len(keywords)])
    return ExampleBatch(args, {name: inputs[name] for name in keywords}, batch.targets)


def _input_names(exported: ExportedProgram) -> list[str]:
    """Returns the names of an archive's inputs, those by keyword last."""
    placeholders, keywords = exported.graph_signature.user_inputs, _keywords(exported)
    return [*map(str, placeholders[: len(placeholders) - len(keywords)]), *keywords]


def _keywords(exported: ExportedProgram) -> list[str]:
    return [str(name) for name in exported.call_spec.in_spec.child(1).context]


def _check_shapes(loaded: LoadedModel, batch: ExampleBatch) -> None:
    """Checks the shapes that an archive fixes; `batch` is in its order."""
    if not isinstance(loaded.model, ExportedProgram):
        return
    nodes = {node.name: node for node in loaded.model.graph.find_nodes(op="placeholder")}
    inputs = (*batch.args, *batch.kwargs.values())
    names = zip(
        loaded.model.graph_signature.user_inputs, _input_names(loaded.model), strict=True
    )
    for (placeholder, name), tensor in zip(names, inputs, strict=True):
        _check_shape(loaded.name, name, tensor, nodes[str(placeholder)].meta["val"])


def _check_shape(model: str, name: str, tensor: Tensor, expected: Tensor) -> None:
    fixed = [size if isinstance(size, int) else None for size in expected.shape]
    fits = tensor.dim() == len(fixed) and all(
        size in (None, found) for size, found in zip(fixed, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype != expected.dtype:
        sizes = ["any" if size is None else size for size in fixed]
        raise ModelFileError(
            f"{model} was exported for {name} of shape [{', '.join(map(str, sizes))}] and "
            f"{expected.dtype}, found {list(tensor.shape)} and {tensor.dtype}; give such "
            f"inputs, or export it with dynamic shapes"
        )
