"""Traces forward, loss and backward into one joint graph.

`torch.export` gives the forward pass; `make_fx` traces it with the loss and
`torch.autograd.grad` on top. That needs no private interface, and a parameter that is used
twice simply has two uses, which `_export_forward_backward` cannot capture (pytorch issue
147380).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.autograd.graph import Node as GradientFunction
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import get_current_meta, preserve_node_meta
from torch.utils._pytree import tree_leaves

from pockmobile.capture.decompositions import DECOMPOSITIONS
from pockmobile.capture.forward import Forward, first_line, forward_failure, is_mutation
from pockmobile.capture.interpreter import ForwardInterpreter
from pockmobile.capture.supported import (
    check_traced,
    explaining_gradients,
    module_path,
    source_line,
)
from pockmobile.errors import ModelError
from pockmobile.graph import JointGraph, Port, Role, verify
from pockmobile.graph.rewrite import LINE_KEY, MODULE_KEY, origin, to_meta
from pockmobile.loss import CustomLoss, Evaluation, Loss

_ORIGIN: Final = ("nn_module_stack", "stack_trace")
_LOSS: Final = {"nn_module_stack": {"": ("the loss", "")}}


class _TracedInterpreter(ForwardInterpreter):
    """Lets the backward operators of each node be traced as those of the same module."""

    def __init__(self, forward: Forward, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(forward, tensors)
        self._hooked: set[GradientFunction] = set()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.attribute_backward(result, n.meta)
        return result

    def attribute_backward(self, result: Any, meta: Mapping[str, Any]) -> None:
        """Says of all backward operators up to what was said before where they come from."""

        def enter(_: Any) -> None:
            get_current_meta().update({key: meta.get(key) for key in _ORIGIN})

        pending = [leaf.grad_fn for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        while pending:
            function = pending.pop()
            if function is None or function in self._hooked:
                continue
            self._hooked.add(function)
            function.register_prehook(enter)
            pending.extend(parent for parent, _ in function.next_functions)


def capture_joint(
    forward: Forward,
    inputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    loss: Loss,
    *,
    gradient_scale: float | None = None,
) -> JointGraph:
    """Returns the joint graph for inputs and targets of these shapes.

    Its inputs are all parameters, all buffers, the inputs and the targets; its outputs the
    loss (float32 []), the metrics, and a gradient for each parameter that influences the loss.
    Gradients are computed as multiples of `gradient_scale`, if there is one.

    Raises:
        ModelError: the loss does not fit the model's outputs.
    """

    def step(
        tensors: dict[str, Tensor], inputs: dict[str, Tensor], targets: dict[str, Tensor]
    ) -> Any:
        with torch.enable_grad():
            for name in forward.parameters:
                if tensors[name].is_floating_point():
                    tensors[name] = tensors[name].detach().requires_grad_()
            result = _evaluate(forward, tensors, inputs, targets, loss)
            names = [name for name in forward.parameters if tensors[name].requires_grad]
            seed = torch.full_like(result.loss, gradient_scale or 1.0)
            with explaining_gradients():
                grads = torch.autograd.grad(
                    result.loss, [tensors[name] for name in names], seed, allow_unused=True
                )
        pairs = zip(names, grads, strict=True)
        return (
            result.loss,
            list(result.metrics),
            {name: grad for name, grad in pairs if grad is not None},
        )

    module, spec = _trace(step, _tensors(forward), dict(inputs), dict(targets))
    ports = [
        Port("loss", Role.LOSS),
        *(Port(name, Role.METRIC) for name in loss.metrics),
        *(Port(f"grad.{name}", Role.GRADIENT, parameter=name) for name in spec[2]),
    ]
    return _joint(forward, module, inputs, targets, ports)


def capture_predict(
    forward: Forward, inputs: Mapping[str, Tensor], names: Sequence[str] | None = None
) -> JointGraph:
    """Returns the graph of the forward pass alone, for inputs of these shapes.

    Its outputs have these names; by default `output`, or `output_0`, `output_1` and so on.
    """

    def predict(tensors: dict[str, Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return ForwardInterpreter(forward, tensors).outputs(inputs)

    module, spec = _trace(predict, _tensors(forward), dict(inputs))
    if names is None:
        several = [f"output_{index}" for index in range(len(spec))]
        names = ["output"] if len(spec) == 1 else several
    return _joint(forward, module, inputs, {}, [Port(name, Role.OUTPUT) for name in names])


def model_output(forward: Forward, inputs: Mapping[str, Tensor]) -> Tensor:
    """Runs the forward pass and returns its first output, on which the loss is computed.

    Raises:
        ModelError: the forward pass fails on these inputs, or returns no tensor.
    """
    try:
        with torch.no_grad():
            return ForwardInterpreter(forward, _tensors(forward)).outputs(inputs)[0]
    except ModelError:
        raise
    except Exception as error:
        raise forward_failure(error, dict(inputs)) from error


def named_targets(
    targets: tuple[Tensor, ...] | None, loss: Loss, output: Tensor
) -> dict[str, Tensor]:
    """Returns the targets by name, as the program takes them; the loss makes them if None.

    Raises:
        ModelError: there are none.
    """
    targets = loss.example_targets(output) if targets is None else targets
    targets = tuple(target.to(output.device) for target in targets)
    if not targets:
        raise ModelError(f"loss {loss.name} needs targets, found none")
    if len(targets) == 1:
        return {"target": targets[0]}
    return {f"target_{index}": value for index, value in enumerate(targets)}


def check_loss(loss: Loss, output: Tensor, targets: Mapping[str, Tensor]) -> None:
    """Checks that a loss of one's own takes the targets' values, which tracing does not read.

    Raises:
        ModelError: it fails, as on a label out of range.
    """
    if isinstance(loss, CustomLoss):
        with torch.no_grad():
            _measured(loss, output, targets)


def _tensors(forward: Forward) -> dict[str, Tensor]:
    return {**forward.parameters, **forward.buffers}


def _evaluate(
    forward: Forward,
    tensors: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    loss: Loss,
) -> Evaluation:
    interpreter = _TracedInterpreter(forward, tensors)
    output = interpreter.outputs(inputs)[0]
    with _in_the_loss():
        result = _measured(loss, output, targets)
    interpreter.attribute_backward(result.loss, _LOSS)
    if not result.loss.requires_grad:
        raise ModelError(f"loss {loss.name} does not depend on any parameter: nothing to train")
    return result


def _measured(loss: Loss, output: Tensor, targets: Mapping[str, Tensor]) -> Evaluation:
    try:
        return loss.evaluate(output, tuple(targets.values()))
    except ModelError:
        raise
    except Exception as error:
        shapes = [list(target.shape) for target in targets.values()]
        raise ModelError(
            f"loss {loss.name} fails on outputs of shape {list(output.shape)} and targets "
            f"of shape {shapes}: {first_line(error)}"
        ) from error


@contextmanager
def _in_the_loss() -> Iterator[None]:
    """Lets operators be traced as those of the loss."""
    meta = get_current_meta()
    kept = dict(meta)
    meta.clear()
    meta.update(_LOSS)
    try:
        yield
    finally:
        meta.clear()
        meta.update(kept)


def _trace(function: Any, *args: Any) -> tuple[fx.GraphModule, Any]:
    """Traces `function`; returns the graph with flat outputs, and the outputs' structure."""
    structure: list[Any] = []

    def flat(*args: Any) -> list[Tensor]:
        result = function(*args)
        structure.append(result)
        return tree_leaves(result)

    # oneDNN's LSTM is one operator, which the runtime lacks; torch's own is many that it has.
    with preserve_node_meta(), torch.backends.mkldnn.flags(enabled=False):
        traced = make_fx(
            flat,
            tracing_mode="fake",
            decomposition_table=dict(DECOMPOSITIONS),
            _error_on_data_dependent_ops=True,
        )(*args)
        if any(is_mutation(node) for node in traced.graph.nodes):
            # In-place operators (an inplace ReLU) are written as their pure counterparts.
            run = functionalize(fx.Interpreter(traced).run, remove="mutations")
            traced = make_fx(run, tracing_mode="fake")(*args)
    if any(is_mutation(node) for node in traced.graph.nodes):
        raise ModelError(
            "the model's forward pass writes into a buffer or an input; a program has no "
            "state but what it trains: return the new value instead"
        )
    check_traced(traced.graph)
    return traced, structure[-1]


