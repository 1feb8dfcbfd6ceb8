"""Small graphs for the tests of passes: how they are made, written down and run."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pockmobile.capture import capture_joint, export_forward
from pockmobile.graph import JointGraph, Port, Role, verify
from pockmobile.graph.joint import add_constant
from pockmobile.graph.rewrite import to_meta
from pockmobile.loss import CrossEntropy
from pockmobile.models.residual_cnn import ResidualCNN
from pockmobile.models.transformer_lm import TransformerLM
from pockmobile.passes import Canonicalize, Pass, run_passes

aten = torch.ops.aten
NO_TENSORS: Mapping[str, Tensor] = {}


def trace(
    function: Callable[..., Any],
    inputs: Mapping[str, Tensor],
    *,
    parameters: Mapping[str, Tensor] = NO_TENSORS,
    constants: Mapping[str, Tensor] = NO_TENSORS,
) -> JointGraph:
    """Returns the graph of `function(*parameters, *inputs, *constants)`.

    The function returns a tensor, or tensors by name: `loss`, `grad.<parameter>`, others.
    """
    values = {**parameters, **inputs, **constants}
    names: list[str] = []

    def flat(*args: Tensor) -> list[Tensor]:
        results = function(*args)
        results = results if isinstance(results, dict) else {"output": results}
        names[:] = results
        return list(results.values())

    module = make_fx(flat, tracing_mode="fake")(*values.values())
    nodes = list(module.graph.nodes)
    for node, (name, value) in zip(nodes, values.items(), strict=False):
        node._rename(name)
        if name in constants:
            with module.graph.inserting_before(nodes[len(values)]):
                constant = add_constant(module, value)
            node.replace_all_uses_with(constant)
            module.graph.erase_node(node)
    output = module.graph.output_node()
    output.args = (tuple(output.args[0]),)
    for node in module.graph.nodes:
        node.meta = {"val": to_meta(node.meta.get("val"))}
    ports = (
        *(Port(name, Role.PARAMETER, parameter=name) for name in parameters),
        *(Port(name, Role.INPUT) for name in inputs),
    )
    outputs = tuple(_output_port(name) for name in names)
    graph = JointGraph(module, ports, outputs, dict(parameters))
    verify(graph)
    return graph


def _output_port(name: str) -> Port:
    if name.startswith("grad."):
        return Port(name, Role.GRADIENT, parameter=name.removeprefix("grad."))
    return Port(name, Role.LOSS if name == "loss" else Role.OUTPUT)


def listing(graph: JointGraph) -> list[str]:
    """Returns the operators and the outputs, a line each, like `mul = mul(x, 2)`."""
    lines = []
    for node in graph.nodes:
        name = getattr(node.target, "_opname", getattr(node.target, "__name__", ""))
        kwargs = [
            f"{key}={value}"
            for key, value in node.kwargs.items()
            if key not in ("device", "pin_memory")
        ]
        arguments = ", ".join([*map(str, node.args), *kwargs])
        if node.op == "call_function":
            lines.append(f"{node.name} = {name}({arguments})")
    return [*lines, f"return {', '.join(map(str, graph.results))}"]


def operators(graph: JointGraph) -> list[str]:
    """Returns the names of the operators, in order."""
    calls = [node.target for node in graph.nodes if node.op == "call_function"]
    return [getattr(target, "_opname", getattr(target, "__name__", "")) for target in calls]


def apply(item: Pass, graph: JointGraph) -> JointGraph:
    """Applies a pass as the compiler does; checks that its argument is left untouched."""
    before, initial = _state(graph), dict(graph.initial)
    result, _ = run_passes(graph, [item])
    assert _state(graph) == before
    assert {name: id(value) for name, value in graph.initial.items()} == {
        name: id(value) for name, value in initial.items()
    }
    return result


def _state(graph: JointGraph) -> list[Any]:
    nodes = [(str(node), str(node.args), str(node.meta.get("val"))) for node in graph.nodes]
    return [listing(graph), nodes, graph.inputs, graph.outputs]


class _Runner(fx.Interpreter):
    """Runs on the CPU what was traced on another device."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        kwargs = {key: value for key, value in kwargs.items() if key != "device"}
        return target(*args, **kwargs)


def run(graph: JointGraph, values: Mapping[str, Tensor] = NO_TENSORS) -> dict[str, Tensor]:
    """Runs the graph and returns its outputs by name; parameters are the initial ones."""
    feed = {**graph.initial, **values}
    results = _Runner(graph.module).run(*(feed[port.name] for port in graph.inputs))
    return {port.name: value for port, value in zip(graph.outputs, results, strict=True)}


def assert_same(before: JointGraph, after: JointGraph, values: Mapping[str, Tensor]) -> None:
    """Asserts that two graphs give the very same numbers."""
    expected, found = run(before, values), run(after, values)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def assert_close(
    before: JointGraph, after: JointGraph, values: Mapping[str, Tensor], *, tolerance: float
) -> None:
    """Asserts that two graphs give the same numbers within an absolute tolerance."""
    expected, found = run(before, values), run(after, values)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=name)


def small_cnn() -> ResidualCNN:
    """Returns a classifier of 4 classes whose BatchNorm statistics are not trivial."""
    torch.manual_seed(0)
    model = ResidualCNN(width=4, num_blocks=2).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def small_lm() -> TransformerLM:
    """Returns a language model of 2 blocks and 24 tokens, with tied embeddings."""
    torch.manual_seed(0)
    model = TransformerLM(num_tokens=24, context=6, width=8, num_blocks=2, num_heads=2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


MODELS: Mapping[str, Callable[[], nn.Module]] = {"cnn": small_cnn, "lm": small_lm}


def batch(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Returns a random batch of two examples for a small model."""
    generator = torch.Generator().manual_seed(seed)
    if name == "cnn":
        return {
            "images": torch.randn(2, 3, 12, 12, generator=generator),
            "target": torch.randint(4, (2,), generator=generator),
        }
    return {
        "tokens": torch.randint(24, (2, 6), generator=generator),
        "target": torch.randint(24, (2, 6), generator=generator),
    }


@cache
def captured(name: str) -> JointGraph:
    """Returns the joint graph of a small model, as the first pass sees it."""
    values = batch(name)
    inputs = tuple(value for key, value in values.items() if key != "target")
    forward = export_forward(MODELS[name](), inputs)
    return capture_joint(forward, forward.inputs, {"target": values["target"]}, CrossEntropy())


@cache
def canonical(name: str) -> JointGraph:
    """Returns the joint graph of a small model, as all later passes see it."""
    return run_passes(captured(name), [Canonicalize()])[0]
