"""The forward pass as `torch.export` sees it, with parameters by name."""

import io
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_unflatten

from pockmobile.capture.semantics import RULES
from pockmobile.capture.supported import check_operators, check_switches
from pockmobile.errors import ModelError
from pockmobile.graph.joint import memory_of


@final
@dataclass(frozen=True)
class Forward:
    """An exported forward pass.

    `graph` holds training-dialect ATen operators, `get_attr` nodes for its tensors and one
    placeholder for each leaf of the inputs, in order. `tensors` maps each `get_attr` target
    to the canonical name of its tensor: tied parameters share one name. `inputs` are the
    tensors among the example inputs; `leaves` all of them, in placeholder order.
    """

    graph: fx.GraphModule
    tensors: Mapping[str, str]
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    trainable: frozenset[str]
    inputs: Mapping[str, Tensor]
    leaves: tuple[Any, ...]
    adapters: Mapping[str, int] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """The first dimension of the first input."""
        return next(iter(self.inputs.values())).shape[0]

    @property
    def has_dynamic_batch(self) -> bool:
        """Whether it takes batches of another size than the example's."""
        holders = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        shapes = [
            node.meta["val"].shape for node in holders if isinstance(node.meta["val"], Tensor)
        ]
        return all(isinstance(shape[0], torch.SymInt) for shape in shapes if shape)

    def with_inputs(self, inputs: Mapping[str, Tensor]) -> tuple[Any, ...]:
        """Returns the leaves with the tensors of `inputs` in the place of the examples."""
        feed = iter(inputs.values())
        return tuple(next(feed) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves)


def export_forward(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
) -> Forward:
    """Exports the forward pass of `model` (in evaluation mode) on the example inputs.

    Raises:
        ModelError: the forward pass fails, or cannot be exported.
        UnsupportedOperatorError: no program can hold an operator of it.
    """
    kwargs = dict(kwargs or {})
    program = model if isinstance(model, ExportedProgram) else _export(model, args, kwargs)
    check_operators(program.graph, RULES)
    check_switches(program.graph, was_evaluating=program is not model)
    graph = program.module(check_guards=False)
    _drop_buffer_updates(graph.graph)
    leaves = tuple(tree_leaves((args, _ordered(program, kwargs))))
    names = [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"]
    if len(names) != len(leaves):
        raise ModelError(
            f"the model takes {len(names)} inputs ({', '.join(names)}), found {len(leaves)}"
        )
    inputs = {
        name: leaf for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor)
    }
    if not inputs:
        raise ModelError("the model takes no tensor; expected at least one input tensor")
    return Forward(graph, *_named_tensors(graph), inputs=inputs, leaves=leaves)


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    with _evaluation_mode(model):
        try:
            with torch.no_grad():
                model(*args, **kwargs)
        except Exception as error:
            raise forward_failure(error, (args, kwargs)) from error
        try:
            # It prints the graph of a model that it cannot capture, on top of its error.
            with redirect_stderr(io.StringIO()):
                return torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            raise ModelError(
                f"torch.export cannot capture the model: {first_line(error)}; see the "
                f"torch.export documentation on data-dependent control flow"
            ) from error


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Leaves each module in the mode in which it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training


def _ordered(program: ExportedProgram, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns keyword inputs in the order in which the program takes them."""
    spec = program.call_spec.in_spec
    _, expected = tree_unflatten(range(spec.num_leaves), spec)
    if kwargs and set(kwargs) != set(expected):
        raise ModelError(
            f"the model takes the keyword inputs {list(expected)}, found {list(kwargs)}"
        )
    return {name: kwargs[name] for name in expected if name in kwargs}


def _drop_buffer_updates(graph: fx.Graph) -> None:
    """Drops updates of buffers that are not read again, as a BatchNorm's count of batches."""
    for node in list(graph.nodes):
        if not is_mutation(node) or node.args[0].op != "get_attr":
            continue
        updated = node.args[0]
        if not node.users and not any(node < user for user in updated.users):
            graph.erase_node(node)


def is_mutation(node: fx.Node) -> bool:
    """Whether the operator writes into an argument."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def forward_failure(error: Exception, inputs: Any) -> ModelError:
    """Returns the error of a forward pass that failed on `inputs` (any structure)."""
    shapes = [str(list(leaf.shape)) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return ModelError(
        f"the model's forward pass fails on example inputs of shape {', '.join(shapes)}: "
        f"{first_line(error)}"
    )


def _named_tensors(
    graph: fx.GraphModule,
) -> tuple[dict[str, str], dict[str, Tensor], dict[str, Tensor], frozenset[str]]:
    """Returns target -> canonical name, parameters, buffers, and what requires gradients."""
    canonical: dict[Hashable, str] = {}
    tensors: dict[str, str] = {}
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    trainable: set[str] = set()
    for name, parameter in graph.named_parameters(remove_duplicate=False):
        # Tied tensors are two objects in a loaded archive.
        tensors[name] = canonical.setdefault(memory_of(parameter), name)
        parameters.setdefault(tensors[name], parameter.detach())
        if parameter.requires_grad and parameter.is_floating_point():
            trainable.add(tensors[name])
    targets = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for target in sorted(targets - set(tensors)):
        value = _attribute(graph, target)
        tensors[target] = canonical.setdefault(memory_of(value), target)
        buffers.setdefault(tensors[target], value.detach())
    return tensors, parameters, buffers, frozenset(trainable)


def _attribute(module: nn.Module, target: str) -> Tensor:
    *path, name = target.split(".")
    for part in path:
        module = getattr(module, part)
    value = getattr(module, name)
    assert isinstance(value, Tensor), f"{target} is no tensor"
    return value


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