def _joint(
    forward: Forward,
    module: fx.GraphModule,
    inputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    outputs: Sequence[Port],
) -> JointGraph:
    plain = fx.GraphModule(module, _plain_graph(module))
    # A buffer may have the name of an input (a mask, say); it is gone before lowering.
    buffers = {f"buffer.{name}": value for name, value in forward.buffers.items()}
    ports = (
        *(Port(name, Role.PARAMETER, parameter=name) for name in forward.parameters),
        *(Port(name, Role.BUFFER) for name in buffers),
        *(Port(name, Role.INPUT) for name in inputs),
        *(Port(name, Role.TARGET) for name in targets),
    )
    _check_names(ports)
    graph = JointGraph(plain, ports, tuple(outputs), {**forward.parameters, **buffers})
    verify(graph)
    return graph


def _check_names(ports: Sequence[Port]) -> None:
    roles: dict[str, str] = {}
    for port in ports:
        if port.name in roles:
            raise ModelError(
                f"the model's {roles[port.name]} and its {port.role} are both named "
                f"{port.name!r}; rename one of them"
            )
        roles[port.name] = port.role


def _plain_graph(module: fx.GraphModule) -> fx.Graph:
    """Returns a copy without pytrees, whose nodes carry only a meta value and a module path."""
    graph = fx.Graph()
    memo: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, memo))
    for node, copied in memo.items():
        value = (
            getattr(module, str(node.target)) if node.op == "get_attr" else node.meta.get("val")
        )
        copied.meta = {"val": to_meta(value), **_origin_of(node, memo)}
    results = graph.output_node()
    results.args = (tuple(tree_leaves(results.args[0])),)
    return graph


def _origin_of(node: fx.Node, memo: Mapping[fx.Node, fx.Node]) -> dict[str, str]:
    """Returns where a traced node comes from; if it does not say, where its arguments do."""
    path, line = module_path(node.meta), source_line(node.meta)
    if path or line:
        return {MODULE_KEY: path, LINE_KEY: line}
    parents = (origin(memo[parent]) for parent in node.all_input_nodes)
    return next(
        (found for found in parents if any(found.values())), {MODULE_KEY: "", LINE_KEY: ""}
    )
